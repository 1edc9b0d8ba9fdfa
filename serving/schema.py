"""Requests, answers and refusals of the HTTP interface, as pydantic models.

The client imports this module, so it needs pydantic only. Durations are in milliseconds here and nowhere else.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serving.wording import PictureKind, confidence_in_words, notice_of

MAX_FILES = 2
MAX_UPLOAD_MB = 64.0
MAX_IMAGES = 8
MAX_EPOCHS = 512
MAX_PICTURES = 512
MAX_STEPS = 100
MAX_ONSETS = 512
MAX_SEED = 2**31 - 1


Verdict = Literal["passed", "refused", "not checked"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddingFields(_Frozen):
    """Form fields that say how recordings become embeddings."""

    average: bool = Field(False, description="average the epochs of one stimulus before decoding")
    bundle: str = Field("", max_length=64, description="id of a bundle of `GET /v1/bundles`; empty means the default")
    subject: str = Field(
        "", max_length=64, description="a person the bundle knows or is calibrated to; empty means unknown"
    )
    onsets: str = Field(
        "",
        max_length=16 * MAX_ONSETS,
        description=f"stimulus onsets of a continuous file in seconds, comma-separated, at most {MAX_ONSETS}",
        examples=["0.5,2.0,3.5"],
    )
    preview: bool = Field(False, description="add sensor traces and 2-D sensor positions to the answer")
    purpose: str = Field("", max_length=40, description="what the recording is decoded for; some services require it")
    consent: bool = Field(False, description="the recorded person agreed to this purpose; some services require it")

    @field_validator("onsets")
    @classmethod
    def _onsets_are_seconds(cls, value: str) -> str:
        _seconds(value)
        return value

    def onset_seconds(self) -> tuple[float, ...]:
        """Return the onsets as numbers, in seconds."""
        return _seconds(self.onsets)


class GenerationFields(EmbeddingFields):
    """Form fields of a generation; what is left out comes from the bundle."""

    images: int = Field(1, ge=1, le=MAX_IMAGES, description=f"pictures per epoch, at most {MAX_IMAGES}")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="same seed, same pictures")
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS, description=f"at most {MAX_STEPS}")
    guidance_scale: float | None = Field(None, ge=1.0, le=20.0, description="1 switches guidance off")


def _seconds(text: str) -> tuple[float, ...]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > MAX_ONSETS:
        raise ValueError(f"onsets holds {len(parts)} times, at most {MAX_ONSETS} are taken; send fewer")
    try:
        seconds = tuple(float(part) for part in parts)
    except ValueError:
        raise ValueError(f"onsets must be seconds separated by commas such as 0.5,2.0, got {text[:80]!r}") from None
    if any(not 0.0 <= second < 1e6 for second in seconds):
        raise ValueError(f"onsets must lie between 0 and 1e6 seconds, got {text[:80]!r}")
    return seconds


_CONFIDENCE = (
    "percentile among recordings without any signal; of a bundle whose pictures are 'category', the probability of the "
    "decoded category"
)
_PROBABILITY = (
    "calibrated chance that the first neighbour is the picture shown, if the gallery holds it, or that the category is "
    "right; null where the bundle has no calibration for so few presentations"
)


class Neighbour(_Frozen):
    """A gallery picture near the decoded embedding."""

    name: str
    caption: str
    similarity: float = Field(description="cosine of the embeddings; of a category bundle, the category's probability")
    thumbnail: str = Field("", description="base64 PNG of the gallery picture, empty if the bundle has none")


class EpochPictures(_Frozen):
    """What one epoch was decoded to."""

    index: int
    stimulus: str
    n_averaged: int = Field(description="presentations averaged into this epoch")
    confidence: float = Field(ge=0.0, le=1.0, description=_CONFIDENCE)
    confidence_words: str
    probability: float | None = Field(None, ge=0.0, le=1.0, description=_PROBABILITY)
    neighbours: tuple[Neighbour, ...]
    images: tuple[str, ...] = Field(description="base64 PNG; the metadata says whether generated or retrieved")
    safety: tuple[Verdict, ...] = Field(
        (), description="per generated picture; a refused one is replaced by a grey one"
    )


class EpochEmbedding(_Frozen):
    """The embedding of one epoch."""

    index: int
    stimulus: str
    n_averaged: int
    confidence: float = Field(ge=0.0, le=1.0, description=_CONFIDENCE)
    confidence_words: str
    probability: float | None = Field(None, ge=0.0, le=1.0, description=_PROBABILITY)
    neighbours: tuple[Neighbour, ...]
    embedding: tuple[float, ...] = Field(description="CLIP image embedding at its natural length")


class SignalFlag(_Frozen):
    """Something about a recording that makes its answers doubtful; `code` is stable and meant for programs."""

    code: str
    epochs: tuple[int, ...]
    detail: str


class InputReport(_Frozen):
    """What was done to the recording so that it fits the bundle."""

    modalities: tuple[str, ...] = ()
    subject: str = Field("", description="the known person whose layers were used; empty for an unknown one")
    interpolated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    flags: tuple[SignalFlag, ...] = Field((), description="gross faults of the signal: do not rely on these epochs")
    calibration: Literal["", "label-free", "few-shot"] = Field("", description="to this person, if one was used")
    calibration_words: str = Field("", description="what it was fitted on, and what it does not change")


class SignalPreview(_Frozen):
    """A decimated view of one uploaded recording: the mean over its epochs."""

    kind: str = Field(description="channel kind: eeg, mag or grad")
    unit: str
    scale: float = Field(description="traces times scale are SI units")
    times_ms: tuple[float, ...]
    ch_names: tuple[str, ...]
    traces: tuple[tuple[float, ...], ...]
    positions: tuple[tuple[float, float] | None, ...] = Field(description="2-D, in [0, 1]; null where unknown")


class Timings(_Frozen):
    """Where the time of a request went, in milliseconds."""

    read_ms: float
    embed_ms: float
    generate_ms: float = 0.0
    encode_ms: float = 0.0
    total_ms: float
    batch_size: int = Field(0, description="largest batch that held one of these pictures")


_FLOOR = "similarity to the nearest gallery picture that 95 of 100 recordings without signal stay below"


class GenerationResponse(_Frozen):
    """The answer of `POST /v1/generations`."""

    id: str
    bundle_id: str
    preprocessing_hash: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    pictures: PictureKind = "generated"
    notice: str = notice_of("generated")
    noise_floor: float = Field(description=_FLOOR)
    epochs: tuple[EpochPictures, ...]
    report: InputReport
    timings: Timings
    preview: tuple[SignalPreview, ...] = ()


class EmbeddingResponse(_Frozen):
    """The answer of `POST /v1/embeddings`."""

    id: str
    bundle_id: str
    preprocessing_hash: str
    noise_floor: float = Field(description=_FLOOR)
    epochs: tuple[EpochEmbedding, ...]
    report: InputReport
    timings: Timings
    preview: tuple[SignalPreview, ...] = ()


class CutWindow(_Frozen):
    """How continuous files are filtered and cut, seconds and hertz."""

    tmin: float = -0.2
    tmax: float = 1.0
    l_freq: float | None = None
    h_freq: float | None = None


class Limits(_Frozen):
    """What a request may ask for."""

    max_files: int = MAX_FILES
    max_upload_mb: float = MAX_UPLOAD_MB
    max_epochs: int = MAX_EPOCHS
    max_pictures: int = MAX_PICTURES
    max_images: int = MAX_IMAGES
    max_steps: int = MAX_STEPS


class BundleInfo(_Frozen):
    """A bundle that is being served."""

    id: str
    default: bool = Field(False, description="whether requests that name no bundle get this one")
    schema_version: int
    data_statement: str
    modalities: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = Field((), description="people of the caller's that it is calibrated to")
    embed_dim: int
    image_size: int
    preprocessing_hash: str
    window: CutWindow
    num_inference_steps: int
    guidance_scale: float
    pictures: PictureKind = Field("generated", description="or retrieved from the gallery: nearest, category")
    scores: dict[str, object] = {}
    limits: Limits = Limits()


class BundleList(_Frozen):
    """The answer of `GET /v1/bundles`: what is served, the default one first, and what every request must say."""

    bundles: tuple[BundleInfo, ...]
    purposes: tuple[str, ...] = Field((), description="what recordings may be decoded for")
    purpose_required: bool = Field(False, description="whether a request must name one of them")
    consent_required: bool = Field(False, description="whether a request must say that the recorded person agreed")


class Progress(_Frozen):
    """One `progress` event of a streamed generation."""

    stage: Literal["read", "embed", "generate", "encode"]
    step: int
    n_steps: int


class FieldError(_Frozen):
    """One form field that was refused."""

    field: str
    message: str


class Problem(_Frozen):
    """A refusal, RFC 9457; `code` is stable and meant for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: tuple[FieldError, ...] = ()


