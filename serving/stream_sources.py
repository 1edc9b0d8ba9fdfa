"""Where ``phosphene stream`` gets its samples: a file that is replayed, or an amplifier on the lab streaming layer."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.continuous import ContinuousRecording
from encoders.modality import CHANNEL_KINDS, MODALITIES, combination, kind_of_name
from serving.stream_schema import SI, UNITS, StreamOptions, StreamStart

Samples = NDArray[np.float32]

CHUNK_S = 0.1
_RESOLVE_S = 10.0
_PULL_S = 0.2
_CLOCK_PROBE_S = 5.0
# what streams write for a unit -> what the service calls it
_SPELLINGS = {"microvolts": "uV", "microvolt": "uV", "volts": "V", "volt": "V", "millivolts": "mV", "tesla": "T"}
_SPELLINGS |= {"nanovolts": "nV", "femtotesla": "fT", "picotesla": "pT"}


@dataclass(frozen=True)
class Piece:
    """The next samples (n_channels, n) float32, and the stimuli (sample, text) that became known with them."""

    data: Samples
    stimuli: tuple[tuple[int, str], ...] = ()


class StreamSource(Protocol):
    """Samples that come by and by."""

    def start(self, options: StreamOptions) -> StreamStart:
        """Describe the recording."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Yield the samples as they come; ends with the recording."""
        ...


class FileReplay:
    """Replay a continuous recording.

    Parameters
    ----------
    recording : ContinuousRecording
    speed : float
        1 is real time; 0 sends as fast as the service takes it.
    """

    def __init__(self, recording: ContinuousRecording, speed: float) -> None:
        if not (math.isfinite(speed) and speed >= 0.0):
            raise ValueError(f"speed is {speed}, expected 0 or more; 1 is real time, 0 as fast as possible")
        self._recording = recording
        self._speed = speed

    def start(self, options: StreamOptions) -> StreamStart:
        """Describe the recording; at real time nobody waits for a service that lags behind: it drops epochs."""
        one = self._recording
        places = [None if not np.isfinite(place).all() else tuple(map(float, place)) for place in one.positions]
        return StreamStart(
            modality=combination([CHANNEL_KINDS[kind].modality for kind in one.ch_types]),
            ch_names=one.ch_names,
            ch_types=one.ch_types,
            positions=tuple(places),
            sfreq=one.sfreq,
            unit=SI,
            when_busy="drop" if self._speed == 1.0 else "wait",
            options=options,
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield chunks of a tenth of a second, each when it is due."""
        one = self._recording
        step = max(round(CHUNK_S * one.sfreq), 1)
        began = time.monotonic()
        for first in range(0, one.data.shape[1], step):
            if self._speed:
                due = began + (first + step) / one.sfreq / self._speed
                time.sleep(max(due - time.monotonic(), 0.0))
            inside = tuple(stimulus for stimulus in one.stimuli if first <= stimulus[0] < first + step)
            yield Piece(one.data[:, first : first + step], inside)


class LslInlet:
    """Take the samples of a lab streaming layer stream, and stimuli from a marker stream.

    Both clocks are corrected to this machine's, and a marker is put on the sample nearest to its time.

    Parameters
    ----------
    name : str
        Of the stream of samples.
    marker_name : str
        Of the stream of markers; empty if a channel holds them.
    seconds : float
        How long to record; infinite until interrupted.
    marker_channel : str
        Label of the channel that holds codes of stimuli, if one does.

    Raises
    ------
    ValueError
        If there is no such stream, or pylsl is not installed.
    """

    def __init__(
        self, name: str, marker_name: str = "", *, seconds: float = math.inf, marker_channel: str = ""
    ) -> None:
        if bool(marker_name) == bool(marker_channel):
            raise ValueError("name either a marker stream or a marker channel, which say when stimuli began")
        self._lsl = _library()
        flags = self._lsl.proc_clocksync | self._lsl.proc_dejitter
        self._samples = self._lsl.StreamInlet(self._found(name), max_buflen=60, processing_flags=flags)
        # markers come when they come: smoothing would invent a regular clock for them
        self._markers = None
        if marker_name:
            self._markers = self._lsl.StreamInlet(
                self._found(marker_name), max_buflen=60, processing_flags=self._lsl.proc_clocksync
            )
        self._seconds = seconds
        self._marker_channel = marker_channel
        self._info = self._samples.info(_RESOLVE_S)
        self._labels, self._rows, self._unit = _described(self._info, marker_channel)

    def start(self, options: StreamOptions) -> StreamStart:
        """Describe the stream, as far as it describes itself."""
        kinds = {kind_of_name(label) for label in self._labels}
        modality = next((name for name, one in MODALITIES.items() if kinds <= set(one.kinds)), "")
        if not modality:
            raise ValueError(f"the stream has channels of several kinds {sorted(kinds)}; send one modality")
        return StreamStart(
            modality=modality,
            ch_names=self._labels,
            sfreq=self._info.nominal_srate(),
            unit=self._unit,
            marker_channel=self._marker_channel,
            options=options,
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield what has come, until the time is up."""
        for inlet in (self._samples, self._markers):
            if inlet is not None:
                inlet.open_stream(_RESOLVE_S)
                inlet.time_correction(_CLOCK_PROBE_S)
        sfreq = self._info.nominal_srate()
        longest = max(int(sfreq), 1)
        ends = time.monotonic() + self._seconds
        n_samples, newest, early = 0, math.nan, list[tuple[float, str]]()
        while time.monotonic() < ends:
            rows, stamps = self._samples.pull_chunk(_PULL_S, longest)
            if self._markers is not None:
                texts, times = self._markers.pull_chunk(0.0, 256)
                early += [(at, str(text[0])) for text, at in zip(texts, times, strict=True)]
            if not rows:
                continue
            data = np.asarray(rows, dtype=np.float32).T[self._rows]
            n_samples, newest = n_samples + data.shape[1], stamps[-1]
            known = [(n_samples - 1 + round((at - newest) * sfreq), text, at) for at, text in early]
            # a marker beyond the newest sample waits, so that its sample is found when it is near
            early = [(at, text) for sample, text, at in known if sample >= n_samples]
            yield Piece(data, tuple((sample, text) for sample, text, _ in known if 0 <= sample < n_samples))

    def close(self) -> None:
        """Leave the streams."""
        for inlet in (self._samples, self._markers):
            if inlet is not None:
                inlet.close_stream()

    def _found(self, name: str) -> Any:
        found = self._lsl.resolve_byprop("name", name, minimum=1, timeout=_RESOLVE_S)
        if not found:
            raise ValueError(
                f"no stream is called {name!r} here (waited {_RESOLVE_S:g} s); start it, or check the name"
            )
        return found[0]


def read_continuous(path: Path, onsets: str) -> ContinuousRecording:
    """Read a recording to be replayed; `onsets` in seconds, comma-separated, or empty for the file's events."""
    from encoders.continuous import read_recording
    from serving.schema import EmbeddingFields

    return read_recording(path, EmbeddingFields(onsets=onsets).onset_seconds() or None)


def _library() -> Any:
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"the lab streaming layer needs pylsl and liblsl ({error}); pip install phosphene[lsl]"
        ) from None
    return pylsl


