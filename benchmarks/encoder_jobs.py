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

# One preset per name of the union is trained, with its published or default sizes, and these:
ALSO = ("brain_module_demo", "eegnet_embed", "deep_conv_net_embed", "lf_cnn_embed", "var_cnn_embed")
SLOWEST = ("atm_50", "brain_module_image", "brain_module")
MEANT_FOR_MEG = ("brain_module_demo", "brain_module_image", "eeg_project", "lf_cnn_embed", "var_cnn_embed", "ts_conv")
YARDSTICKS = ("eeg_project", "ts_conv")
KINDS = ("mean", "max", "gated", "attention", "film", "lowrank_bilinear")
STYLES = ("albef", "bidirectional", "two_way")
FUSIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "late": (("name", "late"), ("modality_dropout", 0.0)),
    "concat": (("name", "concat"),),
    "add": (("name", "add"),),
    "half_concat": (("name", "half_concat"),),
    **{f"aggregate {kind}": (("name", "aggregate"), ("kind", kind)) for kind in KINDS},
    **{f"cross_attention {style}": (("name", "cross_attention"), ("style", style)) for style in STYLES},
}
EARLY = ("brain_module_demo", "eeg_project", "ts_conv")
N_BEST, MORE_SEEDS = 6, (1, 2)

LEARNING_RATE = 3e-3
"""For all; on validation pictures as good as 1e-3 or better for each of six encoders in runs of 20 s."""


@dataclass(frozen=True)
class Job:
    """One training: an encoder for every modality, how they are fused, and a seed."""

    title: str
    group: str
    modalities: tuple[str, ...]
    encoder: str = DEFAULT_ENCODER
    fusion: tuple[tuple[str, Any], ...] = (("name", "single"),)
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.group}-{'+'.join(self.modalities)}-{self.title.replace(' ', '_')}-{self.seed}"

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
    presets = [*ALSO, *(name for name in encoder_names() if name not in (*ALSO, *SLOWEST)), *SLOWEST]
    eeg = [Job(preset, "encoder", EEG, preset) for preset in presets]
    meg = [Job(preset, "encoder", MEG, preset) for preset in MEANT_FOR_MEG]
    repeated = [job for job in eeg if job.encoder in {*YARDSTICKS, *best_encoders(eeg, work)}]
    again = [replace(job, seed=seed) for seed in MORE_SEEDS for job in repeated]
    fused = [Job(title, "fusion", BOTH, fusion=fusion) for title, fusion in FUSIONS.items()]
    fused += [Job(f"early {encoder}", "fusion", BOTH, encoder, (("name", "early"),)) for encoder in EARLY]
    fused += [replace(job, seed=seed) for seed in MORE_SEEDS for job in fused if job.title == "late"]
    meg += [replace(job, seed=seed) for seed in MORE_SEEDS for job in meg if job.encoder == DEFAULT_ENCODER]
    return first + eeg + fused + meg + again


def best_encoders(jobs: list[Job], work: Path) -> list[str]:
    """Name the encoders with the highest validation scores; none before all of ``jobs`` are done."""
    files = {job.encoder: work / job.key / "result.json" for job in jobs}
    if not all(file.exists() for file in files.values()):
        return []
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    scores = {name: one["validation"] for name, one in results.items() if "validation" in one}
    return sorted(scores, key=lambda name: -scores[name])[:N_BEST]
