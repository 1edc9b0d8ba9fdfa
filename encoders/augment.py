"""Augmentations that leave alone what an evoked response is made of: sign, order of time, latency and sensor.

Applied to training batches only, after preprocessing (unitless, a standard deviation of about 1), on the data's device.
Random numbers come from a given CPU generator, so the same seed gives the same batch everywhere. A step with ``p=0``
returns its input and draws nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AugmentBatch:
    """A batch and what augmentation may know about it.

    Attributes
    ----------
    data : Tensor, (n, c, t), float32
    sfreq : float
        Hz.
    subject, target : Tensor, (n,), int64, optional
        Person and picture of each row; only read, and only by the steps that mix rows.
    """

    data: Tensor
    sfreq: float
    subject: Tensor | None = None
    target: Tensor | None = None


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    p: float = Field(default=0.5, ge=0, le=1, description="share of rows (of channels, for channel_smoothing)")


class NoiseStep(_Step):
    """White noise on every sample."""

    name: Literal["noise"] = "noise"
    std: float = Field(default=0.1, gt=0, description="in units of the preprocessed data")

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        return batch.data + self.std * torch.randn(batch.data.shape, generator=generator).to(batch.data)


class DriftStep(_Step):
    """A slow wave per channel, less than one period long."""

    name: Literal["drift"] = "drift"
    amplitude: float = Field(default=0.3, gt=0, description="largest amplitude, in units of the preprocessed data")

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        n, c, n_times = batch.data.shape
        draws = torch.rand(3, n, c, 1, generator=generator)
        periods, phase, size = draws[0], 2 * torch.pi * draws[1], self.amplitude * draws[2]
        times = torch.arange(n_times) / n_times
        wave = size * torch.sin(2 * torch.pi * periods * times + phase)
        return batch.data + wave.to(batch.data)


class ChannelDropoutStep(_Step):
    """Silence some channels of a row, as if their electrodes had come off."""

    name: Literal["channel_dropout"] = "channel_dropout"
    share: float = Field(default=0.1, gt=0, lt=1, description="chance of each channel")

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        keep = torch.rand(*batch.data.shape[:2], 1, generator=generator) >= self.share
        return batch.data * keep.to(batch.data)


class TimeMaskStep(_Step):
    """Silence one stretch of time in all channels."""

    name: Literal["time_mask"] = "time_mask"
    width: float = Field(default=0.1, gt=0, description="s")

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        n, _, n_times = batch.data.shape
        width = _samples(self.width, batch, "width")
        first = torch.randint(n_times - width + 1, (n, 1, 1), generator=generator)
        times = torch.arange(n_times)
        masked = (times >= first) & (times < first + width)
        return batch.data * (~masked).to(batch.data)


class ShiftStep(_Step):
    """Move a row in time by less than a latency means; the end samples are repeated into the gap."""

    name: Literal["shift"] = "shift"
    most: float = Field(default=0.01, gt=0, le=0.05, description="s, to either side; above 0.05 latency would be lost")

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        n, c, n_times = batch.data.shape
        most = _samples(self.most, batch, "most")
        by = torch.randint(-most, most + 1, (n, 1), generator=generator)
        source = (torch.arange(n_times) - by).clamp(0, n_times - 1).to(batch.data.device)
        return batch.data.gather(2, source[:, None].expand(n, c, n_times))


class ChannelSmoothingStep(_Step):
    """Moving average over time, centred, on channels drawn one by one; kernel 5 and p 0.3 are NeuroBridge's."""

    name: Literal["channel_smoothing"] = "channel_smoothing"
    p: float = Field(default=0.3, ge=0, le=1, description="chance of each channel")
    kernel: int = Field(default=5, ge=3, description="samples, odd")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd: an even one would move the signal by half a sample")
        return kernel

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        n, c, n_times = batch.data.shape
        radius = self.kernel // 2
        padded = functional.pad(batch.data, (radius, radius), mode="replicate")
        smooth = functional.avg_pool1d(padded, self.kernel, stride=1)
        chosen = torch.rand(n, c, 1, generator=generator) < self.p
        return torch.where(chosen.to(batch.data.device), smooth, batch.data)


