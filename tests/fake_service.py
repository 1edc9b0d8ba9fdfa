"""A backend without models, and a server around it, for tests of everything between HTTP and the models."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.person_files import PersonFile
from serving.answers import Answers
from serving.backend import (
    NOBODY,
    Backend,
    BundlePlace,
    EmbeddedEpochs,
    PictureOrder,
    Pictures,
    Preview,
    ServedBundle,
    Watcher,
)
from serving.cluster import free_port
from serving.job_desk import JobDesk
from serving.job_worker import JobWorker
from serving.metrics import Metrics
from serving.people import People
from serving.rendering import encode_png, to_base64
from serving.routes import create_app
from serving.sandbox import open_sandbox
from serving.schema import BundleInfo, CutWindow, InputReport, Neighbour
from serving.settings import ServingSettings

CH_NAMES = ("Fp1", "F1", "Cz", "C3", "C4", "Pz", "P3", "P4", "O1", "Oz", "O2")
IMAGE_SIZE = 32
INFO = BundleInfo(
    id="fake-1",
    schema_version=1,
    data_statement="Everything here is simulated.",
    modalities=("eeg",),
    subjects=("sim-01",),
    embed_dim=8,
    image_size=IMAGE_SIZE,
    preprocessing_hash="0" * 64,
    window=CutWindow(),
    num_inference_steps=4,
    guidance_scale=2.0,
)


class FakeBackend:
    """Embeds by averaging named channels and paints one colour per seed; counts what was started and ended."""

    def __init__(self, *, step_s: float = 0.0, bundle_ids: Sequence[str] = (INFO.id,)) -> None:
        self.step_s = step_s
        self.bundle_ids = tuple(bundle_ids)
        self.people: list[tuple[PersonFile, ...]] = []
        self.n_started = 0
        self.n_finished = 0
        self.is_ready = True
        self.failure: Exception | None = None

    def places(self) -> tuple[BundlePlace, ...]:
        return tuple(BundlePlace(one, "unused") for one in self.bundle_ids)

    def rejects(self) -> bool:
        return False

    async def describe(self, place: BundlePlace) -> ServedBundle:
        return ServedBundle(place, INFO.model_copy(update={"id": place.id}))

    async def ready(self) -> bool:
        return self.is_ready

    async def embed(
        self,
        bundle: ServedBundle,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str,
        average: bool,
        people: Sequence[PersonFile] = (),
    ) -> EmbeddedEpochs:
        self.people.append(tuple(people))
        if self.failure is not None:
            raise self.failure
        epochs = recordings[0].average_repetitions() if average else recordings[0]
        missing = [name for name in CH_NAMES if name not in epochs.ch_names]
        if missing:
            raise EpochsMismatch(f"the recording lacks the channels {missing}; record or interpolate them")
        means = epochs.pick(CH_NAMES).data.mean(axis=2)
        thumbnail = to_base64(encode_png(np.full((8, 8, 3), 200, dtype=np.uint8)))
        near = (Neighbour(name="scene-1", caption="a red star on grass", similarity=0.5, thumbnail=thumbnail),)
        return EmbeddedEpochs(
            image_embeds=np.ascontiguousarray(means[:, : INFO.embed_dim], dtype=np.float32),
            confidence=np.linspace(0.2, 0.999, epochs.n_epochs),
            neighbours=(near,) * epochs.n_epochs,
            report=InputReport(modalities=("eeg",), dropped=tuple(sorted(set(epochs.ch_names) - set(CH_NAMES)))),
            stimulus=epochs.stimulus,
            n_averaged=epochs.n_averaged,
            noise_floor=0.4,
        )

    async def generate(
        self, bundle: ServedBundle, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        self.n_started += 1
        for step in range(order.num_inference_steps):
            await asyncio.sleep(self.step_s)
            if watcher.on_step is not None:
                watcher.on_step(step + 1, order.num_inference_steps)
            if watcher.on_preview is not None:
                picture = np.full((8, 8, 3), 10 * step, dtype=np.uint8)
                watcher.on_preview(Preview(step + 1, encode_png(picture, {"phosphene:preview": str(step + 1)})))
        self.n_finished += 1
        shape = (len(image_embeds), order.n_images, IMAGE_SIZE, IMAGE_SIZE, 3)
        return Pictures(np.random.default_rng(order.seed).integers(0, 255, shape).astype(np.uint8), 1)


def make_epochs(n_epochs: int = 2, *, ch_names: Sequence[str] = CH_NAMES, seed: int = 0) -> SignalEpochs:
    """Make EEG epochs of 10 uV noise whose channels depend on their names only."""
    columns = [
        np.random.default_rng((seed, sum(map(ord, name)))).normal(scale=1e-5, size=(n_epochs, 100)) for name in ch_names
    ]
    return SignalEpochs(
        data=np.stack(columns, axis=1).astype(np.float32),
        sfreq=100.0,
        tmin=-0.1,
        ch_names=tuple(ch_names),
        ch_types=("eeg",) * len(ch_names),
        positions=np.full((len(ch_names), 3), np.nan, dtype=np.float32),
        stimulus=tuple(f"scene {index // 2}" for index in range(n_epochs)),
    )


def never_read(url: str, request: httpx.Request) -> socket.socket:
    """Send a request over a connection that takes next to nothing of the answer, since nobody reads it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", httpx.URL(url).port))
    head = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1", *map(": ".join, request.headers.items())]
    connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + request.read())
    return connection


def with_worker(app: ASGIApp, worker: JobWorker) -> ASGIApp:
    """Let the loop of a worker run in the event loop of a server, from the first request on."""
    tasks: list[asyncio.Task[None]] = []

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if not tasks and scope["type"] == "http":
            tasks.append(asyncio.create_task(worker.run()))
        await app(scope, receive, send)

    return call


@contextmanager
def fake_service(
    settings: ServingSettings, backend: Backend, example: Path | None = None, *, worker: bool = True
) -> Iterator[str]:
    """Run the interface over `backend` in a thread, and a jobs worker if jobs have a folder; yield its base URL."""
    port = free_port()
    sandbox = open_sandbox(settings)
    desk = JobDesk(settings.jobs) if settings.jobs.folder else None
    app = create_app(settings, backend, sandbox, lambda: example, desk)
    answers = Answers(backend, sandbox, Metrics(), people=People(settings.people_folder))
    if desk is not None and worker:
        app = with_worker(
            app,
            JobWorker(
                settings.jobs,
                answers.generation,
                bundles=lambda: [place.id for place in backend.places()],
                stack="fake",
            ),
        )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60.0
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10.0)