def _described(info: Any, marker_channel: str) -> tuple[tuple[str, ...], list[int], str]:
    """Return labels, rows with the marker channel last, and the unit that a stream's description gives."""
    labels, units = list[str](), set[str]()
    channel = info.desc().child("channels").child("channel")
    while not channel.empty():
        label = channel.child_value("label")
        if label != marker_channel:
            units.add(channel.child_value("unit"))
        labels.append(label)
        channel = channel.next_sibling("channel")
    if len(labels) != info.channel_count() or not all(labels):
        raise ValueError(
            f"the stream has {info.channel_count()} channels and {len([x for x in labels if x])} labels; let its "
            "outlet write desc/channels/channel/label for each"
        )
    if marker_channel and marker_channel not in labels:
        raise ValueError(f"the stream has no channel {marker_channel!r}; it has {labels[:70]}")
    signal = [label for label in labels if label != marker_channel]
    known = {unit for table in UNITS.values() for unit in table}
    found = {_SPELLINGS.get(unit.lower(), unit) for unit in units}
    if len(found) != 1 or not found <= known:
        raise ValueError(
            f"the stream gives the units {sorted(units)}, expected one of {sorted(known)} for all channels"
        )
    rows = [labels.index(label) for label in signal] + ([labels.index(marker_channel)] if marker_channel else [])
    return tuple(signal), rows, found.pop()
