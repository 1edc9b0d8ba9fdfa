"""`SignalEpochs`: epochs of brain signal in SI units, with what is known about sensors and stimuli.

At rest they are an MNE ``-epo.fif`` or a plain ``.npz``, neither of which holds a pickle.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.modality import CHANNEL_KINDS, DEFAULT_KIND, kind_of_name
from encoders.npz_input import integers, number, read_arrays, strings
from encoders.quotation import quoted

REQUIRED_ARRAYS = ("data", "sfreq", "ch_names", "tmin")
OPTIONAL_ARRAYS = ("ch_types", "positions", "subject", "stimulus", "n_averaged")
# More than any device has and any recording needs; asked first, as much below takes its time once per channel or epoch.
MAX_CHANNELS = 4096
MAX_EPOCHS = 1_000_000
# JSON and float64 carry whole numbers up to here.
MAX_AVERAGED = 2**53 - 1


class EpochsMismatch(ValueError):
    """A recording cannot be used as it is; the message says what to change; ``too_many``: it has too many epochs."""

    def __init__(self, message: str, *, too_many: bool = False) -> None:
        super().__init__(message)
        self.too_many = too_many


@dataclass(frozen=True)
class SignalEpochs:
    """Epochs around stimulus onsets; checked once, on construction.

    Attributes
    ----------
    data : ndarray, (n_epochs, n_channels, n_times), float32
        Volt, tesla or tesla per metre, by ``ch_types``.
    sfreq : float
        Sampling rate in Hz.
    tmin : float
        Time of the first sample relative to the onset, in seconds.
    ch_names, ch_types : tuple of str
        Unique names; types are keys of `encoders.modality.CHANNEL_KINDS`.
    positions : ndarray, (n_channels, 3), float32
        Metres in the head frame; NaN where unknown.
    subject : str
        Whose brain; empty if unknown.
    stimulus : tuple of str
        One id per epoch, empty where unknown.
    n_averaged : tuple of int
        How many presentations each epoch averages.

    Raises
    ------
    EpochsMismatch
        If shapes disagree, a value is not finite, a name appears twice, or there are too many channels or epochs.
    """

    data: NDArray[np.float32]
    sfreq: float
    tmin: float
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: NDArray[np.float32]
    subject: str = ""
    stimulus: tuple[str, ...] = ()
    n_averaged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fill the per-epoch defaults and check everything."""
        shape = np.shape(self.data)
        _check_shape(shape)
        object.__setattr__(self, "data", _as_float32(self.data, self.ch_names))
        object.__setattr__(self, "positions", _as_positions(self.positions))
        object.__setattr__(self, "ch_names", tuple(str(name) for name in self.ch_names))
        object.__setattr__(self, "ch_types", tuple(str(kind) for kind in self.ch_types))
        object.__setattr__(self, "stimulus", tuple(str(name) for name in self.stimulus) or ("",) * shape[0])
        object.__setattr__(self, "n_averaged", tuple(int(n) for n in self.n_averaged) or (1,) * shape[0])
        _check_lengths(self)

    @property
    def n_epochs(self) -> int:
        """Number of epochs."""
        return int(self.data.shape[0])

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return int(self.data.shape[1])

    @property
    def n_times(self) -> int:
        """Number of samples per epoch."""
        return int(self.data.shape[2])

    @property
    def times(self) -> NDArray[np.float64]:
        """Sample times in seconds relative to the onset, (n_times,)."""
        return self.tmin + np.arange(self.n_times) / self.sfreq

    def pick(self, ch_names: Sequence[str]) -> "SignalEpochs":
        """Return the named channels, in the given order."""
        index = {name: i for i, name in enumerate(self.ch_names)}
        unknown = [name for name in ch_names if name not in index]
        if unknown:
            raise EpochsMismatch(f"no channels {unknown} in this recording; it has {list(self.ch_names)}")
        return self._take_channels([index[name] for name in ch_names])

    def pick_types(self, *kinds: str) -> "SignalEpochs":
        """Return the channels of the given kinds, in their present order."""
        unknown = [kind for kind in kinds if kind not in CHANNEL_KINDS]
        if unknown:
            raise ValueError(f"unknown channel kinds {unknown}; allowed are {list(CHANNEL_KINDS)}")
        rows = [i for i, ch_type in enumerate(self.ch_types) if ch_type in kinds]
        if not rows:
            raise EpochsMismatch(f"no channel of type {list(kinds)}; this recording has {sorted(set(self.ch_types))}")
        return self._take_channels(rows)

    def crop(self, tmin: float, tmax: float) -> "SignalEpochs":
        """Return the samples from `tmin` to `tmax`, in seconds from the onset, at least one."""
        first = min(max(math.ceil((tmin - self.tmin) * self.sfreq - 1e-6), 0), self.n_times - 1)
        stop = max(math.floor((tmax - self.tmin) * self.sfreq + 1e-6) + 1, first + 1)
        if first == 0 and stop >= self.n_times:
            return self
        return replace(self, data=self.data[:, :, first:stop], tmin=float(self.times[first]))

    def select(self, indices: Sequence[int] | NDArray[Any]) -> "SignalEpochs":
        """Return the epochs at ``indices`` (integers, or a boolean mask of length n_epochs)."""
        rows = np.arange(self.n_epochs)[np.asarray(indices)]
        return replace(
            self,
            data=self.data[rows],
            stimulus=tuple(self.stimulus[i] for i in rows),
            n_averaged=tuple(self.n_averaged[i] for i in rows),
        )

    def average_repetitions(self) -> "SignalEpochs":
        """Average the epochs of each stimulus, weighted by ``n_averaged``.

        Stimuli keep the order of their first appearance. Epochs without a stimulus id stay alone.
        """
        groups: dict[str, list[int]] = {}
        for i, stimulus in enumerate(self.stimulus):
            groups.setdefault(f"s{stimulus}" if stimulus else f"#{i}", []).append(i)
        weights = np.asarray(self.n_averaged, dtype=np.float64)
        rows = list(groups.values())
        means = [np.average(self.data[row], axis=0, weights=weights[row]) for row in rows]
        return replace(
            self,
            data=np.stack(means).astype(np.float32),
            stimulus=tuple(self.stimulus[row[0]] for row in rows),
            n_averaged=tuple(int(weights[row].sum()) for row in rows),
        )

    def save(self, path: Path | str) -> None:
        """Write ``.npz``, or an MNE epochs file whose name ends in ``-epo.fif`` or ``-epo.fif.gz``."""
        path = Path(path)
        if path.suffix == ".npz":
            path.write_bytes(self.to_bytes())
        elif path.name.endswith((".fif", ".fif.gz")):
            self.to_mne().save(path, fmt="single", overwrite=True, verbose="error")
        else:
            raise ValueError(f"cannot write {path.name!r}; expected a name ending in .npz or -epo.fif")

    @classmethod
    def load(cls, path: Path | str) -> "SignalEpochs":
        """Read what `save` wrote; `encoders.readers.read_epochs` reads every other format."""
        path = Path(path)
        if path.suffix == ".npz":
            with path.open("rb") as file:
                return _from_npz(file)
        return cls.from_mne(mne.read_epochs(path, verbose="error"))

    def to_bytes(self) -> bytes:
        """Return the ``.npz`` form: arrays only, no pickle."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "data": self.data,
            "sfreq": np.float64(self.sfreq),
            "tmin": np.float64(self.tmin),
            "ch_names": np.asarray(self.ch_names, dtype=np.str_),
            "ch_types": np.asarray(self.ch_types, dtype=np.str_),
            "positions": self.positions,
            "subject": np.asarray(self.subject, dtype=np.str_),
            "stimulus": np.asarray(self.stimulus, dtype=np.str_),
            "n_averaged": np.asarray(self.n_averaged, dtype=np.int64),
        }
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "SignalEpochs":
        """Read the ``.npz`` form.

        Required arrays: ``data`` (n_epochs, n_channels, n_times) in SI units, ``sfreq`` (), ``ch_names``
        (n_channels,), ``tmin`` (). Optional: ``ch_types`` (guessed from the names if absent), ``positions``
        (n_channels, 3), ``subject`` (), ``stimulus`` (n_epochs,), ``n_averaged`` (n_epochs,). Others are ignored.

        Raises
        ------
        EpochsMismatch
            If the content is not such a file.
        """
        return _from_npz(io.BytesIO(content))

    def to_mne(self) -> mne.EpochsArray:
        """Return MNE epochs; stimulus ids and counts ride in ``info["description"]`` as JSON."""
        info = mne.create_info(list(self.ch_names), self.sfreq, list(self.ch_types))
        for ch, position in zip(info["chs"], self.positions, strict=True):
            ch["loc"][:3] = position
            ch["loc"][3:12] = np.nan if np.isnan(position).any() else np.eye(3).ravel()
        info["description"] = json.dumps({"stimulus": self.stimulus, "n_averaged": self.n_averaged})
        if self.subject:
            info["subject_info"] = {"his_id": self.subject}
        names = {name: i + 1 for i, name in enumerate(dict.fromkeys(self.stimulus))}
        codes = np.asarray([names[name] for name in self.stimulus])
        events = np.column_stack([np.arange(self.n_epochs) * self.n_times, np.zeros_like(codes), codes])
        event_id = {f"stimulus {code}": code for code in names.values()}
        return mne.EpochsArray(
            self.data.astype(np.float64), info, events, tmin=self.tmin, event_id=event_id, proj=False, verbose="error"
        )

    @classmethod
    def from_mne(cls, epochs: "mne.BaseEpochs") -> "SignalEpochs":
        """Convert MNE epochs; channels that are marked bad, or are neither EEG nor MEG, are left out.

        The stimulus id is the event's name unless `to_mne` left ids in the description.
        """
        kinds = [known_kind(*pair) for pair in zip(epochs.get_channel_types(), epochs.ch_names, strict=True)]
        bad = set(epochs.info["bads"])
        rows = [i for i, kind in enumerate(kinds) if kind in CHANNEL_KINDS and epochs.ch_names[i] not in bad]
        if not rows:
            raise EpochsMismatch(f"no usable EEG or MEG channel; the file has {sorted(set(kinds))}, {len(bad)} are bad")
        names = {code: name for name, code in epochs.event_id.items()}
        notes = own_description(epochs.info["description"], len(epochs))
        return cls(
            data=epochs.get_data(picks=rows, verbose="error"),
            sfreq=float(epochs.info["sfreq"]),
            tmin=float(epochs.times[0]),
            ch_names=tuple(epochs.ch_names[i] for i in rows),
            ch_types=tuple(kinds[i] for i in rows),
            positions=positions_of(epochs.info)[rows],
            subject=str((epochs.info["subject_info"] or {}).get("his_id") or ""),
            stimulus=notes.get("stimulus", tuple(names.get(code, str(code)) for code in epochs.events[:, 2])),
            n_averaged=notes.get("n_averaged", ()),
        )

    def _take_channels(self, rows: list[int]) -> "SignalEpochs":
        return replace(
            self,
            data=self.data[:, rows],
            ch_names=tuple(self.ch_names[i] for i in rows),
            ch_types=tuple(self.ch_types[i] for i in rows),
            positions=self.positions[rows],
        )


def positions_of(info: mne.Info) -> NDArray[np.float32]:
    """Return the sensor positions of an MNE ``Info`` in metres, head frame, (n_channels, 3); NaN where unknown."""
    positions = np.full((len(info["chs"]), 3), np.nan)
    to_head = info["dev_head_t"]
    for row, ch in zip(positions, info["chs"], strict=True):
        if np.isfinite(ch["loc"][:3]).all() and ch["loc"][:3].any():
            row[:] = ch["loc"][:3]
            if to_head is not None and ch["coord_frame"] == to_head["from"]:
                row[:] = mne.transforms.apply_trans(to_head, row)
    return positions.astype(np.float32)


def known_kind(mne_type: str, ch_name: str) -> str:
    """Return MNE's channel type, unless it says "misc" of a channel whose name tells its kind (THINGS-MEG does)."""
    guess = kind_of_name(ch_name)
    return guess if mne_type == "misc" and guess != DEFAULT_KIND else mne_type


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or 0 in shape:
        raise EpochsMismatch(f"data has shape {shape}, expected (n_epochs, n_channels, n_times), none of them 0")
    if shape[1] > MAX_CHANNELS:
        raise EpochsMismatch(f"the recording has {shape[1]} channels, at most {MAX_CHANNELS} are read; leave some out")
    if shape[0] > MAX_EPOCHS:
        raise EpochsMismatch(f"the recording has {shape[0]} epochs, at most {MAX_EPOCHS} are read; leave some out")


