"""Train the gated student of two networks, halve it, and train it on: the whole of merging by channels.

Both halves run through `fit`. The gates need larger steps than weights; as there is one learning rate, build the
student with ``gate_speed`` (`encoders.gated_merging.HardConcrete`): under AdamW a location then moves that many times
as far per step as a weight. 20 suits runs of a few hundred steps at a learning rate of 2e-3. (The publication uses SGD
with 0.1 for weights and 0.2 for gates, 100 epochs for each half.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from alignment.fit import BatchAt, FitConfig, FitResult, LossFn, fit
from alignment.runtime import Runtime
from alignment.training_state import Validate
from encoders.gated_merging import GatedStudent, half_open_weight


class MergeTrainingConfig(BaseModel):
    """Settings of both halves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gated: FitConfig
    finetune: FitConfig
    steps_per_epoch: int = Field(gt=0, description="the pull to half-open gates grows once per epoch")
    alpha_start: float = Field(default=0.05, gt=0)
    alpha_growth: float = Field(default=0.05, ge=0)


@dataclass(frozen=True)
class MergeResult:
    """The merged network, the mean P(gate != 0) of each space before halving, and how both halves of training ended."""

    network: nn.Module
    open_share: dict[str, float]
    gated: FitResult
    finetuned: FitResult


def train_merged(
    student: GatedStudent,
    loss_fn: LossFn,
    batch_at: BatchAt,
    config: MergeTrainingConfig,
    runtime: Runtime,
    run_dir: Path,
    validate: Validate | None = None,
    *,
    progress: bool = True,
) -> MergeResult:
    """Train weights and gates, keep the better half of the channels, fine-tune; a killed run continues.

    Parameters
    ----------
    student : GatedStudent
        Trained in place.
    loss_fn, batch_at, validate
        As in `fit`; the module is the student at first and the halved network later, called alike. ``validate`` is
        used in fine-tuning only: before, the gates are not yet where they should be.
    config : MergeTrainingConfig
    runtime : Runtime
    run_dir : Path
        Receives ``gated/`` and ``finetuned/``.
    progress : bool
        Show progress bars.

    Returns
    -------
    MergeResult
    """

    def numbered(step: int, rank: int, world: int) -> dict[str, Any]:
        return {"step": step, "batch": batch_at(step, rank, world)}

    def with_gates(module: nn.Module, numbered: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        answer = loss_fn(module, numbered["batch"])
        loss, logs = answer if isinstance(answer, tuple) else (answer, {})
        alpha = half_open_weight(numbered["step"] // config.steps_per_epoch, config.alpha_start, config.alpha_growth)
        inner = runtime.unwrap(module)
        assert isinstance(inner, GatedStudent)
        half_open = inner.half_open_loss()
        return loss + alpha * half_open, {**logs, "half_open": half_open.detach(), "alpha": alpha}

    gated = fit(student, with_gates, numbered, config.gated, runtime, run_dir / "gated", progress=progress)
    student.load_state_dict(gated.weights)
    network = student.compress()
    finetuned = fit(
        network, loss_fn, batch_at, config.finetune, runtime, run_dir / "finetuned", validate, progress=progress
    )
    network.load_state_dict(finetuned.weights)
    return MergeResult(network, student.open_share(), gated, finetuned)
