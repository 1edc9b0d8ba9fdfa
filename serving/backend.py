"""What the routes need from whatever computes: the `Backend` protocol and the plain values that cross it.

Two things implement it: `serving.local_backend.LocalBackend` in this process, and `serving.ray_backend.RayBackend` over
deployments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs
from generation.person_files import PersonFile
from serving.schema import BundleInfo, InputReport, Neighbour

StepCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class BundlePlace:
    """A bundle by its id and where it lies; `key` is what models are loaded and kept by."""

    id: str
    folder: str

    @property
    def key(self) -> str:
        """Id and folder in one word."""
        return f"{self.id}@{self.folder}"

    @classmethod
    def of(cls, key: str) -> "BundlePlace":
        """Read a key."""
        bundle_id, _, folder = key.partition("@")
        return cls(bundle_id, folder)


@dataclass(frozen=True)
class ServedBundle:
    """A bundle as a request uses it, from its first stage to its last, whatever is served meanwhile."""

    place: BundlePlace
    info: BundleInfo


@dataclass(frozen=True)
class Preview:
    """The first picture of a request after some of its steps, as PNG bytes that are marked as generated."""

    step: int
    png: bytes = field(repr=False)


PreviewCallback = Callable[[Preview], None]


@dataclass(frozen=True)
class Watcher:
    """Who is told while pictures are made; previews come only to who listens to steps too."""

    on_step: StepCallback | None = None
    on_preview: PreviewCallback | None = None


NOBODY = Watcher()


@dataclass(frozen=True)
class EmbeddedEpochs:
    """Decoded embeddings of a request, one row per epoch that remains after averaging.

    ``image_embeds`` is (n, d) float32 at CLIP's natural length; ``confidence`` is (n,) in [0, 1]; ``probability`` is
    (n,), NaN where there is none, or empty for a bundle without calibration; ``noise_floor`` is the similarity to the
    nearest picture that 95 of 100 recordings without signal stay below.
    """

    image_embeds: NDArray[np.float32]
    confidence: NDArray[np.float64]
    neighbours: tuple[tuple[Neighbour, ...], ...]
    report: InputReport
    stimulus: tuple[str, ...]
    n_averaged: tuple[int, ...]
    noise_floor: float
    probability: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class PictureOrder:
    """How the pictures of a request are to be made."""

    n_images: int
    seed: int
    num_inference_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Pictures:
    """Generated pictures, (n, n_images, h, w, 3) uint8, and the largest batch that one of them was made in.

    ``flagged`` (n, n_images) bool tells which were replaced by a grey picture; None if nothing was checked.
    """

    images: NDArray[np.uint8] = field(repr=False)
    batch_size: int
    flagged: NDArray[np.bool_] | None = None


class Backend(Protocol):
    """Computes what the routes answer with.

    `embed` raises `EpochsMismatch` for recordings that do not fit, `asyncio.QueueFull` when too much waits, and
    `ConnectionError` when the process that computed was lost.
    """

    def places(self) -> tuple[BundlePlace, ...]:
        """Return the bundles being served; requests that name none get the first."""
        ...

    def rejects(self) -> bool:
        """Tell whether the list of bundles that was given last cannot be served, so that those from before are."""
        ...

    async def describe(self, place: BundlePlace) -> ServedBundle:
        """Describe a bundle; one that is served no more is described as long as its folder is there."""
        ...

    async def ready(self) -> bool:
        """Tell whether every model is loaded and warm."""
        ...

    async def embed(
        self,
        bundle: ServedBundle,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str,
        average: bool,
        people: Sequence[PersonFile] = (),
    ) -> EmbeddedEpochs:
        """Embed one recording, or an EEG and a MEG recording of the same stimuli; ``people`` calibrate to the subject.
        """
        ...

    async def generate(
        self, bundle: ServedBundle, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        """Make pictures; cancelling the awaiting task stops the work at the next step."""
        ...