def _as_float32(data: Any, ch_names: Sequence[str]) -> NDArray[np.float32]:
    data = np.asarray(data)
    if data.dtype.kind not in "fiu":
        raise EpochsMismatch(f"data has type {data.dtype.name}, expected real numbers in SI units")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(data, dtype=np.float32)
    finite = np.isfinite(cast).all(axis=2)
    if not finite.all():
        epoch, channel = np.argwhere(~finite)[0]
        name = f" {quoted(str(ch_names[channel]))}" if channel < len(ch_names) else ""
        raise EpochsMismatch(
            f"channel {channel}{name} has NaN or infinite values in epoch {epoch} ({(~finite).sum()} such "
            f"channel-epochs of {finite.size}); remove these epochs or channels"
        )
    return cast


def _as_positions(positions: Any) -> NDArray[np.float32]:
    positions = np.asarray(positions)
    if positions.dtype.kind not in "fiu":
        raise EpochsMismatch(f"positions has type {positions.dtype.name}, expected real numbers in metres")
    with np.errstate(over="ignore"):
        return np.asarray(positions, dtype=np.float32)


def _check_lengths(epochs: SignalEpochs) -> None:
    n_epochs, n_channels, _ = epochs.data.shape
    for name, got, expected in (
        ("ch_names", len(epochs.ch_names), n_channels),
        ("ch_types", len(epochs.ch_types), n_channels),
        ("positions", epochs.positions.shape, (n_channels, 3)),
        ("stimulus", len(epochs.stimulus), n_epochs),
        ("n_averaged", len(epochs.n_averaged), n_epochs),
    ):
        if got != expected:
            raise EpochsMismatch(f"{name} has length {got}, expected {expected} for data {epochs.data.shape}")
    twice = sorted(name for name, times in Counter(epochs.ch_names).items() if times > 1)
    if twice:
        named = ", ".join(map(quoted, twice[:20]))
        raise EpochsMismatch(f"channel names {named} appear more than once; names must be unique")
    unknown = sorted(set(epochs.ch_types) - set(CHANNEL_KINDS))
    if unknown:
        named = ", ".join(map(quoted, unknown[:20]))
        raise EpochsMismatch(f"unknown channel types {named}; allowed are {list(CHANNEL_KINDS)}")
    if not (np.isfinite(epochs.sfreq) and epochs.sfreq > 0 and np.isfinite(epochs.tmin)):
        raise EpochsMismatch(f"sfreq {epochs.sfreq} and tmin {epochs.tmin} must be finite and sfreq positive")
    if min(epochs.n_averaged) < 1:
        raise EpochsMismatch(f"n_averaged {min(epochs.n_averaged)} is below 1; give the number of presentations")
    if max(epochs.n_averaged) > MAX_AVERAGED:
        raise EpochsMismatch(
            f"n_averaged {max(epochs.n_averaged):.1e} is above {MAX_AVERAGED}; give the number of presentations"
        )


