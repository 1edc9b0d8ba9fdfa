"""Score a demo bundle on pictures: scenes decoded from true embeddings, from simulated recordings and from noise.

All scenes are of test concepts, which neither CLIP, VAE, UNet nor brain encoders were trained on; the judge had no
part in training any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from alignment.calibrate import surrogates
from alignment.clip_space import open_clip_space
from alignment.pairs import read_targets
from alignment.runtime import Runtime
from alignment.train_config import TrainConfig
from encoders.epochs import SignalEpochs
from encoders.simulate import BrainSimulator
from generation.bundle import Bundle
from generation.pipeline import ReconstructionPipeline
from generation.scene_judge import JudgeReport, SceneJudge
from generation.scenes import SceneFactors, render, sample_scenes

Floats = npt.NDArray[np.float32]
CALIBRATION_SEED = 11
TEST_SEED = 12
N_TRUE = 500
N_REPETITIONS = 4


@dataclass(frozen=True)
class SceneRecorder:
    """Shows pictures to the simulated people of a training run, four presentations averaged."""

    simulator: BrainSimulator
    layouts: dict[str, str]

    @classmethod
    def from_training(cls, config_file: Path, targets: Path) -> "SceneRecorder":
        """Rebuild the simulation that a run was trained on, from its ``config.yaml`` and targets."""
        return cls.from_settings(yaml.safe_load(config_file.read_text()), targets)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], targets: Path) -> "SceneRecorder":
        """Rebuild the simulation from the settings of a training run, as a bundle's manifest holds them."""
        config = TrainConfig.model_validate(settings | {"targets": targets})
        train = read_targets(targets)["train"]
        simulator = BrainSimulator(config.simulation, train.embeds.shape[1], train.embeds, train.concepts)
        return cls(simulator, {name: one.layout for name, one in config.modalities.items()})

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Every modality alone and, if there are several, all together."""
        names = tuple(self.layouts)
        return [(name,) for name in names] + ([names] if len(names) > 1 else [])

    def record(
        self,
        image_embeds: Floats,
        modalities: Sequence[str],
        *,
        seed: int,
        subject: int = 0,
        n_repetitions: int = N_REPETITIONS,
        stimulus: Sequence[str] = (),
    ) -> list[SignalEpochs]:
        """Record pictures, (n, d) raw embeddings, with one ``SignalEpochs`` of n averaged epochs per modality."""
        names = list(stimulus) or [str(row) for row in range(len(image_embeds))]
        return [
            self.simulator.record(
                image_embeds, modality=name, layout=self.layouts[name], subject=subject, n_repetitions=n_repetitions,
                seed=seed, stimulus=names,
            ).average_repetitions()
            for name in modalities
        ]  # fmt: skip


def interval(share: float, n: int) -> list[float]:
    """95 % Wilson interval of a share of n."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round(float(centre - half), 4), round(float(centre + half), 4)]


def score_bundle(bundle: Bundle, judge: SceneJudge, recorder: SceneRecorder, runtime: Runtime) -> dict[str, Any]:
    """Judge pictures of test scenes and return a JSON table.

    Rows: the judge on true scenes (its ceiling), pictures from true embeddings (n = 500), from recordings of the 200
    gallery scenes for each combination of modalities (4 presentations averaged), and from white-noise recordings.
    """
    pipeline = ReconstructionPipeline(bundle, runtime)
    factors = sample_scenes("test", N_TRUE, seed=TEST_SEED)
    images = render(factors)
    true_embeds = open_clip_space(bundle.clip_folder, runtime).encode_images(images)
    table = {
        "judge_on_true_scenes": _row(judge.judge(images, factors)),
        "true_embeddings": _row(judge.judge(pipeline.generate(true_embeds, noise_level=0)[:, 0], factors)),
    }
    gallery = pipeline.gallery
    shown = sample_scenes("test", 2000, seed=0).take(np.arange(len(gallery.names)))
    if not np.array_equal(render(shown), gallery.thumbs):
        raise ValueError("the gallery is not the first scenes of the test set; build the bundle again")
    for names in recorder.combinations:
        recordings = recorder.record(gallery.image_embeds, names, seed=TEST_SEED)
        noise = [surrogates(part, "white", TEST_SEED) for part in recordings]
        table["+".join(names)] = _recorded(pipeline, judge, recordings, shown)
        table[f"noise_{'+'.join(names)}"] = _recorded(pipeline, judge, noise, shown)
    return table


def _recorded(
    pipeline: ReconstructionPipeline, judge: SceneJudge, recordings: Sequence[SignalEpochs], shown: SceneFactors
) -> dict[str, Any]:
    made = pipeline(list(recordings))
    row = _row(judge.judge(made.images[:, 0], shown))
    row["n_averaged"] = int(made.embedding.n_averaged[0])
    row["mean_confidence"] = round(float(made.embedding.confidence.mean()), 4)
    first = np.array([found[0].index for found in made.embedding.neighbours])
    top_1 = float((first == np.arange(len(first))).mean())
    row["gallery_top_1"] = {"value": top_1, "interval": interval(top_1, len(first)), "chance": 1 / len(first)}
    return row


def _row(report: JudgeReport) -> dict[str, Any]:
    row: dict[str, Any] = {"n": report.n, "position_error_px": round(report.position_error, 2)}
    for name, share in report.accuracy.items():
        chance = round(report.chance[name], 4)
        row[name] = {"value": round(share, 4), "interval": interval(share, report.n), "chance": chance}
    return row
