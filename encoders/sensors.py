"""Sensor layouts, and matching of a recording's channels to the layout that a model was trained on.

Channels are matched by name, never by order. EEG positions are MNE's colin27 10-05 electrodes in the
head frame; MEG positions are MNE's canonical helmets moved so that the sphere through the sensors
is centred on the head sphere, because their device frame alone puts sensors inside the head.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.interpolation import field_products, field_weights, spline_weights
from encoders.modality import modality_of
from encoders.quotation import quoted

LayoutName = Literal["things_eeg2_63", "ctf275", "neuromag306"]
HEAD_CENTRE = (0.0, 0.0, 0.04)
UNKNOWN_POSITION = -0.1

THINGS_EEG2_CHANNELS = tuple(
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 Cz "
    "C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz "
    "O2".split()
)
_HELMET_OF_LAYOUT: Mapping[str, str] = {"ctf275": "ctf275", "neuromag306": "neuromag"}
_ALIASES: Mapping[str, str] = {"t3": "t7", "t4": "t8", "t5": "p7", "t6": "p8"}
_REFERENCES = r"ref\d*|reference|le|re|avg?|ave|average|car|ar|a1|a2|m1|m2|a1\+?a2|m1\+?m2|cle|linked|gnd|g\d"
_MAX_LISTED = 70


@dataclass(frozen=True)
class SensorLayout:
    """The ordered sensors that a model expects.

    Attributes
    ----------
    name : str
        What the layout is called in messages and bundles.
    ch_names, ch_types : tuple of str
        One entry per sensor.
    positions : ndarray, (n_channels, 3), float32
        Metres, head frame.
    """

    name: str
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: NDArray[np.float32]

    @property
    def n_channels(self) -> int:
        """Number of sensors."""
        return len(self.ch_names)

    def to_json(self) -> str:
        """Return the layout as JSON; `from_json` gives back equal values."""
        return json.dumps(
            {
                "name": self.name,
                "ch_names": self.ch_names,
                "ch_types": self.ch_types,
                "positions": self.positions.astype(np.float64).tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "SensorLayout":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        positions = np.asarray(fields["positions"], dtype=np.float32).reshape(-1, 3)
        return cls(fields["name"], tuple(fields["ch_names"]), tuple(fields["ch_types"]), positions)


@dataclass(frozen=True)
class ChannelMatch:
    """Epochs on the sensors of a layout, and what it took to get there."""

    epochs: SignalEpochs
    interpolated: tuple[str, ...]
    dropped: tuple[str, ...]


@lru_cache(maxsize=8)
def standard_layout(name: LayoutName) -> SensorLayout:
    """Return a layout that ships with the project.

    ``things_eeg2_63`` has 63 EEG electrodes, ``ctf275`` 274 magnetometer-typed sensors and
    ``neuromag306`` 204 gradiometers and 102 magnetometers. CTF names have no run suffix.
    """
    if name in _HELMET_OF_LAYOUT:
        info = _helmet_info(_HELMET_OF_LAYOUT[name])
        device = np.stack([ch["loc"][:3] for ch in info["chs"]])
        positions = mne.transforms.apply_trans(info["dev_head_t"], device).astype(np.float32)
        return SensorLayout(name, tuple(info.ch_names), tuple(info.get_channel_types()), positions)
    if name == "things_eeg2_63":
        return electrode_layout(name, THINGS_EEG2_CHANNELS)
    raise ValueError(f"unknown layout {name!r}; allowed are {['things_eeg2_63', *_HELMET_OF_LAYOUT]}")


def electrode_layout(name: str, ch_names: Sequence[str]) -> SensorLayout:
    """Give electrodes of the 10-05 system their standard places.

    Raises
    ------
    ValueError
        If a name is not of the 10-05 system.
    """
    info = mne.create_info(list(ch_names), 1000.0, "eeg")
    info.set_montage(mne.channels.make_standard_montage("colin27_1005"), verbose="error")
    positions = np.stack([ch["loc"][:3] for ch in info["chs"]]).astype(np.float32)
    return SensorLayout(name, tuple(ch_names), ("eeg",) * len(ch_names), positions)


def layout_info(layout: SensorLayout, sfreq: float) -> mne.Info:
    """Return an MNE ``Info`` with the layout's sensors, ready for forward models and interpolation.

    Electrodes take the layout's positions (head frame). MEG sensors take coil types and orientations
    from the canonical helmet that has all the names, with ``dev_head_t`` centring it on the head.

    Raises
    ------
    ValueError
        If no helmet has all MEG names.
    """
    modality = modality_of(layout.ch_types)
    if not modality.helmets:
        info = mne.create_info(list(layout.ch_names), sfreq, list(layout.ch_types))
        places = dict(zip(layout.ch_names, layout.positions.astype(np.float64), strict=True))
        return info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"), verbose="error")
    for helmet in modality.helmets:
        canonical = _helmet_info(helmet)
        index = {name: i for i, name in enumerate(canonical.ch_names)}
        if set(layout.ch_names) <= set(index):
            info = mne.pick_info(canonical, [index[name] for name in layout.ch_names], copy=True, verbose="error")
            with info._unlock():
                info["sfreq"] = float(sfreq)
                info["lowpass"] = sfreq / 2.0
            return info
    raise ValueError(f"layout {layout.name!r} fits no known helmet; known are {list(modality.helmets)}")


def layout_positions_2d(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project sensor positions onto a flat map, as the positional code of the brain module wants it.

    Azimuthal equidistant around the vertex, seen from the head's centre, then each axis scaled to
    [0, 1] over the known sensors. Unknown sensors (NaN) get -0.1 on both axes.

    Parameters
    ----------
    positions : ndarray, (n_channels, 3)
        Metres, head frame.

    Returns
    -------
    ndarray, (n_channels, 2), float32

    References
    ----------
    Defossez et al. 2023, Nature Machine Intelligence; min-max scaling and the value -0.1.
    """
    known = np.isfinite(positions).all(axis=1)
    flat = np.full((len(positions), 2), UNKNOWN_POSITION, dtype=np.float32)
    if not known.any():
        return flat
    offset = positions[known].astype(np.float64) - np.asarray(HEAD_CENTRE)
    planar = np.hypot(offset[:, 0], offset[:, 1])
    angle = np.arctan2(planar, offset[:, 2])
    xy = offset[:, :2] / np.maximum(planar, 1e-12)[:, None] * angle[:, None]
    low, span = xy.min(axis=0), np.ptp(xy, axis=0)
    flat[known] = np.where(span > 1e-9, (xy - low) / np.where(span > 1e-9, span, 1.0), 0.5)
    return flat