def own_description(description: object, n_epochs: int) -> dict[str, Any]:
    """Return the ids and counts that `SignalEpochs.to_mne` left in a description of ``n_epochs`` epochs, or nothing."""
    try:
        notes = json.loads(str(description))
    except ValueError:
        return {}
    if not isinstance(notes, dict) or set(notes) != {"stimulus", "n_averaged"}:
        return {}
    if any(not isinstance(value, list) or len(value) != n_epochs for value in notes.values()):
        return {}
    return notes


def _check_sizes(arrays: dict[str, NDArray[Any]]) -> None:
    """Compare the sizes of the arrays before a text or a number is made of each value."""
    shape = arrays["data"].shape
    _check_shape(shape)
    n_epochs, n_channels, _ = shape
    for name, expected in (
        ("ch_names", n_channels),
        ("ch_types", n_channels),
        ("stimulus", n_epochs),
        ("n_averaged", n_epochs),
        ("subject", 1),
    ):
        if name in arrays and arrays[name].size > expected:
            raise EpochsMismatch(f"{name} has length {arrays[name].size}, expected {expected} for data {shape}")


def _from_npz(file: IO[bytes]) -> SignalEpochs:
    try:
        arrays = read_arrays(file, REQUIRED_ARRAYS, OPTIONAL_ARRAYS)
        _check_sizes(arrays)
        ch_names = strings(arrays["ch_names"], "ch_names")
        guessed = tuple(kind_of_name(name) for name in ch_names)
        return SignalEpochs(
            data=arrays["data"],
            sfreq=number(arrays["sfreq"], "sfreq"),
            tmin=number(arrays["tmin"], "tmin"),
            ch_names=ch_names,
            ch_types=strings(arrays["ch_types"], "ch_types") if "ch_types" in arrays else guessed,
            positions=arrays.get("positions", np.full((len(ch_names), 3), np.nan)),
            subject="".join(strings(arrays["subject"], "subject")) if "subject" in arrays else "",
            stimulus=strings(arrays["stimulus"], "stimulus") if "stimulus" in arrays else (),
            n_averaged=integers(arrays["n_averaged"], "n_averaged") if "n_averaged" in arrays else (),
        )
    except EpochsMismatch:
        raise
    except ValueError as error:
        raise EpochsMismatch(str(error)) from error
