"""How fast `alignment.train` trains from prepared epochs on disk, and how long a step waits for its batch.

    python benchmarks/training_throughput.py [--quick]

Stores of noise in the shape of THINGS-EEG2 and THINGS-MEG are converted, prepared and trained on by the script that
users start, `accelerate launch -m alignment.train --profile`, with one and with two processes, with and without
threads that read ahead. Noise teaches nothing: only the times count. Writes its part of ``BENCHMARKS.md``, not with
``--quick``. Needs 2 GB of disk and about ten minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.target_table import TargetTable, write_target_table  # noqa: E402
from benchmarks.report_file import write_section  # noqa: E402
from encoders.epoch_source import EpochMetadata  # noqa: E402
from encoders.epochs import SignalEpochs  # noqa: E402
from encoders.sensors import SensorLayout, standard_layout  # noqa: E402
from encoders.store_build import build_store  # noqa: E402

WIDTH, N_PICTURES, PER_CONCEPT, N_TEST = 1024, 4096, 8, 64
POSTERIOR = "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2".split()
EEG = {"sfreq": 250.0, "n_times": 250, "h_freq": 100.0, "reference": "none", "baseline": None}
MEG = {"sfreq": 200.0, "n_times": 201, "h_freq": 40.0, "baseline": None}
# By modality: sensors, preprocessing, and the standard deviation of the noise in volt or tesla.
KINDS: dict[str, tuple[SensorLayout, dict[str, Any], float]] = {
    "eeg": (standard_layout("things_eeg2_63"), EEG, 1e-5),
    "meg": (standard_layout("ctf275"), MEG, 1e-13),
}


@dataclass(frozen=True)
class Case:
    """One training: what is read, what learns, and how it is run."""

    modality: str
    encoder: str
    batch_size: int
    n_processes: int = 1
    n_workers: int = 0
    channels: tuple[str, ...] = ()


CASES = (
    Case("eeg", "eeg_project", 1024, channels=tuple(POSTERIOR)),
    Case("eeg", "eeg_project", 1024, n_workers=2, channels=tuple(POSTERIOR)),
    Case("eeg", "eeg_project", 1024),
    Case("eeg", "eeg_project", 1024, n_workers=2),
    Case("eeg", "eeg_project", 1024, n_processes=2),
    Case("eeg", "brain_module_demo", 1024),
    Case("eeg", "brain_module_demo", 1024, n_processes=2),
    Case("eeg", "ts_conv", 256),
    Case("eeg", "ts_conv", 256, n_processes=2),
    Case("meg", "eeg_project", 1024),
    Case("meg", "eeg_project", 1024, n_workers=2),
)


def picture(row: int) -> str:
    return f"c{row // PER_CONCEPT:04d}/p{row:05d}.jpg"


@dataclass(frozen=True)
class NoisePart:
    """Every picture once, to one person."""

    modality: str
    index: int

    @property
    def name(self) -> str:
        return f"sim-{self.index:02d}"

    @property
    def inputs(self) -> list[str]:
        return []

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        layout, window, scale = KINDS[self.modality]
        generator = np.random.default_rng(self.index)
        for first in range(0, N_PICTURES, 512):
            shape = (512, layout.n_channels, window["n_times"])
            data = scale * generator.standard_normal(shape, np.float32)
            images = tuple(picture(row) for row in range(first, first + 512))
            yield (
                SignalEpochs(
                    data, window["sfreq"], 0.0, layout.ch_names, layout.ch_types, layout.positions, stimulus=images,
                    subject=self.name,
                ),
                EpochMetadata(
                    image=images,
                    concept=tuple(one.split("/")[0] for one in images),
                    split=tuple("test" if row >= N_PICTURES - N_TEST else "train" for row in range(first, first + 512)),
                    session=("1",) * 512,
                    run=("",) * 512,
                    repetition=(0,) * 512,
                ),
            )  # fmt: skip


@dataclass(frozen=True)
class NoiseSource:
    """Noise of several people."""

    modality: str
    n_people: int
    dataset: str = "noise"

    def parts(self) -> list[NoisePart]:
        return [NoisePart(self.modality, index) for index in range(self.n_people)]


def write_targets(path: Path) -> None:
    images = tuple(picture(row) for row in range(N_PICTURES))
    embeds = np.random.default_rng(0).standard_normal((N_PICTURES, WIDTH), np.float32)
    digests = tuple(f"{row:064x}" for row in range(N_PICTURES))
    write_target_table(path, TargetTable(images, tuple(one.split("/")[0] for one in images), digests, embeds, "noise"))


def settings(case: Case, folder: Path, seconds: float) -> dict[str, Any]:
    """Give the config of a case."""
    modality = {"layout": "recorded", "encoder": case.encoder, "preprocess": KINDS[case.modality][1]}
    return {
        "targets": str(folder / "targets.safetensors"),
        "modalities": {case.modality: {**modality, "channels": list(case.channels)}},
        "data": {
            "name": "recorded", "stores": {case.modality: str(folder / f"{case.modality}.store")},
            "folder": str(folder / "prepared"), "n_val_concepts": 8,
        },
        "fusion": {"name": "single"},
        "loss": {"name": "info_nce"},
        "fit": {
            "max_steps": 100_000, "max_seconds": seconds, "validate_every": 100_000, "checkpoint_every": 100_000,
            "schedule": "constant",
        },
        "batch_size": case.batch_size,
        "threads": 1,
    }  # fmt: skip


def run(command: list[str]) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(case: Case, number: int, folder: Path, seconds: float) -> dict[str, float]:
    """Prepare, train and return the times of a step."""
    config, run_dir = folder / f"{number}.yaml", folder / f"run-{number}"
    config.write_text(yaml.safe_dump(settings(case, folder, seconds)))
    run([sys.executable, "-m", "serving.cli", "prepare", "--config", str(config)])
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if case.n_processes == 2:
        launcher += ["--config_file", "deploy/accelerate/cpu2.yaml"]
    else:
        launcher += ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    run([*launcher, "-m", "alignment.train", "--config", str(config), "--run-dir", str(run_dir), "--profile",
         "--workers", str(case.n_workers)])  # fmt: skip
    times: dict[str, float] = json.loads((run_dir / "report.json").read_text())["step_seconds"]
    return times


def row(case: Case, times: dict[str, float]) -> str:
    layout, window, _ = KINDS[case.modality]
    channels, n_times = len(case.channels) or layout.n_channels, window["n_times"]
    step = times["median_wait"] + times["median_compute"]
    return (
        f"| {case.encoder} | {case.modality.upper()} {channels} x {n_times} | {case.batch_size} | {case.n_processes} | "
        f"{case.n_workers} | {case.batch_size / step:,.0f} | {1000 * step:.0f} | {times['wait_share']:.1%} | "
        f"{times['n_steps']:.0f} |"
    )


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases, few steps, BENCHMARKS.md untouched")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_targets(folder / "targets.safetensors")
        for modality, n_people in (("eeg", 4), ("meg", 1)):
            build_store(NoiseSource(modality, n_people), folder / f"{modality}.store")
        for number, case in enumerate(CASES[2:4] if arguments.quick else CASES):
            lines.append(row(case, measure(case, number, folder, 5 if arguments.quick else 25)))
            print(lines[-1], flush=True)
    body = (
        "`python benchmarks/training_throughput.py`: `alignment.train --profile` from prepared float16 epochs on disk, "
        f"page cache warm, InfoNCE against {WIDTH} numbers, AdamW, float32, one CPU thread a process "
        f"({os.cpu_count()} cores), medians over the steps of 25 s. Waiting is the share of the "
        "time in which a step had no batch; threads read "
        "ahead. Epochs are noise in the shape of THINGS-EEG2 and THINGS-MEG; two processes share each batch and gather "
        "all negatives.\n\n"
        "| encoder | epochs | batch | processes | threads | epochs/s | step, ms | waiting | steps |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|\n" + "\n".join(lines)
    )
    if arguments.quick:
        print(body)
    else:
        write_section("Training throughput", body)


if __name__ == "__main__":
    main()
