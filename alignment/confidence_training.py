"""Second stage: train the confidence head of a template memory on epochs that are labelled sound or not.

Labels come from calibration epochs and from copies of them with injected artefacts. Everything but the head is frozen.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from alignment.fit import BatchAt, FitConfig, FitResult, fit
from alignment.runtime import Runtime
from encoders.template_memory import ConfidenceHead


def train_confidence(
    head: ConfidenceHead, batch_at: BatchAt, config: FitConfig, runtime: Runtime, run_dir: Path, *,
    progress: bool = True,
) -> FitResult:  # fmt: skip
    """Train the head in place.

    Parameters
    ----------
    head : ConfidenceHead
    batch_at : callable
        ``batch_at(step, rank, world) -> (data, template, positions, subject, is_sound)``, the first four as
        `ConfidenceHead.forward` takes them, ``is_sound`` (b,), float32, 1 for a sound epoch.
    config : FitConfig
    runtime : Runtime
    run_dir : Path
        For checkpoints and the log.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        ``weights`` include the frozen encoder's.
    """

    def loss_fn(module: nn.Module, batch: Any) -> Tensor:
        *inputs, is_sound = batch
        return functional.binary_cross_entropy_with_logits(module(*inputs).float(), is_sound.float())

    return fit(head, loss_fn, batch_at, config, runtime, run_dir, progress=progress)
