"""Early fusion: the sensors of all modalities side by side on the channel axis, and one encoder over all of them.

All modalities must come at one rate and window, in comparable units (`encoders.preprocess` scales every channel
robustly: volt and tesla differ by nine orders). Sensors of a missing modality read zero. Flat sensor maps overlap, so
each modality gets its own strip of the layout, or an encoder that reads positions could not tell an electrode from the
coil above it. The encoder must be wide enough for all of them: one that just fits a modality loses several points on
each (figures in ``tests/test_fusion.py``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.availability import availability, hide_modalities
from encoders.build import AnyEncoderConfig, SignalShape, build_encoder
from encoders.modality import combination

UNKNOWN_PLACE = -1.0


class EarlyFusionConfig(BaseModel):
    """Options of `EarlyFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["early"] = "early"
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "EarlyFusion":
        """Build one untrained encoder over all channels.

        Raises
        ------
        ValueError
            If the modalities name different encoders, or their shapes cannot be stacked.
        """
        configs = list(encoders.values())
        if any(config != configs[0] for config in configs):
            raise ValueError(
                f"the fusion 'early' builds one encoder over all channels, got different ones for {list(encoders)}; "
                "give every modality the same encoder config"
            )
        return EarlyFusion(build_encoder(configs[0], stacked_shape(shapes), embed_dim), shapes, embed_dim, self)


def stacked_shape(shapes: Mapping[str, SignalShape]) -> SignalShape:
    """Return the shape of all modalities stacked on the channel axis, with their maps in strips side by side.

    Raises
    ------
    ValueError
        If there are fewer than two modalities, or they differ in rate, length or people.
    """
    first = next(iter(shapes.values()), None)
    if first is None or len(shapes) < 2:
        raise ValueError(
            f"the fusion 'early' got the modalities {list(shapes)}, expected at least two; use 'single' for one"
        )
    for name, shape in shapes.items():
        if (shape.n_times, shape.sfreq, shape.n_subjects) != (first.n_times, first.sfreq, first.n_subjects):
            raise ValueError(
                f"the fusion 'early' got {shape.n_times} samples at {shape.sfreq:g} Hz of {shape.n_subjects} people "
                f"for {name!r}, expected {first.n_times} at {first.sfreq:g} Hz of {first.n_subjects} as in the other "
                "modalities; preprocess all to one rate and window"
            )
    places: tuple[tuple[float, float], ...] = ()
    if all(shape.positions for shape in shapes.values()):
        strips = _side_by_side([torch.tensor(shape.positions) for shape in shapes.values()])
        places = tuple((float(x), float(y)) for x, y in strips)
    return replace(first, n_channels=sum(shape.n_channels for shape in shapes.values()), positions=places)


class EarlyFusion(nn.Module):
    """Run one encoder over the channels of all modalities.

    Parameters
    ----------
    encoder : nn.Module
        Built for `stacked_shape` with output width ``embed_dim``.
    shapes : Mapping of str to SignalShape
        Per modality, in the order of the channels.
    embed_dim : int
    config : EarlyFusionConfig
    """

    def __init__(
        self, encoder: nn.Module, shapes: Mapping[str, SignalShape], embed_dim: int, config: EarlyFusionConfig
    ) -> None:
        super().__init__()
        self.modalities = tuple(shapes)
        self.embed_dim = embed_dim
        self.modality_dropout = config.modality_dropout
        self.encoder = encoder
        self.sizes = {name: (shape.n_channels, shape.n_times) for name, shape in shapes.items()}
        self.places = {
            name: torch.tensor(shape.positions or ((UNKNOWN_PLACE, UNKNOWN_PLACE),) * shape.n_channels)
            for name, shape in shapes.items()
        }

    def answers(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Embed samples once from each modality alone and once from all together, as far as they have them.

        One pass over a batch of all conditions, so that batch statistics are those of all conditions as well.

        Parameters
        ----------
        data, positions, subject, available
            As in `forward`, with every modality of the model.

        Returns
        -------
        dict of str to Tensor, (k, embed_dim), float32
            Keys as `encoders.modality.combination` spells them; k of the b samples have the modality, or all of them,
            and come in the batch's order.
        """
        _check_one_person(subject)
        present = availability(self.modalities, data, available, subject)
        conditions: list[tuple[str, ...]] = [(name,) for name in self.modalities] + [self.modalities]
        nobody = torch.zeros_like(subject, dtype=torch.bool)
        rows = [torch.stack([present[name] for name in names]).all(dim=0) for names in conditions]
        stacked = torch.cat(
            [
                self._stack(data, {name: chosen if name in names else nobody for name in self.modalities})[chosen]
                for names, chosen in zip(conditions, rows, strict=True)
            ]
        )
        places = self._places(positions, stacked)
        if places.dim() == 3:
            places = torch.cat([places[chosen] for chosen in rows])
        embeds = self.encoder(stacked, places, torch.cat([subject[chosen] for chosen in rows]))
        parts = embeds.split([int(chosen.sum()) for chosen in rows])
        return dict(zip(map(combination, conditions), parts, strict=True))

    def forward(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Embed samples from whatever modalities they have.

        Parameters
        ----------
        data : Mapping of str to Tensor, (b, c, t), float32
            Any subset of the model's modalities; a modality left out is missing for all samples.
        positions : Mapping of str to Tensor, (c, 2) or (b, c, 2), float32
            For the same modalities; the training montage stands in for a modality without an entry.
        subject : Tensor, (b,), int64
            Index of the person; ``n_subjects`` for an unknown one.
        available : Mapping of str to Tensor, (b,), bool, optional
            Which samples have the modality; all of them for a modality without an entry. What ``data`` holds in the
            other rows (zeros, NaN, another recording) has no influence.

        Returns
        -------
        Tensor, (b, embed_dim), float32

        Raises
        ------
        ValueError
            If a sample has no modality, a name is not one of the model's, or people differ between modalities.
        """
        _check_one_person(subject)
        masks = availability(self.modalities, data, available, subject)
        if self.training:
            masks = hide_modalities(masks, self.modality_dropout)
        stacked = self._stack(data, masks)
        embeds: Tensor = self.encoder(stacked, self._places(positions, stacked), subject)
        return embeds

    def _stack(self, data: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Stack channels (b, sum of c, t); zeros where a modality is missing."""
        some = next(iter(data.values()))
        blocks = []
        for name, rows in masks.items():
            if not bool(rows.any()):
                blocks.append(some.new_zeros(len(some), *self.sizes[name]))
            else:
                blocks.append(data[name].masked_fill(~rows[:, None, None], 0))
        return torch.cat(blocks, dim=1)

    def _places(self, positions: Mapping[str, Tensor], stacked: Tensor) -> Tensor:
        """Join the maps, (sum of c, 2), or (b, sum of c, 2) if one of them depends on the sample."""
        given = [positions.get(name, self.places[name]).to(stacked) for name in self.modalities]
        return _side_by_side(given)


def _check_one_person(subject: Tensor) -> None:
    if subject.dim() != 1:
        raise ValueError(
            f"the fusion 'early' got people {tuple(subject.shape)}, one per modality, expected (b,): its one network "
            "sees all channels as one head; use another fusion for recordings of different people"
        )


def _side_by_side(maps: list[Tensor]) -> Tensor:
    """Squeeze each map of [0, 1] into its own strip along x; unknown places stay unknown."""
    n = len(maps)
    strips = []
    for index, places in enumerate(maps):
        known = (places >= 0).all(dim=-1, keepdim=True)
        moved = torch.stack([(places[..., 0] + index) / n, places[..., 1]], dim=-1)
        strips.append(torch.where(known, moved, places))
    per_sample = max((places.shape[0] for places in strips if places.dim() == 3), default=0)
    if per_sample:
        strips = [places if places.dim() == 3 else places.expand(per_sample, -1, -1) for places in strips]
    return torch.cat(strips, dim=-2)
