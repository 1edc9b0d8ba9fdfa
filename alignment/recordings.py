"""From the recordings that somebody sends to one `SignalEpochs` per modality, row by row the same stimuli."""

from collections.abc import Sequence

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.modality import MODALITIES


def by_modality(
    recordings: Sequence[SignalEpochs], known: Sequence[str]
) -> tuple[dict[str, SignalEpochs], tuple[str, ...]]:
    """Split recordings by the modality of their channels.

    Parameters
    ----------
    recordings : sequence of SignalEpochs
        One that holds several kinds of channels, or several with one each.
    known : sequence of str
        Modalities that the model reads; others are left out.

    Returns
    -------
    parts : dict of str to SignalEpochs
        In the order of ``known``.
    notes : tuple of str
        What was left out.

    Raises
    ------
    EpochsMismatch
        If a modality comes twice, or none is known.
    """
    parts: dict[str, SignalEpochs] = {}
    unused: list[str] = []
    for recording in recordings:
        for name, modality in MODALITIES.items():
            present = [kind for kind in modality.kinds if kind in recording.ch_types]
            if present and name not in known:
                unused.append(name)
            elif present and name in parts:
                raise EpochsMismatch(f"two recordings hold {name} channels; send one recording per modality")
            elif present:
                parts[name] = recording.pick_types(*present)
    if not parts:
        kinds = sorted({kind for recording in recordings for kind in recording.ch_types})
        raise EpochsMismatch(
            f"the {len(recordings)} recordings hold channels of type {kinds}, the model reads {list(known)}; send a "
            "recording of one of these"
        )
    notes = tuple(f"the {name} channels were not used: the model reads {list(known)} only" for name in unused)
    return {name: parts[name] for name in known if name in parts}, notes


def joined(parts: dict[str, SignalEpochs]) -> tuple[dict[str, SignalEpochs], tuple[str, ...]]:
    """Bring the epochs of all modalities into the stimulus order of the first.

    Returns
    -------
    parts : dict of str to SignalEpochs
    notes : tuple of str
        Says so when epochs were paired by position because a recording has no stimulus ids.

    Raises
    ------
    EpochsMismatch
        If the recordings are not of the same stimuli, or repeat stimuli in different orders.
    """
    names = list(parts)
    first = parts[names[0]]
    found, notes = {names[0]: first}, []
    for name in names[1:]:
        other = parts[name]
        if other.n_epochs != first.n_epochs:
            raise EpochsMismatch(
                f"the {names[0]} recording has {first.n_epochs} epochs, the {name} recording {other.n_epochs}; send "
                "the same stimuli in both, or average repetitions"
            )
        if not any(first.stimulus) or not any(other.stimulus):
            notes.append(f"{names[0]} and {name} epochs were paired by position: a recording has no stimulus ids")
        elif other.stimulus != first.stimulus:
            if len(set(first.stimulus)) < first.n_epochs or set(first.stimulus) != set(other.stimulus):
                raise EpochsMismatch(
                    f"the {names[0]} recording shows the stimuli {list(first.stimulus[:5])} ..., the {name} recording "
                    f"{list(other.stimulus[:5])} ...; send the same stimuli in the same order"
                )
            place = {stimulus: row for row, stimulus in enumerate(other.stimulus)}
            other = other.select([place[stimulus] for stimulus in first.stimulus])
        found[name] = other
    return found, tuple(notes)
