"""Prepared epochs are those of the store, preprocessed; they hold no test epoch, survive kills and notice damage."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alignment import prepared_epochs
from alignment.prepared_epochs import open_prepared
from alignment.recorded_sources import open_sources, prepare
from alignment.train_config import TrainConfig
from benchmarks import training_throughput
from benchmarks.training_throughput import Case, NoiseSource, settings, write_targets
from encoders.store_build import build_store
from tests.toy_lab import build_lab, pictures
from tests.toy_recordings import tree


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build_lab(tmp_path_factory.mktemp("lab"))


def config(lab: dict[str, Any], folder: Path, **data: Any) -> TrainConfig:
    return TrainConfig.model_validate({**lab, "data": {**lab["data"], "folder": str(folder), **data}})


@pytest.fixture(scope="module")
def prepared(lab: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    chosen = config(lab, tmp_path_factory.mktemp("prepared"))
    return chosen, prepare(chosen)[0]


def test_rows_are_the_preprocessed_averages_of_the_store(prepared: tuple[TrainConfig, Path]) -> None:
    chosen, _ = prepared
    sources = open_sources(chosen)
    found = open_prepared(chosen.data.folder, sources.digest)  # type: ignore[union-attr]
    assert found.people == {"eeg": ("sim-01", "sim-02"), "meg": ("sim-03", "sim-04")}
    for name, store in sources.stores.items():
        columns = {one: np.array(store.metadata[one].to_pylist()) for one in ("image", "subject")}
        for split, pairs in (("train", found.train), ("val", found.val)):
            part = pairs.parts[name]
            assert part.n_averaged == 2
            for row in (0, len(part.target) // 2, len(part.target) - 1):
                image, person = found.images[split][part.target[row]], found.people[name][part.subject[row]]
                wanted = np.flatnonzero((columns["image"] == image) & (columns["subject"] == person))
                assert len(wanted) == 2
                mates = np.flatnonzero(columns["subject"] == person)  # gain is judged over a whole recording
                epochs = store.epochs(np.union1d(wanted, mates[:40])).average_repetitions()
                expected = found.preprocessors[name](epochs).data[list(epochs.stimulus).index(image)]
                assert np.abs(part.data[[row]][0] - expected).max() < 0.02


def test_test_pictures_are_not_in_the_folder(prepared: tuple[TrainConfig, Path]) -> None:
    chosen, folder = prepared
    index = (folder / "prepared.json").read_text()
    tested = [image for image in pictures().images if image.startswith("t")]
    assert tested and not any(image in index for image in tested)
    sources = open_sources(chosen)
    found = open_prepared(chosen.data.folder, sources.digest)  # type: ignore[union-attr]
    n = {name: len(part.target) for name, part in found.train.parts.items()}
    assert n == {"eeg": 2 * (len(found.images["train"]) - _lacking(found.images["train"], "c39")),
                 "meg": 2 * (len(found.images["train"]) - _lacking(found.images["train"], "c00"))}  # fmt: skip


def _lacking(images: tuple[str, ...], concept: str) -> int:
    return sum(image.startswith(concept) for image in images)


def test_single_presentations_can_be_kept(lab: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(lab, tmp_path, average_train=False)
    prepare(chosen)
    found = open_prepared(tmp_path, open_sources(chosen).digest)
    part = found.train.parts["eeg"]
    assert part.n_averaged == 1 and found.val.parts["eeg"].n_averaged == 2
    assert set(np.unique(part.target, return_counts=True)[1]) == {4}  # two people, two repetitions


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_stopped_preparation_goes_on_and_gives_the_same_bytes(
    lab: dict[str, Any],
    prepared: tuple[TrainConfig, Path],
    tmp_path: Path,
    n_workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = config(lab, tmp_path)
    real, calls = prepared_epochs._prepare_person, []

    def stops(task: Any) -> Any:
        calls.append(task.stem)
        if len(calls) == 4:
            raise OSError("disk full")
        return real(task)

    with monkeypatch.context() as patched:
        patched.setattr(prepared_epochs, "_prepare_person", stops)
        with pytest.raises(OSError, match="disk full"):
            prepare(chosen)
    with pytest.raises(ValueError, match="run `phosphene prepare` with the same config first"):
        open_prepared(tmp_path, open_sources(chosen).digest)
    folder, _ = prepare(chosen, n_workers=n_workers)
    assert tree(folder) == tree(prepared[1])


def test_damage_is_named(lab: dict[str, Any], prepared: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    chosen = config(lab, tmp_path)
    folder, _ = prepare(chosen)
    digest = open_sources(chosen).digest
    shard = sorted((folder / "shards").glob("meg-train*.npy"))[0]
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    found = open_prepared(tmp_path, digest)
    with pytest.raises(ValueError, match=f"{shard.name} does not match its sha256"):
        found.train.parts["meg"].data[np.array([0])]
    statistics = folder / "eeg.safetensors"
    statistics.write_bytes(statistics.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="eeg.safetensors does not match its sha256"):
        open_prepared(tmp_path, digest)


def test_other_settings_are_other_data(lab: dict[str, Any], prepared: tuple[TrainConfig, Path]) -> None:
    chosen, folder = prepared
    other = config(lab, chosen.data.folder, split_seed=3)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no prepared epochs for these settings"):
        open_prepared(folder.parent, open_sources(other).digest)


TRAIN_LARGE = """
import resource, sys
from pathlib import Path
import yaml
from alignment import brain_training
from alignment.train import train
from alignment.train_config import TrainConfig

brain_training.MAX_PROJECTION_ROWS = 256  # a bound too, but for stores of real size

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

folder = Path(sys.argv[1])
small, large = (TrainConfig.model_validate(yaml.safe_load((folder / one).read_text())) for one in ("small", "large"))
train(small, folder / "small run")
before = kilobytes("RssAnon")
limit = (kilobytes("VmData") + 60 * 1024) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
train(large, folder / "large run")
print("grown", (kilobytes("RssAnon") - before) // 1024)
try:
    bytearray(100 << 20)
except MemoryError:
    print("too large")
"""


@pytest.mark.slow
def test_four_times_the_allowed_memory_is_trained_on_within_it(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """254 MB, each epoch twice and in random order, after a training of two steps, with 60 MB more than that left.

    Memory is counted as in the store's own test: what only this process has.
    """
    monkeypatch.setattr(training_throughput, "WIDTH", 64)
    write_targets(tmp_path / "targets.safetensors")
    build_store(NoiseSource("eeg", 2), tmp_path / "eeg.store")
    for name, n_steps in (("small", 2), ("large", 512)):
        chosen = settings(Case("eeg", "brain_module_demo", 32), tmp_path, 1000.0)
        chosen["fit"]["max_steps"] = n_steps
        (tmp_path / name).write_text(yaml.safe_dump(chosen))
    folder, _ = prepare(TrainConfig.model_validate(chosen))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >= 4 * 60 * 1024**2
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_LARGE, str(tmp_path)], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *_, grown, limit = done.stdout.splitlines()
    print(grown, "MB")
    assert int(grown.split()[1]) < 60 and limit == "too large"