def channel_key(ch_name: str) -> str:
    """Return the form under which channel names are compared.

    ``Fp1``, ``FP1``, ``Fp1.``, ``EEG Fp1-REF`` and ``Fp1-A1`` are equal, as are ``T3`` and ``T7``
    (and the other three renamed temporal sites), ``MLC11`` and ``MLC11-1609``, ``MEG 0113`` and ``MEG0113``.
    """
    key = ch_name.strip().lower().strip(".")
    key = re.sub(r"^(eeg|meg)[\s_:-]+(?=[a-z])", "", key)
    key = re.sub(rf"\s*[-_:/]\s*({_REFERENCES})$", "", key)
    key = re.sub(r"-\d+$", "", key)
    key = re.sub(r"[\s_.]+", "", key)
    return _ALIASES.get(key, key)


def match_channels(epochs: SignalEpochs, layout: SensorLayout, *, min_fraction: float = 0.75) -> ChannelMatch:
    """Bring a recording onto the sensors of ``layout``, by name.

    Parameters
    ----------
    epochs : SignalEpochs
        Channels in any order, with any of the usual spellings.
    layout : SensorLayout
        Sensors that the model expects.
    min_fraction : float
        Fraction of the layout that must be present. The rest is interpolated from the layout's
        positions: MNE's spherical splines for EEG, minimum-norm field interpolation for MEG.

    Returns
    -------
    ChannelMatch
        Epochs with the layout's names, types, positions and order.

    Raises
    ------
    EpochsMismatch
        If too many sensors are missing, or two channels claim the same sensor.
    """
    rows = _rows_by_layout(epochs, layout)
    missing = tuple(name for name in layout.ch_names if name not in rows)
    if len(rows) < min_fraction * layout.n_channels:
        raise EpochsMismatch(_missing_message(epochs, layout, missing, min_fraction))
    used = set(rows.values())
    dropped = tuple(name for i, name in enumerate(epochs.ch_names) if i not in used)
    present = tuple(name for name in layout.ch_names if name in rows)
    data = np.empty((epochs.n_epochs, layout.n_channels, epochs.n_times), dtype=np.float32)
    index = {name: i for i, name in enumerate(layout.ch_names)}
    known = epochs.data[:, [rows[name] for name in present]]
    data[:, [index[name] for name in present]] = known
    if missing:
        weights = _interpolation_weights(layout.to_json(), missing)
        data[:, [index[name] for name in missing]] = weights @ known.astype(np.float64)
    matched = replace(epochs, data=data, ch_names=layout.ch_names, ch_types=layout.ch_types, positions=layout.positions)
    return ChannelMatch(matched, missing, dropped)


