"""Merge an EEG and a MEG encoder by their weights on the simulated study, with negative controls.

    python benchmarks/merging_table.py [--steps N]

Experts are BrainModules with two convolutions. Those that share a seed continue from one network (trained on EEG for
the first half of the steps); the controls were trained from unrelated random numbers. What stands behind the sensors'
stem is merged, each modality keeps its stem, and nothing is trained afterwards. The learned map on the picture's side
is off, since two experts would have two. Writes its part of ``BENCHMARKS.md``. About 15 minutes on one core.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.brain_training import BrainTraining  # noqa: E402
from alignment.fit import fit  # noqa: E402
from alignment.retrieval import RetrievalReport, report_similarity  # noqa: E402
from alignment.runtime import Runtime  # noqa: E402
from benchmarks.encoder_jobs import Budget  # noqa: E402
from benchmarks.encoder_laboratory import Laboratory  # noqa: E402
from benchmarks.report_file import write_section  # noqa: E402
from encoders.build import PRESETS  # noqa: E402
from encoders.merging import collect_gram, interpolate, modality_arithmetic, regmean, weight_distance  # noqa: E402
from encoders.shared_trunk import BRAIN_MODULE_STEM  # noqa: E402
from encoders.weight_parts import outside  # noqa: E402

MODALITIES = ("eeg", "meg")
N_GRAM_BATCHES, BATCH = 8, 256
ARITHMETIC_SCALE = 0.75
State = Mapping[str, Tensor]


class Bench:
    """Recordings of both modalities; trains and tests one network at a time."""

    def __init__(self, n_steps: int) -> None:
        runtime = Runtime(threads=1)
        self.n_steps = n_steps
        self.laboratories = {name: Laboratory((name,), runtime) for name in MODALITIES}

    def training(self, modality: str, seed: int) -> BrainTraining:
        laboratory = self.laboratories[modality]
        config = PRESETS["brain_module_demo"].model_copy(update={"n_convs": 2}).model_dump(mode="json")
        place = {**laboratory.settings["modalities"][modality], "encoder": config}
        loss = {**laboratory.settings["loss"], "image_map": False}
        changes = {"modalities": {modality: place}, "fusion": {"name": "single"}, "seed": seed, "loss": loss}
        return BrainTraining(laboratory.config(**changes), laboratory.runtime, laboratory.study)

    def expert(self, modality: str, seed: int, steps: int, start: State | None = None) -> dict[str, Tensor]:
        """Train a network for some steps and return its weights."""
        training = self.training(modality, seed)
        encoder = training.module.fusion.encoders[modality]
        if start is not None:
            encoder.load_state_dict(dict(start))
        config = training.config.fit.model_copy(
            update={"max_steps": steps, "validate_every": steps, "checkpoint_every": steps, "lr": Budget().lr}
        )
        with tempfile.TemporaryDirectory() as folder:
            fit(training.module, training.loss, training.batch_at, config, training.runtime, Path(folder))
        return {name: value.clone() for name, value in encoder.state_dict().items()}

    def gram(self, modality: str, weights: State, parts: list[str]) -> dict[str, Tensor]:
        """Collect what the trunk's layers see of training epochs."""
        training = self.training(modality, 0)
        encoder = training.module.fusion.encoders[modality].eval()
        encoder.load_state_dict(dict(weights))
        train, place = training.study.train, training.positions[modality]
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: N_GRAM_BATCHES * BATCH]
        batches = [
            (
                torch.from_numpy(train.data[modality][chunk.numpy()].astype("f")),
                place,
                torch.from_numpy(train.subject[chunk.numpy()]),
            )
            for chunk in rows.split(BATCH)
        ]
        return collect_gram(encoder, batches, parts)

    def score(self, modality: str, weights: State) -> RetrievalReport:
        """Test averaged epochs."""
        laboratory, training = self.laboratories[modality], self.training(modality, 0)
        training.module.fusion.encoders[modality].load_state_dict(dict(weights))
        pairs = next(pairs for label, pairs in laboratory.test.items() if label != "single")
        embeds = training.encode(training.module.fusion.eval(), pairs, (modality,))
        similarity = training.study.space.similarity(embeds, laboratory.test_embeds)
        return report_similarity(similarity, pairs.target)


def rows_of(bench: Bench, title: str, seed: State, experts: dict[str, dict[str, Tensor]]) -> list[str]:
    """Score two experts and every merge of them."""
    states = [experts[name] for name in MODALITIES]
    trunk = outside(states[0], BRAIN_MODULE_STEM)
    grams = [bench.gram(name, experts[name], trunk) for name in MODALITIES]
    far = weight_distance(*states, parts=trunk)
    merged = {
        "experts": None,
        "interpolation, 1/2": interpolate(*states, parts=trunk),
        f"modality arithmetic, {ARITHMETIC_SCALE}": modality_arithmetic(seed, states, ARITHMETIC_SCALE, parts=trunk),
        "RegMean": regmean(states, grams, parts=trunk),
    }
    lines = []
    for name, shared in merged.items():
        scores = [bench.score(one, {**experts[one], **(shared or {})}) for one in MODALITIES]
        figures = " | ".join(
            f"{score.top_1:.3f} [{score.interval_top_1[0]:.3f}, {score.interval_top_1[1]:.3f}]" for score in scores
        )
        lines.append(f"| {title} | {far.relative:.2f} | {name} | {figures} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="of every expert")
    steps = parser.parse_args().steps
    bench = Bench(steps)
    seed = bench.expert("eeg", 0, steps // 2)
    related = {name: bench.expert(name, 1, steps - steps // 2, seed) for name in MODALITIES}
    unrelated = {name: bench.expert(name, 10 + i, steps) for i, name in enumerate(MODALITIES)}
    rows = [*rows_of(bench, "shared seed", seed, related), *rows_of(bench, "unrelated", seed, unrelated)]
    body = [
        f"`python benchmarks/merging_table.py`: **simulated** recordings as above; {steps} steps per expert, weights "
        "behind the sensors' stem merged, no training afterwards. Averages of 4 presentations, n = 800, greedy top-1 "
        "of 200, chance 0.005; 95 % intervals over pictures; one seed. Experts from unrelated seeds are the control.",
        "",
        "| experts | weight distance | merged by | EEG | MEG |",
        "|---|---:|---|---:|---:|",
        *rows,
    ]
    write_section("Merging encoders by their weights", "\n".join(body))


if __name__ == "__main__":
    main()
