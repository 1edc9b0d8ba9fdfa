"""What `encoder_table.py` trains: a list of jobs, the later ones chosen by the validation scores of the earlier."""

import json
from collections.abc import Sequence
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
    **{
        f"cross_attention {style}": (("name", "cross_attention"), ("style", style), ("width", 64), ("heads", 4))
        for style in STYLES
    },
}
LONG_TITLE = "ts_conv with 790 steps"
# Title, encoder, changes. One network for all channels has to hold as many virtual channels as two networks for some;
# with 64 it was 9 and 4 points below them in the slow test of early fusion. The dense layer over 337 channels overfits:
# with the usual dropout it was 4 points below the encoder of MEG alone, on validation pictures 0.7 was better.
EARLY: tuple[tuple[str, str, tuple[tuple[str, Any], ...]], ...] = (
    ("early brain_module_demo twice as wide", "brain_module_demo", (("n_virtual", 128), ("width", 128))),
    ("early eeg_project with dropout 0.7", "eeg_project", (("dropout", 0.7),)),
    ("early ts_conv", "ts_conv", ()),
    (f"early {LONG_TITLE}", "ts_conv", ()),
)
WITHOUT_LEARNING = ("scores averaged", "ranks averaged", "embeddings averaged", "canonical correlation")
N_BEST, MORE_SEEDS = 6, (1, 2)


@dataclass(frozen=True)
class Budget:
    """What one job may use: optimizer steps, processor seconds for them, epochs per step, and the learning rate.

    The default learning rate was on validation pictures as good as 1e-3 or better for each of six encoders in 20 s.
    """

    steps: int = 1000
    seconds: float = 200.0
    batch_size: int = 256
    lr: float = 3e-3


# In 200 s the published sizes of the brain module get 27 and 57 steps, which teach it nothing; so once more with the
# published learning rate, smaller batches, and time.
PATIENT = Budget(steps=4000, seconds=1800.0, batch_size=64, lr=3e-4)
NEEDS_PATIENCE = ("brain_module_image", "brain_module")
# Attention between 2 x 64 tokens takes some times as long as both encoders, and one network for all channels sees every
# epoch three times; with fewer steps than an encoder trained alone they could not be compared with one.
TOKENS = Budget(seconds=1500.0)
# 290 steps of ts_conv for all channels fit into that, 128 for MEG alone into 200 s. So both, and EEG alone, got steps
# instead of seconds, as many as EEG alone has in 200 s on a quiet machine.
LONG = Budget(steps=790, seconds=8000.0)

GATE = 0.15
"""Least top-5 of averaged epochs that an available encoder should reach (chance 0.025)."""
WHY_BELOW = {
    "var_cnn_embed": "its biases and maxima, learned on single presentations, do not fit averages, whose noise is half "
    "as strong: the same averages of MEG, three times as strong, reached 0.27 instead of 0.15 with the same weights",
    "shallow_conv_net": "it squares and averages before anything else, so it sees power, and these responses are "
    "phase-locked: their power hardly depends on the picture. It is meant for oscillations",
    "brain_module with patience": "1,050 steps of 64 did not teach ten deep convolutions anything here either",
    "brain_module": "27 steps fit into 200 s on one CPU thread; see the row with patience",
    "brain_module_image": "57 steps fit into 200 s on one CPU thread; see the row with patience",
}


@dataclass(frozen=True)
class Job:
    """One training: an encoder for every modality, how they are fused, a seed, and what it may cost."""

    title: str
    group: str
    modalities: tuple[str, ...]
    encoder: str = DEFAULT_ENCODER
    fusion: tuple[tuple[str, Any], ...] = (("name", "single"),)
    seed: int = 0
    budget: Budget = Budget()
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.group}-{'+'.join(self.modalities)}-{self.title.replace(' ', '_')}-{self.seed}"

    def settings(self, base: dict[str, Any]) -> dict[str, Any]:
        """Give what changes in the settings of the config file; people's layers are used where there are any."""
        config = PRESETS[self.encoder]
        if "subject_layers" in type(config).model_fields:
            config = config.model_copy(update={"subject_layers": True})
        encoder = config.model_dump(mode="json") | dict(self.changes)
        modalities = {name: {**base["modalities"][name], "encoder": encoder} for name in self.modalities}
        chosen = {"modalities": modalities, "fusion": dict(self.fusion), "seed": self.seed}
        return chosen | {"batch_size": self.budget.batch_size}


def all_jobs(work: Path) -> list[Job]:
    """List every job; more seeds for the yardsticks, and for the best encoders once the first seed of all is done."""
    first = [Job("yardsticks", "yardsticks", BOTH)]
    presets = [*ALSO, *(name for name in encoder_names() if name not in (*ALSO, *SLOWEST)), *SLOWEST]
    eeg = [Job(preset, "encoder", EEG, preset) for preset in presets]
    meg = [Job(preset, "encoder", MEG, preset) for preset in MEANT_FOR_MEG]
    repeated = [job for job in eeg if job.encoder in {*YARDSTICKS, DEFAULT_ENCODER, *best_encoders(eeg, work)}]
    again = [replace(job, seed=seed) for seed in MORE_SEEDS for job in repeated]
    fused = [
        Job(title, "fusion", BOTH, fusion=fusion, budget=TOKENS if title.startswith("cross") else Budget())
        for title, fusion in FUSIONS.items()
    ]
    fused += [
        Job(title, "fusion", BOTH, encoder, (("name", "early"),), 0, LONG if LONG_TITLE in title else TOKENS, changes)
        for title, encoder, changes in EARLY
    ]
    fused += [replace(job, seed=seed) for seed in MORE_SEEDS for job in fused if job.title == "late"]
    meg += [replace(job, seed=seed) for seed in MORE_SEEDS for job in meg if job.encoder == DEFAULT_ENCODER]
    long = [Job(LONG_TITLE, "encoder", modalities, "ts_conv", budget=LONG) for modalities in (EEG, MEG)]
    fixed = [Job(title, "without learning", BOTH) for title in WITHOUT_LEARNING]
    patient = [Job(f"{name} with patience", "encoder", EEG, name, budget=PATIENT) for name in NEEDS_PATIENCE]
    return first + eeg + fused + meg + again + fixed + patient + long


def fusion_jobs(jobs: Sequence[Job]) -> list[Job]:
    """List what the two tables of fusions need: yardsticks, fusions, and the same encoders alone from the same seeds.

    The long jobs come last.
    """
    fused = [job for job in jobs if job.group == "fusion"]
    wanted = {(job.encoder, job.seed, compared_budget(job)) for job in fused}
    alone = [job for job in jobs if job.group == "encoder" and (job.encoder, job.seed, job.budget) in wanted]
    rest = [job for job in jobs if job.group in ("yardsticks", "without learning")]
    return sorted([*rest[:1], *alone, *fused, *rest[1:]], key=lambda job: job.budget.seconds)


def compared_budget(fused: Job) -> Budget:
    """Say which budget the encoders alone had that a fusion is compared with."""
    return LONG if fused.budget == LONG else Budget()


def best_encoders(jobs: list[Job], work: Path) -> list[str]:
    """Name the encoders with the highest validation scores; none before all of ``jobs`` are done."""
    files = {job.encoder: work / job.key / "result.json" for job in jobs}
    if not all(file.exists() for file in files.values()):
        return []
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    scores = {name: one["validation"] for name, one in results.items() if "validation" in one}
    return sorted(scores, key=lambda name: -scores[name])[:N_BEST]
