"""Messages of ``/v1/stream``, as pydantic models; clients import this module, so it needs neither torch nor ray.

A connection sends one `StreamStart`, waits for `StreamReady`, and then sends binary chunks of little-endian float32,
(n_channels, n_samples) in row-major order, with `StreamMarker` messages between them, and `StreamEnd` last. Every
stimulus gets one `StreamEpoch` or one `StreamRefused`. Whatever ends the connection early is told as a `StreamProblem`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, model_validator

from encoders.modality import MODALITIES, combination, kind_of_name
from serving.schema import GenerationFields, GenerationResponse, Problem

PROTOCOL = "phosphene"
MAX_MESSAGE_BYTES = 1 << 20
MAX_CHANNELS = 1024
MAX_NAME = 64
MAX_SFREQ = 20_000.0
MAX_VALUES_PER_S = 2_000_000
MAX_STIMULUS = 120
MAX_SAMPLE = 2**53
SI = "SI"
# kind of channel -> unit -> how much of the SI unit it is
UNITS: Mapping[str, Mapping[str, float]] = {
    "eeg": {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "nV": 1e-9},
    "mag": {"T": 1.0, "nT": 1e-9, "pT": 1e-12, "fT": 1e-15},
    "grad": {"T/m": 1.0, "T/cm": 1e2, "fT/cm": 1e-13},
}


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StreamOptions(GenerationFields):
    """How the epochs of a stream are answered: the fields of a generation, except those that have no effect here.

    With ``average`` every stimulus is answered with the mean of all epochs so far whose stimulus has the same name; the
    answer says of how many in ``n_averaged``. An epoch that is refused for its signal is not in it, one that was
    dropped is.
    """

    @model_validator(mode="after")
    def _has_effect(self) -> "StreamOptions":
        if self.onsets:
            raise ValueError("onsets have no effect in a stream, whose stimuli are marked; leave them out")
        return self


class StreamStart(_Message):
    """The first message: what is recorded."""

    type: Literal["start"] = "start"
    modality: str = Field(
        description=f"one of {list(MODALITIES)}, or {combination(list(MODALITIES))!r}: channels of both kinds, on one "
        f"clock; their unit is {SI} then"
    )
    ch_names: tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME)], ...] = Field(
        min_length=1, max_length=MAX_CHANNELS
    )
    ch_types: tuple[str, ...] = Field((), max_length=MAX_CHANNELS, description="left out: by the names")
    positions: tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None, ...] = Field(
        (), max_length=MAX_CHANNELS, description="metres in the head frame; null where unknown; left out: by the names"
    )
    sfreq: FiniteFloat = Field(ge=1.0, le=MAX_SFREQ, description="Hz")
    unit: str = Field(SI, description=f"of all channels: {SI}, or one of {[list(units) for units in UNITS.values()]}")
    marker_channel: str = Field(
        "", description="one more row, after those of ch_names, that holds codes of stimuli, has this name"
    )
    when_busy: Literal["drop", "wait"] = Field(
        "drop",
        description="an epoch that is complete while another is decoded is dropped, and said to be; or the service "
        "stops taking samples until it has time, for recordings that are replayed",
    )
    options: StreamOptions = StreamOptions.model_validate({})

    @model_validator(mode="after")
    def _fits_together(self) -> "StreamStart":
        allowed = [*MODALITIES, combination(list(MODALITIES))]
        if self.modality not in allowed:
            raise ValueError(f"modality is {self.modality!r}, allowed are {allowed}")
        names = [*self.ch_names, *([self.marker_channel] if self.marker_channel else [])]
        if len(set(names)) != len(names):
            raise ValueError("channel names appear more than once; rename them")
        for field in ("ch_types", "positions"):
            given = len(getattr(self, field))
            if given not in (0, len(self.ch_names)):
                raise ValueError(f"{field} has {given} entries for {len(self.ch_names)} channels; give one each")
        if set(self.ch_types) - set(self._known()):
            raise ValueError(
                f"channel types of {self.modality} are {list(self._known())}, got {sorted(set(self.ch_types))}"
            )
        missing = [name for name in self.modality.split("+") if not set(MODALITIES[name].kinds) & set(self.kinds())]
        if missing:
            raise ValueError(f"modality is {self.modality!r}, and no channel is {missing[0]}; name what is sent")
        if self.n_rows * self.sfreq > MAX_VALUES_PER_S:
            raise ValueError(
                f"{self.n_rows} channels at {self.sfreq:g} Hz are more than {MAX_VALUES_PER_S} values per second; "
                "send fewer channels or a lower rate"
            )
        self.per_unit()
        return self

    @property
    def n_rows(self) -> int:
        """Rows of a chunk."""
        return len(self.ch_names) + bool(self.marker_channel)

    def _known(self) -> tuple[str, ...]:
        return tuple(kind for name in self.modality.split("+") for kind in MODALITIES[name].kinds)

    def kinds(self) -> tuple[str, ...]:
        """Return the kind of every channel: as given, or by its name, or the first kind of the modality."""
        if self.ch_types:
            return self.ch_types
        known = self._known()
        guessed = [kind_of_name(name) for name in self.ch_names]
        return tuple(kind if kind in known else known[0] for kind in guessed)

    def per_unit(self) -> tuple[float, ...]:
        """Return the factor of every channel from what is sent to SI units.

        Raises
        ------
        ValueError
            If a channel cannot have the unit.
        """
        if self.unit == SI:
            return (1.0,) * len(self.ch_names)
        factors = [UNITS[kind].get(self.unit) for kind in self.kinds()]
        known = [factor for factor in factors if factor is not None]
        if len(known) != len(factors):
            allowed = sorted({unit for kind in self.kinds() for unit in UNITS[kind]})
            raise ValueError(f"unit is {self.unit!r}, allowed are {SI!r}, and for channels of one kind {allowed}")
        return tuple(known)


class StreamMarker(_Message):
    """A stimulus began at a sample; sent before its samples, or soon after them."""

    type: Literal["marker"] = "marker"
    sample: int = Field(ge=0, lt=MAX_SAMPLE, description="counted from the first one sent, which is 0")
    stimulus: str = Field(
        "", max_length=MAX_STIMULUS, description="free text is answered as 'free text' and a number, as in uploads"
    )


class StreamEnd(_Message):
    """Nothing more comes; what is complete is still answered."""

    type: Literal["end"] = "end"


class StreamReady(_Message):
    """The stream was accepted; these are its bounds."""

    type: Literal["ready"] = "ready"
    bundle_id: str
    tmin: float = Field(description="where epochs begin, in seconds from the stimulus")
    tmax: float
    latency: float = Field(description="seconds from a stimulus until its epoch can be decoded")
    max_ahead: int = Field(description="samples that may be sent beyond the last `received`")
    max_chunk: int = Field(description="samples of one message")
    max_messages_per_s: float
    max_seconds: float


class StreamReceived(_Message):
    """So many samples were taken; who sends faster than they come must heed it."""

    type: Literal["received"] = "received"
    samples: int


class StreamEpoch(_Message):
    """One decoded stimulus.

    The answer is that of `POST /v1/generations` for the same epoch; with `average`, for all of this stimulus so far.
    """

    type: Literal["epoch"] = "epoch"
    number: int = Field(description="of the stimulus, in the order of the markers, from 0")
    sample: int
    stimulus: str
    answer: GenerationResponse


class StreamRefused(_Message):
    """A stimulus without an answer: dropped, cut off, or refused for the reason given."""

    type: Literal["refused"] = "refused"
    number: int
    sample: int
    stimulus: str
    problem: Problem


class StreamProblem(_Message):
    """Why the connection is closed."""

    type: Literal["problem"] = "problem"
    problem: Problem


class StreamSummary(_Message):
    """The last message of a stream that was ended: every marker is in one of the three counts."""

    type: Literal["summary"] = "summary"
    n_samples: int
    n_stimuli: int
    n_answered: int
    n_dropped: int = Field(description="complete while another one was decoded, or the service was full")
    n_refused: int = Field(description="for any other reason")


ServerMessage = StreamReady | StreamReceived | StreamEpoch | StreamRefused | StreamProblem | StreamSummary
ClientMessage = StreamStart | StreamMarker | StreamEnd
FROM_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
FROM_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])
