"""The shipped bundle, and the demo command with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.calibrate import SURROGATE_KINDS, surrogates
from alignment.pairs import read_targets
from alignment.runtime import Runtime
from encoders.readers import read_epochs
from generation.bundle import Bundle
from generation.pipeline import ReconstructionPipeline
from serving.cli import DEMO_BUNDLE, DEMO_DATA, main


def test_shipped_bundle_is_whole_and_small() -> None:
    size = sum(path.stat().st_size for path in DEMO_BUNDLE.rglob("*") if path.is_file())
    assert size <= 25e6
    bundle = Bundle.load(DEMO_BUNDLE)
    assert "simulated" in bundle.manifest.data_statement
    assert np.array_equal(bundle.gallery().image_embeds, read_targets(DEMO_DATA / "targets.safetensors")["test"].embeds)


def test_noise_reads_as_noise_and_a_recording_does_not() -> None:
    pipeline = ReconstructionPipeline(DEMO_BUNDLE, Runtime(device="cpu", threads=1), embedding_only=True)
    recording = read_epochs(DEMO_BUNDLE / "example.npz")
    confidence = np.concatenate([
        pipeline.embed([surrogates(recording, kind, 9000 + turn)]).confidence
        for kind in SURROGATE_KINDS
        for turn in range(-(-200 // (len(SURROGATE_KINDS) * len(recording.data))))
    ])  # fmt: skip
    assert len(confidence) >= 200
    assert abs(confidence.mean() - 0.5) < 0.1
    assert pipeline.embed([recording]).confidence.mean() > 0.75


@pytest.mark.slow
def test_demo_writes_a_sheet_and_finds_scenes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_shown"] == 6 and result["n_found"] >= 3, "chance is 0.005 each"
    sheet = np.asarray(Image.open(tmp_path / "demo.png").convert("RGB"))
    assert sheet.std() > 30
    assert len(list((tmp_path / "demo").glob("*.png"))) == 6