def _rows_by_layout(epochs: SignalEpochs, layout: SensorLayout) -> dict[str, int]:
    wanted = {channel_key(name): (name, kind) for name, kind in zip(layout.ch_names, layout.ch_types, strict=True)}
    rows: dict[str, int] = {}
    for i, (ch_name, ch_type) in enumerate(zip(epochs.ch_names, epochs.ch_types, strict=True)):
        name, kind = wanted.get(channel_key(ch_name), ("", ""))
        if not name:
            continue
        if name in rows:
            raise EpochsMismatch(
                f"channels {quoted(epochs.ch_names[rows[name]])} and {quoted(ch_name)} both stand for sensor {name}; "
                "keep one"
            )
        if ch_type != kind:
            raise EpochsMismatch(
                f"channel {quoted(ch_name)} has type {ch_type!r}, but sensor {name} of {layout.name} is {kind!r}; "
                "correct the channel types"
            )
        rows[name] = i
    return rows


def _missing_message(epochs: SignalEpochs, layout: SensorLayout, missing: tuple[str, ...], min_fraction: float) -> str:
    n_present = layout.n_channels - len(missing)
    needed = int(np.ceil(min_fraction * layout.n_channels))
    listed = ", ".join(missing[:_MAX_LISTED]) + (" ..." if len(missing) > _MAX_LISTED else "")
    got = ", ".join(map(quoted, epochs.ch_names[:10])) + (" ..." if epochs.n_channels > 10 else "")
    return (
        f"only {n_present} of the {layout.n_channels} channels of {layout.name} are in the recording, expected at "
        f"least {needed}; missing: {listed}; the recording's {epochs.n_channels} channels are {got}; "
        "rename or add channels"
    )


@lru_cache(maxsize=64)
def _interpolation_weights(layout_json: str, missing: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the weights (n_missing, n_present) that predict ``missing`` from the layout's other sensors."""
    layout = SensorLayout.from_json(layout_json)
    rows = [layout.ch_names.index(name) for name in missing]
    if modality_of(layout.ch_types).helmets:
        return field_weights(*_field_products(layout_json), rows)
    return spline_weights(layout_info(layout, 1000.0), rows, _sphere_centre(layout.positions.astype(np.float64)))


@lru_cache(maxsize=8)
def _field_products(layout_json: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return field_products(layout_info(SensorLayout.from_json(layout_json), 1000.0), HEAD_CENTRE)


@lru_cache(maxsize=8)
def _helmet_info(helmet: str) -> mne.Info:
    info = mne.channels.read_meg_canonical_info(helmet)
    mne.rename_channels(info, {name: re.sub(r"-\d+$", "", name) for name in info.ch_names}, verbose="error")
    centre = _sphere_centre(np.stack([ch["loc"][:3] for ch in info["chs"]]))
    shift = mne.transforms.translation(*(np.asarray(HEAD_CENTRE) - centre))
    with info._unlock():
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", shift)
    return info


def _sphere_centre(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre of the least-squares sphere through ``points`` (n, 3)."""
    design = np.column_stack([2.0 * points, np.ones(len(points))])
    solution = np.linalg.lstsq(design, (points**2).sum(axis=1), rcond=None)[0]
    centre: NDArray[np.float64] = solution[:3]
    return centre
