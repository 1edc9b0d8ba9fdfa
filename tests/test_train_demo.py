import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation.bundle import Bundle
from generation.train_demo import PLANS, STAGES

ROOT = Path(__file__).parent.parent


def test_stages_are_named_once_and_every_plan_is_complete():
    results = [result for _, result in STAGES.values()]
    assert len(set(results)) == len(results)
    assert PLANS["smoke"].n_pictures < PLANS["full"].n_pictures


def _train(*arguments: str) -> str:
    command = [sys.executable, "-m", "generation.train_demo", "--plan", "smoke", "--threads", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_smoke_plan_makes_a_bundle_and_resumes(tmp_path):
    paths = ("--work", str(tmp_path / "work"), "--out", str(tmp_path / "bundle"))
    said = _train(*paths, "--until", "clip")
    assert "stage clip: runs" in said and "brain" not in said
    said = _train(*paths)
    assert "stage clip: done before" in said
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert "simulated" in manifest.data_statement
    assert {"true_embeddings", "eeg", "meg", "eeg+meg", "noise_eeg"} <= set(manifest.scores["pictures"])
    assert json.loads(said[said.index("{") :])["id"] == manifest.id


@pytest.mark.slow
def test_smoke_plan_accepts_a_folder_of_pictures(tmp_path):
    generator = np.random.default_rng(0)
    for concept in range(60):
        folder = tmp_path / "photos" / f"thing_{concept}"
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(generator.integers(0, 255, (70, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    _train("--images", str(tmp_path / "photos"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "bundle"))
    assert "pictures" not in Bundle.load(tmp_path / "bundle").manifest.scores