class SubjectMixupStep(_Step):
    """Mix a row with another person's response to the same picture, weight ``w ~ Beta(alpha, alpha)`` for its own.

    The target is the same for both, so it stays. The person's index stays too, which suits encoders without layers per
    person. Rows whose picture nobody else saw in this batch stay as they are: batch with `alignment.batches`.
    """

    name: Literal["subject_mixup"] = "subject_mixup"
    alpha: float = Field(default=0.5, gt=0)

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        subject, target = _known(batch, self.name)
        partner, found = _draw_partner(_same(target) & ~_same(subject), generator)
        weight = _beta(self.alpha, len(batch.data), generator)
        weight = torch.where(found, weight, 1.0)[:, None, None].to(batch.data)
        return weight * batch.data + (1 - weight) * batch.data[partner.to(batch.data.device)]


class RepetitionAverageStep(_Step):
    """Average a row with another repetition, the same person's response to the same picture in this batch."""

    name: Literal["repetition_average"] = "repetition_average"

    def change(self, batch: AugmentBatch, generator: torch.Generator) -> Tensor:
        subject, target = _known(batch, self.name)
        own = torch.eye(len(target), dtype=torch.bool)
        partner, found = _draw_partner(_same(target) & _same(subject) & ~own, generator)
        mean = (batch.data + batch.data[partner.to(batch.data.device)]) / 2
        return torch.where(found[:, None, None].to(batch.data.device), mean, batch.data)


AnyAugmentStep = (
    ChannelDropoutStep
    | ChannelSmoothingStep
    | DriftStep
    | NoiseStep
    | RepetitionAverageStep
    | ShiftStep
    | SubjectMixupStep
    | TimeMaskStep
)  # fmt: skip


class AugmentConfig(BaseModel):
    """Steps of augmentation, in order; none by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Annotated[AnyAugmentStep, Field(discriminator="name")], ...] = ()


def augment(
    data: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    sfreq: float,
    subject: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Augment a training batch.

    Parameters
    ----------
    data : Tensor, (n, c, t), float32
        Preprocessed; not changed in place.
    config : AugmentConfig
    generator : torch.Generator
        On the CPU; make it from seed, step and rank (`Runtime.generator`).
    sfreq : float
        Hz.
    subject, target : Tensor, (n,), int64, optional
        Person and picture of each row; needed by ``subject_mixup`` and ``repetition_average``.

    Returns
    -------
    Tensor, (n, c, t), float32
        Row ``i`` still belongs to person ``i`` and picture ``i``.

    Raises
    ------
    ValueError
        If a width in seconds is shorter than a sample or longer than the epoch, or a step lacks what it needs.
    """
    for step in config.steps:
        if step.p == 0:
            continue
        changed = step.change(AugmentBatch(data, sfreq, subject, target), generator)
        if step.p < 1 and not isinstance(step, ChannelSmoothingStep):
            chosen = (torch.rand(len(data), 1, 1, generator=generator) < step.p).to(data.device)
            changed = torch.where(chosen, changed, data)
        data = changed
    return data


def _samples(seconds: float, batch: AugmentBatch, name: str) -> int:
    n_times = batch.data.shape[2]
    samples = round(seconds * batch.sfreq)
    if not 0 < samples < n_times:
        raise ValueError(
            f"{name} {seconds} s is {samples} samples at {batch.sfreq} Hz, expected 1 to {n_times - 1}; change it"
        )
    return samples


def _known(batch: AugmentBatch, name: str) -> tuple[Tensor, Tensor]:
    if batch.subject is None or batch.target is None:
        raise ValueError(f"augmentation {name} needs subject and target of each row, got None; pass both")
    return batch.subject.cpu(), batch.target.cpu()


def _same(ids: Tensor) -> Tensor:
    return ids[:, None] == ids[None, :]


def _draw_partner(allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one allowed column per row, and say for which rows there is any."""
    score = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    return score.argmax(dim=1), allowed.any(dim=1)


def _beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """Draw n weights from Beta(alpha, alpha); torch's own takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, n)).float()
