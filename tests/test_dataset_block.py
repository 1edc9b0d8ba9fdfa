"""One block of a data set, without Ray: the seed and the epoch decide a picture, and a bad epoch stops no other."""

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_bundle import make_tiny_bundle, tiny_recording

from encoders.answer_table import count_answers
from encoders.epoch_ranges import EpochRange, ranges
from serving import dataset_block
from serving.cli import main
from serving.dataset_block import BlockDecoder, block_file, epoch_seed
from serving.dataset_run import BlockTask
from serving.schema import MAX_EPOCHS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "x-epo.fif"
    epochs = tiny_recording("eeg", 6)
    data = epochs.data.copy()
    data[4] = 0.0
    replace(epochs, data=data).save(path)
    return path


Make = Callable[..., BlockDecoder]


@pytest.fixture
def make(bundle: Path) -> Iterator[Make]:
    made = []

    def decoder(out: Path, **settings: object) -> BlockDecoder:
        (out / "blocks").mkdir(parents=True)
        made.append(BlockDecoder(str(bundle), settings, str(out)))
        return made[-1]

    yield decoder
    for one in made:
        one.close()


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*.png")}


def test_a_picture_depends_on_seed_and_epoch_and_not_on_what_was_decoded_before(
    make: Make, recording: Path, tmp_path: Path
) -> None:
    blocks = [EpochRange(str(recording), "x", start, start + 2) for start in (0, 2)]
    for out, seed, order in (("forth", 0, (0, 1)), ("back", 0, (1, 0)), ("other", 1, (0, 1))):
        one = make(tmp_path / out, images=2, seed=seed)
        for number in order:
            one.decode(number, blocks[number])
    assert pictures(tmp_path / "forth") == pictures(tmp_path / "back") and len(pictures(tmp_path / "forth")) == 8
    assert not set(pictures(tmp_path / "other").values()) & set(pictures(tmp_path / "forth").values())


def test_a_flat_epoch_is_a_row_with_its_reason(make: Make, recording: Path, tmp_path: Path) -> None:
    one = make(tmp_path / "out")
    one.decode(3, EpochRange(str(recording), "x", 2, 6))
    rows = pq.read_table(block_file(tmp_path / "out", 3)).to_pylist()
    assert [row["epoch"] for row in rows] == [2, 3, 4, 5]
    assert [bool(row["refused"]) for row in rows] == [False, False, True, False]
    assert len(rows[2]["refused"]) > 20 and rows[2]["confidence"] is None and not rows[2]["pictures"]
    assert count_answers(block_file(tmp_path / "out", 3)) == (4, 1)
    assert all((tmp_path / "out" / file).is_file() for row in rows for file in row["pictures"] or ())


def test_a_finished_block_is_left_alone(make: Make, recording: Path, tmp_path: Path) -> None:
    one = make(tmp_path / "out")
    block_file(tmp_path / "out", 0).write_bytes(b"finished before")
    one.decode(0, EpochRange(str(recording), "x", 0, 2))
    assert block_file(tmp_path / "out", 0).read_bytes() == b"finished before" and not pictures(tmp_path / "out")


def test_a_full_disk_is_told_and_leaves_no_finished_block(
    bundle: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "planted")

    (tmp_path / "out" / "blocks").mkdir(parents=True)
    (tmp_path / "out" / "run.json").touch()
    task = BlockTask(str(bundle), {}, str(tmp_path / "out"))
    monkeypatch.setattr(dataset_block, "write_atomic", full)
    block = f'{{"path": "{recording}", "name": "x", "start": 0, "stop": 2}}'
    said = task({"number": np.array([0]), "block": np.array([block], dtype=object)})
    assert "No space left" in said["failed"][0] and "make room" in said["failed"][0]
    assert not block_file(tmp_path / "out", 0).exists()
    assert task.decoder is not None
    task.decoder.close()


@pytest.mark.parametrize("lost", ["bundle", "run.json", "recording"])
def test_a_machine_that_does_not_reach_the_files_says_which(
    bundle: Path, recording: Path, tmp_path: Path, lost: str
) -> None:
    if lost != "run.json":
        (tmp_path / "run.json").touch()
    task = BlockTask(str(tmp_path / "bundle" if lost == "bundle" else bundle), {}, str(tmp_path))
    path = tmp_path / "recording" if lost == "recording" else recording
    block = f'{{"path": "{path}", "name": "x", "start": 0, "stop": 2}}'
    said = task({"number": np.array([0]), "block": np.array([block], dtype=object)})["failed"][0]
    assert f"{tmp_path / lost}; all machines must" in said
    assert not (tmp_path / "blocks").exists() and not pictures(tmp_path)
    if task.decoder is not None:
        task.decoder.close()


def test_seeds_are_of_the_epoch_and_fit_the_service() -> None:
    seeds = {epoch_seed(seed, name, epoch) for seed in (0, 1) for name in ("a", "b") for epoch in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.slow
def test_a_recording_too_long_for_decode_is_decoded_in_blocks_as_its_pieces_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle", retrieves=True)
    whole = tiny_recording("eeg", 900)
    whole.save(tmp_path / "long-epo.fif")
    decode = ["--bundle", str(bundle), "--subject", whole.subject, "--out"]
    assert main(["decode", str(tmp_path / "long-epo.fif"), *decode, str(tmp_path / "refused")]) == 2
    assert f"900 epochs, at most {MAX_EPOCHS} are taken" in capsys.readouterr().err

    (tmp_path / "out" / "blocks").mkdir(parents=True)
    blocks = BlockDecoder(str(bundle), {"block_epochs": 300}, str(tmp_path / "out"))
    rows = []
    for number, block in enumerate(ranges(tmp_path / "long-epo.fif", 300)):
        blocks.decode(number, block)
        rows += pq.read_table(block_file(tmp_path / "out", number)).to_pylist()
    blocks.close()
    assert [row["epoch"] for row in rows] == list(range(900)) and not any(row["refused"] for row in rows)

    pieces = []
    for start, stop in ((0, 450), (450, 900)):
        whole.select(list(range(start, stop))).save(tmp_path / f"{start}-epo.fif")
        assert main(["decode", str(tmp_path / f"{start}-epo.fif"), *decode, str(tmp_path / str(start))]) == 0
        pieces += json.loads((tmp_path / str(start) / "answer.json").read_text())["epochs"]
    assert [row["stimulus"] for row in rows] == [epoch["stimulus"] for epoch in pieces]
    names, similarity = (
        np.array([[one[key] for one in answer["neighbours"]] for answer in [*rows, *pieces]]).reshape(2, 900, -1)
        for key in ("name", "similarity")
    )
    assert np.allclose(*similarity, atol=1e-5) and (names[0] == names[1]).mean() > 0.99
    # confidence is a share of recordings without a signal, and rounding may move an answer past one of them
    sure = np.array([answer["confidence"] for answer in [*rows, *pieces]]).reshape(2, 900)
    assert np.isclose(*sure, atol=1e-5).mean() > 0.99
    shown = [row["pictures"][0] for row in rows]
    assert all((tmp_path / "out" / file).is_file() for file in shown) and len(set(shown)) == 900