_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_EXAMPLE_EPOCH: dict[str, object] = {
    "index": 0,
    "stimulus": "scene 17",
    "n_averaged": 4,
    "confidence": 0.997,
    "confidence_words": confidence_in_words(0.997),
    "neighbours": [{"name": "scene-00412", "caption": "a red star on grass", "similarity": 0.71, "thumbnail": _PNG}],
}
_EXAMPLE_HEAD: dict[str, object] = {
    "id": "0f6e0c4b7d6b4c0e9f9f5b6f3f1f2a3b",
    "bundle_id": "demo-1",
    "preprocessing_hash": "9f2c1e7a",
    "noise_floor": 0.42,
    "report": {"modalities": ["eeg"], "interpolated": ["FT9"], "dropped": ["EOG1"], "warnings": []},
}
_EXAMPLE_TIMINGS: dict[str, object] = {"read_ms": 31.0, "embed_ms": 9.0, "total_ms": 48.0}
EXAMPLE_GENERATION: dict[str, object] = GenerationResponse.model_validate(
    _EXAMPLE_HEAD
    | {"seed": 7, "num_inference_steps": 25, "guidance_scale": 2.0, "epochs": [_EXAMPLE_EPOCH | {"images": [_PNG]}]}
    | {"timings": _EXAMPLE_TIMINGS | {"generate_ms": 640.0, "encode_ms": 2.0, "total_ms": 684.0, "batch_size": 1}}
).model_dump(mode="json")
EXAMPLE_EMBEDDING: dict[str, object] = EmbeddingResponse.model_validate(
    _EXAMPLE_HEAD | {"epochs": [_EXAMPLE_EPOCH | {"embedding": [0.12, -0.5, 0.03]}], "timings": _EXAMPLE_TIMINGS}
).model_dump(mode="json")
