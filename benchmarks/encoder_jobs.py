"""What `encoder_table.py` trains: a list of jobs, the later ones chosen by the validation scores of the earlier."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encoders.build import PRESETS
from encoders.catalogue import encoder_names

EEG, MEG, BOTH = ("eeg",), ("meg",), ("eeg", "meg")
LAYOUT_NAMES = {EEG: "EEG, 63 channels", MEG: "MEG, 274 channels", BOTH: "EEG and MEG"}
DEFAULT_ENCODER = "brain_module_demo"

# One preset per name of the union is trained: the published sizes unless a variant for short, small data is named here.
BENCHMARKED = {name: name for name in encoder_names()}
ALSO = ("brain_module_demo", "brain_module_image")
MEANT_FOR_MEG = ("brain_module_demo", "brain_module_image", "eeg_project", "ts_conv")
YARDSTICKS = ("eeg_project", "ts_conv")
N_BEST, MORE_SEEDS = 6, (1, 2)

LEARNING_RATE = 1e-3
LEARNING_RATES = {"brain_module_demo": 3e-3}
"""Where another rate was better on validation pictures in runs of a quarter of the budget."""


@dataclass(frozen=True)
class Job:
    """One training: an encoder for every modality, how they are fused, and a seed."""

    title: str
    group: str
    modalities: tuple[str, ...]
    encoder: str = DEFAULT_ENCODER
    fusion: tuple[tuple[str, Any], ...] = (("modality_dropout", 0.0),)
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.group}-{'+'.join(self.modalities)}-{self.title.replace(' ', '_')}-{self.seed}"

    @property
    def lr(self) -> float:
        return LEARNING_RATES.get(self.encoder, LEARNING_RATE)

    def settings(self, base: dict[str, Any]) -> dict[str, Any]:
        """Give what changes in the settings of the config file; people's layers are used where there are any."""
        config = PRESETS[self.encoder]
        if "subject_layers" in type(config).model_fields:
            config = config.model_copy(update={"subject_layers": True})
        encoder = config.model_dump(mode="json")
        modalities = {name: {**base["modalities"][name], "encoder": encoder} for name in self.modalities}
        return {"modalities": modalities, "fusion": dict(self.fusion), "seed": self.seed}


def all_jobs(work: Path) -> list[Job]:
    """List every job; more seeds for the yardsticks, and for the best encoders once the first seed of all is done."""
    first = [Job("yardsticks", "yardsticks", BOTH)]
    presets = [*BENCHMARKED.values(), *(name for name in ALSO if name not in BENCHMARKED.values())]
    eeg = [Job(preset, "encoder", EEG, preset) for preset in presets]
    meg = [Job(preset, "encoder", MEG, preset) for preset in MEANT_FOR_MEG]
    repeated = [job for job in eeg if job.encoder in {*YARDSTICKS, *best_encoders(eeg, work)}]
    again = [replace(job, seed=seed) for seed in MORE_SEEDS for job in repeated]
    return first + eeg + meg + again


def best_encoders(jobs: list[Job], work: Path) -> list[str]:
    """Name the encoders with the highest validation scores; none before all of ``jobs`` are done."""
    files = {job.encoder: work / job.key / "result.json" for job in jobs}
    if not all(file.exists() for file in files.values()):
        return []
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    scores = {name: one["validation"] for name, one in results.items() if "validation" in one}
    return sorted(scores, key=lambda name: -scores[name])[:N_BEST]
