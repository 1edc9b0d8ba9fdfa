"""Decoding whole data sets on Ray Data: each epoch once, also after a kill, and the same pictures either way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from own_cluster import own_cluster
from PIL import Image
from tiny_bundle import make_tiny_bundle, tiny_recording

from serving.cli import main
from serving.cluster import free_port
from serving.rendering import SOURCE_TYPE, XMP_KEY

ROOT = Path(__file__).resolve().parents[1]
N = {"a-epo.fif": 5, "b-epo.fif": 7}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, one of them with a flat epoch."""
    folder = tmp_path_factory.mktemp("recordings")
    for seed, (name, n) in enumerate(N.items()):
        epochs = tiny_recording("eeg", n, seed=seed)
        if name.startswith("b"):
            epochs.data[2] = 0.0
        epochs.save(folder / name)
    return folder


def arguments(source: Path, bundle: Path, out: Path, *more: str) -> list[str]:
    return ["decode-dataset", str(source), "--out", str(out), "--bundle", str(bundle), "--block", "2", "--json", *more]


def command(source: Path, bundle: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "serving.cli", *arguments(source, bundle, out, *more)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def pictures(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "pictures").rglob("*.png"))
    }


@pytest.fixture(scope="module")
def whole(source: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    process = command(source, bundle, out)
    told = json.loads(process.communicate(timeout=300)[0])
    assert process.returncode == 0 and told["n_epochs"] == 12 and told["n_refused"] == 1
    return out


@pytest.mark.slow
def test_every_epoch_has_a_row_and_every_picture_its_marks(whole: Path) -> None:
    table = pq.read_table(whole / "epochs.parquet").to_pylist()
    assert [(row["source"], row["epoch"]) for row in table] == [(name, i) for name, n in N.items() for i in range(n)]
    refused = [row for row in table if row["refused"]]
    assert [(row["source"], row["epoch"]) for row in refused] == [("b-epo.fif", 2)] and not refused[0]["pictures"]
    good = [row for row in table if not row["refused"]]
    assert sorted(file for row in good for file in row["pictures"]) == sorted(pictures(whole))
    assert len({row["seed"] for row in good}) == 11 and all(0.0 <= row["confidence"] <= 1.0 for row in good)
    assert all(row["neighbours"] and row["noise_floor"] is not None for row in good)
    assert good[0]["subject"] == "sim-01" and good[0]["stimulus"] == "image-0"
    with Image.open(whole / good[0]["pictures"][0]) as image:
        assert SOURCE_TYPE in image.text[XMP_KEY]  # type: ignore[attr-defined]
        assert image.text["phosphene:seed"] == str(good[0]["seed"])  # type: ignore[attr-defined]


@pytest.mark.faults
def test_a_killed_run_goes_on_and_makes_the_same_pictures(
    whole: Path, source: Path, bundle: Path, tmp_path: Path
) -> None:
    process = command(source, bundle, tmp_path)
    blocks = tmp_path / "blocks"
    deadline = time.monotonic() + 200
    while len(list(blocks.glob("*.parquet"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.0)  # what the kill left of Ray ends by itself
    finished = {path.name: path.stat().st_mtime_ns for path in blocks.glob("*.parquet")}
    assert 2 <= len(finished) < 7 and not (tmp_path / "epochs.parquet").exists()
    again = command(source, bundle, tmp_path)
    told = json.loads(again.communicate(timeout=300)[0])
    assert told["n_blocks_before"] >= len(finished) and told["n_epochs"] == 12
    assert {name: (blocks / name).stat().st_mtime_ns for name in finished} == finished
    assert pictures(tmp_path) == pictures(whole)
    assert (tmp_path / "epochs.parquet").read_bytes() == (whole / "epochs.parquet").read_bytes()


@pytest.mark.faults
def test_a_run_on_a_cluster_that_exists_holds_its_folder_alone_and_leaves_the_cluster(
    whole: Path, source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with own_cluster(2) as cluster:
        process = command(source, bundle, tmp_path, "--address", cluster.address)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run.json").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        assert main(arguments(source, bundle, tmp_path)) == 2
        assert f"another run works in {tmp_path}" in capsys.readouterr().err
        told = json.loads(process.communicate(timeout=300)[0])
        assert process.returncode == 0 and told["n_epochs"] == 12
        assert cluster.alive()
    assert pictures(tmp_path) == pictures(whole)
    assert (tmp_path / "epochs.parquet").read_bytes() == (whole / "epochs.parquet").read_bytes()


def test_a_wrong_source_is_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken-epo.fif").write_bytes(b"no epochs")
    for name, said in {"absent": "found nothing", "empty": "no -epo.fif", "broken-epo.fif": "cannot be opened"}.items():
        assert main(arguments(tmp_path / name, bundle, tmp_path / "out")) == 2
        assert said in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_told_at_once(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main(arguments(source, bundle, tmp_path / "out", "--address", address)) == 2
    assert f"no Ray cluster answers at {address}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_finished_run_is_not_done_again_and_no_other_goes_on_in_its_folder(
    whole: Path, source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, bundle, whole)) == 0
    assert json.loads(capsys.readouterr().out)["n_blocks_before"] == 7
    assert main(arguments(source, bundle, whole, "--seed", "5")) == 2
    assert "seed was 0, now 5" in capsys.readouterr().err
