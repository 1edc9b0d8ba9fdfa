"""What all fusions with one encoder per modality share: who is present, single answers, and answers for training.

The joint answer is computed from detached parts in training, so that each encoder learns from its own loss term alone,
and each draws the same random numbers as if it were the only one (on the CPU): it becomes the encoder that a training
alone from the same seed would give, whatever the fusion does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from encoders.availability import availability, hide_modalities
from encoders.build import AnyEncoderConfig, SignalShape, build_encoder
from encoders.modality import combination


def build_encoders(
    encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
) -> dict[str, nn.Module]:
    """Build one untrained encoder per modality, each with outputs of width ``embed_dim``.

    Each starts from the random numbers that it would get alone.
    """
    draws = SameDraws()
    built = {}
    for name, config in encoders.items():
        draws.again()
        built[name] = build_encoder(config, shapes[name], embed_dim)
    return built


class SameDraws:
    """The CPU's random numbers as they come next, once for each encoder, whichever others there are."""

    def __init__(self) -> None:
        self.state = torch.get_rng_state()

    def again(self) -> None:
        torch.set_rng_state(self.state)


class SeparateEncoders(nn.Module):
    """One encoder per modality; what several of them give together is the subclass's `combine`.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        Modality name to a network of `encoders.build`.
    embed_dim : int
        Width of the answers.
    modality_dropout : float
        Chance per sample and modality to be hidden in `forward` while training.
    branch_width : int, optional
        Width of the encoders' outputs; ``embed_dim`` by default.

    Raises
    ------
    ValueError
        If ``encoders`` is empty.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        embed_dim: int,
        modality_dropout: float = 0.0,
        branch_width: int | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("fusion got no encoders, expected at least one; pass {'eeg': encoder, ...}")
        self.modalities = tuple(encoders)
        self.embed_dim = embed_dim
        self.branch_width = branch_width or embed_dim
        self.modality_dropout = modality_dropout
        self.encoders = nn.ModuleDict(dict(encoders))

    def embed_each(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run every encoder on the samples that have its modality.

        Parameters
        ----------
        data, positions, subject, available
            As in `forward`.

        Returns
        -------
        embeds : dict of str to Tensor, (b, branch_width), float32
            One entry per modality of the model; rows without that modality are zero.
        available : dict of str to Tensor, (b,), bool
            Which rows count. No modality dropout is applied here.
        """
        masks = availability(self.modalities, data, available, subject)
        embeds, draws = {}, SameDraws() if self.training else None
        for place, name in enumerate(self.modalities):
            rows, person = masks[name], person_of(subject, place)
            if draws is not None:
                draws.again()
            if bool(rows.all()):
                embeds[name] = self.encoders[name](data[name], positions[name], person)
                continue
            embeds[name] = subject.new_zeros((len(subject), self.branch_width), dtype=torch.float32)
            if bool(rows.any()):
                some = self.encoders[name](*rows_of(rows, data[name], positions[name], person))
                embeds[name] = embeds[name].to(some.dtype).index_put((rows.nonzero()[:, 0],), some)
        return embeds, masks

    def alone(self, name: str, embeds: Tensor) -> Tensor:
        """Turn the encoder's own embedding of one modality (b, branch_width) into an answer (b, embed_dim)."""
        return embeds

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Fuse per-modality embeddings of the same samples.

        Parameters
        ----------
        embeds : Mapping of str to Tensor, (b, branch_width), float32
            One entry per modality of the model; rows marked unavailable are ignored.
        available : Mapping of str to Tensor, (b,), bool
            At least one modality per row. Rows with exactly one get what `alone` says.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        raise NotImplementedError

    def answers(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Embed samples once from each modality alone and once from all together, as far as they have them.

        Parameters
        ----------
        data, positions, subject, available
            As in `forward`, with every modality of the model.

        Returns
        -------
        dict of str to Tensor, (k, embed_dim), float32
            Keys as `combination` spells them; k of the b samples have the modality, or all of them, and come in the
            batch's order. The joint answer has no gradient with respect to the encoders.
        """
        embeds, masks = self.embed_each(data, positions, subject, available)
        some = {name: rows for name, rows in masks.items() if not bool(rows.all())}
        answers = {name: self.alone(name, one[some[name]] if name in some else one) for name, one in embeds.items()}
        if len(embeds) > 1:
            apart = {name: one.detach() for name, one in embeds.items()}
            if some:
                both = torch.stack(list(masks.values())).all(dim=0)
                apart, masks, subject = _only(both, apart), _only(both, masks), subject[both]
                positions = {name: one if one.dim() == 2 else one[both] for name, one in positions.items()}
                data = _only(both, data)
            answers[combination(self.modalities)] = self.fuse(apart, masks, data, positions, subject, detached=True)
        return answers

    def fuse(
        self,
        embeds: Mapping[str, Tensor],
        available: Mapping[str, Tensor],
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        *,
        detached: bool,
    ) -> Tensor:
        """Fuse what the encoders gave; a fusion that reads more of them than their embeddings overrides this.

        ``detached`` forbids gradients to the encoders. The rest is as in `combine` and `forward`.
        """
        return self.combine(embeds, available)

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
            For the same modalities.
        subject : Tensor, (b,) or (b, m), int64
            Index of the person; ``n_subjects`` for an unknown one. With m columns, one per modality of the model in
            its order, for recordings of the same stimulus from different people.
        available : Mapping of str to Tensor, (b,), bool, optional
            Which samples have the modality; all of them for a modality without an entry. What ``data`` holds in the
            other rows (zeros, NaN, another recording) has no influence.

        Returns
        -------
        Tensor, (b, embed_dim), float32

        Raises
        ------
        ValueError
            If a sample has no modality, or a name is not one of the model's.
        """
        data, available = self.remaining(data, available, subject)
        embeds, masks = self.embed_each(data, positions, subject, available)
        return self.fuse(embeds, masks, data, positions, subject, detached=False)

    def remaining(
        self, data: Mapping[str, Tensor], available: Mapping[str, Tensor] | None, subject: Tensor
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
        """Apply modality dropout: give the data of the modalities that some sample keeps, and who keeps which."""
        if not self.training or self.modality_dropout == 0:
            return data, available
        kept = hide_modalities(availability(self.modalities, data, available, subject), self.modality_dropout)
        return {name: one for name, one in data.items() if bool(kept[name].any())}, kept


def _only(rows: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one[rows] for name, one in parts.items()}


def person_of(subject: Tensor, place: int) -> Tensor:
    """Give the people (b,) of the modality at ``place`` from people (b,), the same for all, or (b, m)."""
    return subject if subject.dim() == 1 else subject[:, place]


def rows_of(rows: Tensor, data: Tensor, positions: Tensor, subject: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the samples marked in ``rows`` (b,), bool; positions (c, 2) are the same for all samples."""
    return data[rows], positions if positions.dim() == 2 else positions[rows], subject[rows]
