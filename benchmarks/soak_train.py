"""Kill, starve and poison trainings, and see that nothing is lost or changed: goals T1-T4 and T6 at full length.

    python benchmarks/soak_train.py --out out/soak            # 20 kills on 1 and 2 processes, 50 kills in saves: 15 min
    python benchmarks/soak_train.py --out out/soak --quick    # the same in a minute or two, to see that it runs

Data are simulated and recorded into a store, which is trained on through the path of real data. Exits with 1 if a goal
is missed; the figures are also in ``<out>/soak.json``.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from scipy.stats import binom  # noqa: E402
from torch import nn  # noqa: E402

from alignment.brain_training import BrainTraining, record_study  # noqa: E402
from alignment.checkpoint import load_checkpoint  # noqa: E402
from alignment.fit import FitConfig, fit  # noqa: E402
from alignment.joined_pairs import JoinedPairs  # noqa: E402
from alignment.recorded_sources import prepare  # noqa: E402
from alignment.runtime import Runtime  # noqa: E402
from alignment.target_table import TargetTable, write_target_table  # noqa: E402
from alignment.train_config import TrainConfig  # noqa: E402
from encoders.epoch_source import EpochMetadata  # noqa: E402
from encoders.epochs import SignalEpochs  # noqa: E402
from encoders.sensors import standard_layout  # noqa: E402
from encoders.store import EpochStore  # noqa: E402
from encoders.store_build import build_store  # noqa: E402

N_CONCEPTS, PER_CONCEPT, N_TEST, WIDTH, PEOPLE = 60, 2, 200, 16, 2
SAVER = """
import sys, torch
from pathlib import Path
from alignment.checkpoint import save_checkpoint
step = int(sys.argv[2])
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), step, {"a": torch.full((200_000,), float(step))}, {})
    print(step, flush=True)
