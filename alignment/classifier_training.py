"""Pretrain an encoder by naming concepts, then drop the head: what is left starts the alignment with CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from alignment.classification_scores import balanced_accuracy
from alignment.fit import FitConfig, fit
from alignment.pairs import batch_rows
from alignment.runtime import Runtime
from encoders.heads import BrainClassifier
from encoders.layers.constraints import penalties

ENCODER = "encoder."
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LabelledEpochs:
    """Epochs with the concept each of them shows.

    Attributes
    ----------
    data : ndarray, (n, n_channels, n_times), float32
        Preprocessed, unitless.
    labels : ndarray, (n,), int64
        Concept, 0 to ``n_classes - 1``.
    subject : ndarray, (n,), int64
    """

    data: NDArray[np.float32]
    labels: NDArray[np.int64]
    subject: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.data) == len(self.labels) == len(self.subject):
            raise ValueError(
                f"LabelledEpochs got {len(self.data)} epochs, {len(self.labels)} labels and {len(self.subject)} "
                "subjects, expected as many of each; give one label and one person per epoch"
            )

    def rows(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return some rows as tensors."""
        return {
            "data": torch.from_numpy(self.data[rows].astype(np.float32)),
            "labels": torch.from_numpy(self.labels[rows].astype(np.int64)),
            "subject": torch.from_numpy(self.subject[rows].astype(np.int64)),
        }


class ClassifierWithPenalty(nn.Module):
    """Logits and the encoder's own penalty in one forward call, as several processes need it."""

    def __init__(self, classifier: BrainClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.classifier(data, positions, subject), penalties(self.classifier)


def pretrain_classifier(
    classifier: BrainClassifier,
    train: LabelledEpochs,
    positions: NDArray[np.float32],
    config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    validation: LabelledEpochs | None = None,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train a classifier on concept labels by cross-entropy and return its encoder's state.

    Parameters
    ----------
    classifier : BrainClassifier
        Trained in place; it holds the last weights, what is returned are the best (or averaged) ones.
    train : LabelledEpochs
    positions : ndarray, (n_channels, 2), float32
        Flat sensor map.
    config : FitConfig
    runtime : Runtime
    run_dir : Path
        Receives checkpoints and the log, as in `alignment.fit.fit`.
    validation : LabelledEpochs, optional
        Keeps the state with the best balanced accuracy.
    batch_size : int
        Over all processes.
    progress : bool

    Returns
    -------
    dict of Tensor
        State of the bare encoder, without the head: ``encoder.load_state_dict`` takes it.

    Raises
    ------
    ValueError
        If a label lies outside the head's classes.
    """
    n_classes = classifier.head.out_features
    for one in (train, validation) if validation is not None else (train,):
        if len(one.labels) == 0 or one.labels.min() < 0 or one.labels.max() >= n_classes:
            raise ValueError(
                f"pretrain_classifier got {len(one.labels)} labels from {one.labels.min(initial=0)} to "
                f"{one.labels.max(initial=0)}, expected some in 0 .. {n_classes - 1}; number the concepts or widen "
                "the head"
            )
    places = torch.from_numpy(np.asarray(positions, dtype=np.float32)).to(runtime.device)

    def batch_at(step: int, rank: int, world: int) -> dict[str, Tensor]:
        return train.rows(batch_rows(len(train.labels), batch_size, step, rank, world, runtime.seed))

    def loss_fn(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits, penalty = module(batch["data"], places, batch["subject"])
        loss = F.cross_entropy(logits.float(), batch["labels"])
        logs: dict[str, Tensor] = {"accuracy": (logits.argmax(dim=1) == batch["labels"]).float().mean()}
        if penalty is not None:
            loss, logs["penalty"] = loss + penalty, penalty.detach()
        return loss, logs

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, ClassifierWithPenalty) and validation is not None
        answers = predict_labels(module.classifier, validation, positions, runtime)
        return {"score": balanced_accuracy(validation.labels, answers)}

    result = fit(
        ClassifierWithPenalty(classifier), loss_fn, batch_at, config, runtime, run_dir,
        validate if validation is not None else None, progress=progress,
    )  # fmt: skip
    return encoder_state(result.weights, f"classifier.{ENCODER}")


def encoder_state(state: Mapping[str, Tensor], prefix: str = ENCODER) -> dict[str, Tensor]:
    """Take the encoder's part out of a classifier's state, dropping the head.

    Raises
    ------
    ValueError
        If nothing in the state belongs to an encoder.
    """
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(
            f"state has no tensor under {prefix!r}, got {sorted(state)[:3]}, expected a BrainClassifier's; pass the "
            "state that was trained with a head"
        )
    return found


@torch.no_grad()
def predict_labels(
    classifier: BrainClassifier, epochs: LabelledEpochs, positions: NDArray[Any], runtime: Runtime
) -> NDArray[np.int64]:
    """Return the most probable class of every epoch, (n,), int64; the classifier must be in eval mode."""
    places = torch.from_numpy(np.asarray(positions, dtype=np.float32)).to(runtime.device)
    answers = []
    for start in range(0, len(epochs.labels), ROWS_AT_ONCE):
        batch = epochs.rows(np.arange(start, min(start + ROWS_AT_ONCE, len(epochs.labels))))
        batch = runtime.to_device(batch)
        answers.append(classifier(batch["data"], places, batch["subject"]).argmax(dim=1).cpu().numpy())
    found: NDArray[np.int64] = np.concatenate(answers)
    return found
