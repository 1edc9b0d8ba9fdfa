"""Which samples have which modality: the check that every fusion shares, and modality dropout."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def availability(
    modalities: Sequence[str], data: Mapping[str, Tensor], available: Mapping[str, Tensor] | None, subject: Tensor
) -> dict[str, Tensor]:
    """Say which samples have which modality.

    Parameters
    ----------
    modalities : sequence of str
        Those of the model.
    data : Mapping of str to Tensor, (b, c, t)
        A modality left out is missing for all samples.
    available : Mapping of str to Tensor, (b,), bool, optional
        All samples for a modality without an entry.
    subject : Tensor, (b,) or (b, m), int64
        Gives the number of samples and the device.

    Returns
    -------
    dict of str to Tensor, (b,), bool
        One entry per modality of the model, in its order.

    Raises
    ------
    ValueError
        If a sample has no modality, or a name is not one of the model's.
    """
    given = dict(available or {})
    unknown = sorted((set(data) | set(given)) - set(modalities))
    if unknown:
        raise ValueError(f"fusion got the modalities {unknown}, expected some of {list(modalities)}")
    everyone = torch.ones(len(subject), dtype=torch.bool, device=subject.device)
    masks = {name: given.get(name, everyone).to(everyone) if name in data else ~everyone for name in modalities}
    nothing = ~torch.stack(list(masks.values())).any(dim=0)
    if len(subject) == 0 or bool(nothing.any()):
        raise ValueError(
            f"fusion got {int(nothing.sum())} of {len(subject)} samples without any modality, expected at least "
            f"one of {list(modalities)} for each; drop those samples or pass a recording"
        )
    return masks


def hide_modalities(masks: Mapping[str, Tensor], chance: float) -> dict[str, Tensor]:
    """Hide each modality of a sample with the given chance; samples that would lose all keep all.

    Parameters
    ----------
    masks : Mapping of str to Tensor, (b,), bool
    chance : float
        0 hides nothing and draws nothing.

    Returns
    -------
    dict of str to Tensor, (b,), bool
    """
    if chance == 0:
        return dict(masks)
    stacked = torch.stack(list(masks.values()))
    keep = stacked & (torch.rand(stacked.shape) >= chance).to(stacked.device)
    keep = torch.where(keep.any(dim=0), keep, stacked)
    return dict(zip(masks, keep, strict=True))