"""


@dataclass(frozen=True)
class Figure:
    """One line of the result."""

    goal: str
    said: str
    passed: bool


def pictures() -> TargetTable:
    generator = np.random.default_rng(0)
    images = [f"c{c:02d}/c{c:02d}_{p}.jpg" for c in range(N_CONCEPTS) for p in range(PER_CONCEPT)]
    images += [f"t{c:03d}/t{c:03d}_0.jpg" for c in range(N_TEST)]
    embeds = 3 * (2 + generator.standard_normal((len(images), WIDTH))).astype(np.float32)
    digests = tuple(f"{i:064x}" for i in range(len(images)))
    return TargetTable(tuple(images), tuple(one.split("/")[0] for one in images), digests, embeds, "soak")


@dataclass(frozen=True)
class Person:
    """Planted responses of one person: training pictures twice, test pictures four times."""

    subject: int

    @property
    def name(self) -> str:
        return f"sim-{self.subject + 1:02d}"

    @property
    def inputs(self) -> list[str]:
        return []

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        table, sensors = pictures(), standard_layout("things_eeg2_63")
        generator = np.random.default_rng(self.subject)
        mixing = generator.standard_normal((WIDTH, sensors.n_channels, 3)) / WIDTH**0.5
        courses = np.array([np.convolve(one, np.hanning(9), "same") for one in generator.standard_normal((3, 80))])
        for split, n in (("train", 2), ("test", 4)):
            rows = np.repeat([i for i, one in enumerate(table.images) if (one[0] == "t") == (split == "test")], n)
            data = np.einsum("nd,dck,kt->nct", table.embeds[rows] / 3 - 2, mixing, courses, optimize=True)
            data = 1e-5 * (data + 0.3 * generator.standard_normal(data.shape))
            epochs = SignalEpochs(
                data=data.astype(np.float32), sfreq=100.0, tmin=-0.1, ch_names=sensors.ch_names,
                ch_types=sensors.ch_types, positions=sensors.positions, subject=self.name,
            )  # fmt: skip
            images = tuple(table.images[row] for row in rows)
            yield (
                epochs,
                EpochMetadata(
                    image=images, concept=tuple(one.split("/")[0] for one in images), split=(split,) * len(rows),
                    session=("1",) * len(rows), run=("",) * len(rows),
                    repetition=tuple(i % n for i in range(len(rows))),
                ),
            )  # fmt: skip


@dataclass(frozen=True)
class People:
    """The source of the store."""

    dataset: str = "soak"

    def parts(self) -> list[Person]:
        return [Person(subject) for subject in range(PEOPLE)]


def laboratory(folder: Path, n_steps: int) -> TrainConfig:
    """Write store, targets, prepared data and config."""
    write_target_table(folder / "targets.safetensors", pictures())
    build_store(People(), folder / "eeg.store")
    encoder = {
        "name": "brain_module", "n_virtual": 16, "width": 16, "fourier_width": 32, "n_convs": 0, "init": "linear",
        "head_width": 0, "time_agg": "linear", "n_time_weights": 8,
    }  # fmt: skip
    settings = {
        "targets": str(folder / "targets.safetensors"),
        "modalities": {"eeg": {"layout": "recorded", "encoder": encoder}},
        "data": {"name": "recorded", "stores": {"eeg": str(folder / "eeg.store")}, "folder": str(folder / "prepared"),
                 "n_val_concepts": 10, "n_fit_epochs": 100},
        "fusion": {"name": "single"}, "batch_size": 40, "threads": 1,
        "fit": {"max_steps": n_steps, "lr": 0.005, "ema_decay": 0.99, "validate_every": 50, "checkpoint_every": 5,
                "log_every": 1},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    config = TrainConfig.model_validate(settings)
    prepare(config)
    return config


def start(folder: Path, run_dir: Path, processes: int) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    several = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "deploy/accelerate/cpu2.yaml")]
    command = [sys.executable, *([*several, "--main_process_port", port] if processes == 2 else [])]
    command += ["-m", "alignment.train", "--config", str(folder / "config.yaml"), "--run-dir", str(run_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)


def losses(run_dir: Path) -> dict[int, float]:
    path, found = run_dir / "log.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            numbers = json.loads(line)
        except ValueError:  # the last line of a killed run
            continue
        if "loss" in numbers:
            found[numbers["step"]] = numbers["loss"]
    return found


def killed_runs(folder: Path, n_steps: int, n_kills: int, processes: int) -> Figure:
    """T1: a run killed at random steps has the losses and the weights of one that was left alone."""
    whole, killed = folder / f"whole-{processes}", folder / f"killed-{processes}"
    assert start(folder, whole, processes).wait() == 0
    draw, n, lost = random.Random(processes), 0, 0
    while n < n_kills:
        process, before = start(folder, killed, processes), max(losses(killed), default=0)
        goal = min(before + draw.randint(1, 2 * n_steps // n_kills), n_steps - 1)
        while process.poll() is None and (max(losses(killed), default=0) < goal):
            time.sleep(0.005)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        n += 1
        found = load_checkpoint(killed / "checkpoints")
        lost = max(lost, max(losses(killed), default=0) - (0 if found is None else found.step))
    done = start(folder, killed, processes).wait() == 0
    same = losses(whole) == losses(killed)
    ends = [load_checkpoint(one / "checkpoints") for one in (whole, killed)]
    assert ends[0] is not None and ends[1] is not None
    equal = all(torch.equal(value, ends[1].tensors[name]) for name, value in ends[0].tensors.items())
    said = f"{processes} process(es), {n} kills: losses {'bit-equal' if same else 'DIFFER'}, weights "
    said += f"{'bit-equal' if equal else 'DIFFER'}, at most {lost} steps repeated"
    return Figure("T1", said, done and same and equal and n > 0)


def killed_saves(folder: Path, n_kills: int) -> Figure:
    """T2: a kill during a save leaves the checkpoint before it."""
    step, draw, bad = 0, random.Random(0), 0
    for _ in range(n_kills):
        command = [sys.executable, "-c", SAVER, str(folder / "saves"), str(step)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            done = int(process.stdout.readline())
            time.sleep(draw.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in process.stdout.read().split())])
        found = load_checkpoint(folder / "saves")
        bad += found is None or found.step < done or bool((found.tensors["a"] != found.step).any())
        step = done if found is None else found.step
    return Figure("T2", f"{n_kills} kills during saves: {bad} without a sound newest checkpoint", bad == 0)


def poisoned_batches(folder: Path) -> Figure:
    """T3: single non-finite batches are skipped, three in a row stop the run, and no weight is ever spoilt."""

    def train(poisoned: set[int], run_dir: Path) -> tuple[nn.Module, int, bool]:
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

        def batch_at(step: int, rank: int, world: int) -> torch.Tensor:
            batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            return batch * math.nan if step in poisoned else batch

        config = FitConfig(max_steps=200, checkpoint_every=10)
        runtime = Runtime(device="cpu", threads=1)
        try:
            result = fit(
                module, lambda m, b: m(b).square().mean(), batch_at, config, runtime, run_dir, progress=False
            )  # fmt: skip
        except FloatingPointError:
            return module, 0, True
        return module, result.n_skipped, False

    draw = random.Random(0)
    single = {2 * step for step in draw.sample(range(100), 40)}
    module, n_skipped, stopped = train(single, folder / "nan-single")
    row, _, row_stopped = train({50, 51, 52}, folder / "nan-row")
    finite = all(value.isfinite().all() for one in (module, row) for value in one.state_dict().values())
    saved = load_checkpoint(folder / "nan-row" / "checkpoints")
    sound = saved is not None and all(value.isfinite().all() for value in saved.tensors.values())
    said = f"40 single NaN batches: {n_skipped} skipped; 3 in a row: {'stopped' if row_stopped else 'NOT stopped'}; "
    said += f"weights {'finite' if finite and sound else 'SPOILT'}"
    return Figure("T3", said, n_skipped == 40 and not stopped and row_stopped and finite and sound)


def flipped_bytes(folder: Path, config: TrainConfig, n_each: int) -> Figure:
    """T4: one flipped byte is refused with the name of its file."""

    def read_store() -> None:
        store = EpochStore.open(folder / "eeg.store")
        store.read(range(len(store.metadata)))

    def read_prepared() -> None:
        training = BrainTraining(config, Runtime(threads=1))
        for step in range(8):
            training.batch_at(step, 0, 1)
        training.validate(training.module)

    def read_checkpoint() -> None:
        load_checkpoint(folder / "flipped")

    shutil.copytree(sorted((folder / "whole-1" / "checkpoints").glob("step-*"))[-1], folder / "flipped/step-00000001")
    files: list[tuple[Path, Callable[[], None]]] = []
    files += [(one, read_store) for one in sorted((folder / "eeg.store").glob("shards/*.npy"))]
    files += [(one, read_prepared) for one in sorted((folder / "prepared").glob("*/shards/*.npy"))]
    files += [(folder / "eeg.store" / name, read_store) for name in ("store.json", "epochs.parquet")]
    files += [(one, read_prepared) for one in sorted((folder / "prepared").glob("*/*.*"))]
    files += [(one, read_checkpoint) for one in sorted((folder / "flipped").glob("step-*/*.*"))]
    draw, missed = random.Random(0), []
    for path, read in files:
        for _ in range(n_each):
            whole = path.read_bytes()
            place = draw.randrange(len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
            try:
                read()
                missed.append(f"{path.name}@{place} was read")
            except ValueError as error:
                if path.name not in str(error):
                    missed.append(f"{path.name}@{place} is not named by {error}")
            path.write_bytes(whole)
    said = f"{len(files) * n_each} flipped bits in {len(files)} files: {len(missed)} not named {missed[:3]}"
    return Figure("T4", said, not missed)


def permuted_labels(folder: Path, config: TrainConfig, n_runs: int) -> list[Figure]:
    """T6: with permuted picture labels an unseen picture is found at chance; with the right ones it is not."""
    store, table = EpochStore.open(folder / "eeg.store"), pictures()
    columns = {name: np.array(store.metadata[name].to_pylist()) for name in ("subject", "split", "image")}
    short = config.model_copy(update={"fit": config.fit.model_copy(update={"max_steps": 150})})

    def hits(seed: int | None) -> int:
        runtime = Runtime(threads=1, seed=seed or 0)
        study = record_study(short, runtime)
        if seed is not None:
            assert isinstance(study.train, JoinedPairs)
            order = np.random.default_rng(seed).permutation(len(study.train_embeds))
            parts = {name: replace(one, target=order[one.target]) for name, one in study.train.parts.items()}
            study = replace(study, train=JoinedPairs(parts))
        training = BrainTraining(short, runtime, study)
        run_dir = folder / f"permuted-{seed}"
        result = fit(
            training.module, training.loss, training.batch_at, short.fit, runtime, run_dir, training.validate,
            progress=False,
        )  # fmt: skip
        model, found = training.export(result.weights), 0
        for subject in sorted(set(columns["subject"])):
            rows = np.flatnonzero((columns["subject"] == subject) & (columns["split"] == "test"))
            epochs = store.epochs(rows)
            answer = model.embed([epochs], average=True)
            shown = table.index(epochs.average_repetitions().stimulus)
            gallery = table.embeds[-N_TEST:]
            best = (
                model.similarity(answer.brain_embeds, gallery, answer.report.modalities).argmax(axis=1)
                + len(table.images)
                - N_TEST
            )
            found += int((best == shown).sum())
        return found

    n = N_TEST * PEOPLE
    counts = [hits(seed) for seed in range(1, n_runs + 1)]
    low, high = binom.interval(0.95, n * n_runs, 1 / N_TEST)
    total, control = sum(counts), hits(None)
    said = f"{n_runs} permuted runs: {total} of {n * n_runs} found, {100 * total / n / n_runs:.2f} % (95 % of chance: "
    said += f"{100 * low / n / n_runs:.2f} to {100 * high / n / n_runs:.2f} %)"
    return [
        Figure("T6", said, low <= total <= high),
        Figure("T6", f"control with the right labels: {control} of {n} found", control > 20),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder, emptied first if a soak made it")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out / "work"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    n_steps, n_kills, n_saves, n_runs = (30, 2, 3, 1) if arguments.quick else (400, 20, 50, 10)
    config = laboratory(out, n_steps)
    figures: list[Figure] = []

    def note(*some: Figure) -> None:
        for one in some:
            figures.append(replace(one, passed=bool(one.passed)))
            print(f"{one.goal}  {'pass' if one.passed else 'MISSED'}  {one.said}", flush=True)

    for processes in (1, 2):
        note(killed_runs(out, n_steps, n_kills, processes))
    note(killed_saves(out, n_saves), poisoned_batches(out), flipped_bytes(out, config, 1 if arguments.quick else 10))
    note(*permuted_labels(out, config, n_runs))
    (arguments.out / "soak.json").write_text(json.dumps([vars(one) for one in figures], indent=1))
    sys.exit(0 if all(one.passed for one in figures) else 1)


if __name__ == "__main__":
    main()
