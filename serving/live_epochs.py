"""What one live recording is answered with: its messages are understood, its epochs cut and decoded, one at a time."""

import asyncio

import numpy as np
from fastapi import WebSocket
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.live_cutting import CHUNK_S, LiveChannels, LiveCut, LiveCutter, TriggerChannel
from encoders.repetition_means import RepetitionMeans
from serving.access import caller_of
from serving.answers import Answers
from serving.backend import ServedBundle
from serving.event_names import kept_names
from serving.gate import Gate
from serving.metrics import Metrics
from serving.problems import problem_of, refusal
from serving.purpose import check_use
from serving.schema import BundleInfo, FieldError, Problem
from serving.settings import ServingSettings
from serving.stream_inbox import Inbox
from serving.stream_schema import (
    FROM_CLIENT,
    MAX_MESSAGE_BYTES,
    ClientMessage,
    StreamEnd,
    StreamEpoch,
    StreamMarker,
    StreamReady,
    StreamReceived,
    StreamRefused,
    StreamStart,
    StreamSummary,
)

_AHEAD_S = 4.0
_DROPPED = ("epoch_dropped", "too_many_requests", "queue_full")


class LiveEpochs:
    """Answer one stream.

    Parameters
    ----------
    websocket : WebSocket
        Accepted.
    inbox : Inbox
        Filled by another task.
    answers : Answers
    gate : Gate
        Every decoding takes a place among the requests being worked on.
    metrics : Metrics
    settings : ServingSettings
    """

    def __init__(
        self,
        websocket: WebSocket,
        inbox: Inbox,
        answers: Answers,
        gate: Gate,
        metrics: Metrics,
        settings: ServingSettings,
    ) -> None:
        self._websocket, self._inbox = websocket, inbox
        self._answers, self._gate = answers, gate
        self._metrics, self._settings = metrics, settings
        self._decoding: asyncio.Task[None] | None = None
        # float64, so twice what the largest upload may hold
        self._means = RepetitionMeans(int(2 * settings.max_upload_mb * 2**20))
        self._told = 0
        self._numbered: dict[str, str] = {}
        self._counts = {"answered": 0, "dropped": 0, "refused": 0}

    async def answer(self) -> None:
        """Work until the client says that this is the end.

        Raises
        ------
        HTTPException
            For what ends the stream early.
        """
        try:
            start = self._first(await self._inbox.next())
            served = await self._accept(start)
            bundle = served.info
            cutter = _cutter(start, bundle)
            trigger = TriggerChannel() if start.marker_channel else None
            await self._send(self._ready(cutter, start, bundle))
            while True:
                message = await self._inbox.next()
                if message["type"] == "interrupt":
                    await self._wait()
                    continue
                if (text := message.get("text")) is None:
                    await self._take(start, served, cutter, trigger, _chunk(message["bytes"], start))
                    continue
                said = _parse(text)
                if isinstance(said, StreamEnd):
                    break
                await self._mark(start, cutter, said)
            await self._finish(cutter)
        finally:
            if self._decoding is not None:
                self._decoding.cancel()
                await asyncio.gather(self._decoding, return_exceptions=True)

    def _first(self, message: Message) -> StreamStart:
        said = _parse(message["text"]) if message.get("text") is not None else None
        if not isinstance(said, StreamStart):
            raise refusal(
                "no_start", "the first message must be a JSON text with type 'start'; GET this address for its schema"
            )
        return said

    async def _accept(self, start: StreamStart) -> ServedBundle:
        """Choose the bundle of the whole stream: what is served may change while it runs."""
        check_use(self._websocket, start.options)
        served = await self._answers.bundle(start.options.bundle)
        bundle = served.info
        self._answers.check_fields(start.options, served, caller_of(self._websocket).owner)
        if set(start.modality.split("+")) - set(bundle.modalities):
            raise refusal(
                "bad_message", f"modality is {start.modality!r}, this bundle decodes {list(bundle.modalities)}"
            )
        return served

    def _ready(self, cutter: LiveCutter, start: StreamStart, bundle: BundleInfo) -> StreamReady:
        row_bytes = 4 * start.n_rows
        ahead = max(int(_AHEAD_S * start.sfreq), 1)
        self._inbox.max_bytes = ahead * row_bytes + MAX_MESSAGE_BYTES
        bounds = self._settings.streams
        return StreamReady(
            bundle_id=bundle.id,
            tmin=bundle.window.tmin,
            tmax=bundle.window.tmax,
            latency=round(cutter.latency, 4),
            max_ahead=ahead,
            max_chunk=max(min(MAX_MESSAGE_BYTES // row_bytes, round(CHUNK_S * start.sfreq)), 1),
            max_messages_per_s=bounds.max_messages_per_s,
            max_seconds=bounds.max_seconds,
        )

    async def _mark(self, start: StreamStart, cutter: LiveCutter, said: ClientMessage) -> None:
        if not isinstance(said, StreamMarker):
            raise refusal("bad_message", "the stream has begun; send chunks, markers and 'end', and no second start")
        if start.marker_channel:
            raise refusal("bad_message", "stimuli are in the marker_channel of this stream; send no marker messages")
        await self._note(cutter, said.sample, said.stimulus)

    async def _note(self, cutter: LiveCutter, sample: int, stimulus: str) -> None:
        if cutter.n_marks >= self._settings.max_epochs:
            raise refusal(
                "too_many_epochs",
                f"the stream has {cutter.n_marks} stimuli, the most one may have; begin another one to go on",
            )
        number = cutter.n_marks
        (stimulus,) = kept_names([stimulus], "", self._numbered)
        try:
            cutter.mark(sample, stimulus)
        except EpochsMismatch as error:
            await self._refuse(number, sample, stimulus, problem_of(refusal("epochs_mismatch", str(error))))

    async def _take(
        self,
        start: StreamStart,
        served: ServedBundle,
        cutter: LiveCutter,
        trigger: TriggerChannel | None,
        chunk: NDArray[np.float32],
    ) -> None:
        try:
            if trigger is not None:
                for index, code in trigger.push(chunk[-1]):
                    await self._note(cutter, cutter.n_samples + index, str(code))
                chunk = chunk[:-1]
            cuts = cutter.push(chunk)
        except EpochsMismatch as error:
            raise refusal("bad_message", str(error)) from None
        for cut in cuts:
            await self._begin(start, served, cut)
        if cutter.n_samples - self._told >= _AHEAD_S * start.sfreq / 4.0:
            self._told = cutter.n_samples
            await self._send(StreamReceived(samples=cutter.n_samples))

    async def _begin(self, start: StreamStart, served: ServedBundle, cut: LiveCut) -> None:
        """Decode an epoch beside what goes on; one at a time.

        With averaging, what is dropped because another one is decoded is part of the means that follow.
        """
        try:
            epochs = await asyncio.to_thread(cut.epochs)
        except EpochsMismatch as error:
            await self._refuse(cut.number, cut.sample, cut.stimulus, problem_of(refusal("epochs_mismatch", str(error))))
            return
        if start.options.average:
            if not self._means.has_room(epochs):
                sentence = "the stream has too many different stimuli to keep their means; begin another one to go on"
                problem = problem_of(refusal("too_many_epochs", sentence))
                await self._refuse(cut.number, cut.sample, cut.stimulus, problem)
                return
            epochs = self._means.add(epochs)
        if self._decoding is not None and not self._decoding.done():
            if start.when_busy == "drop":
                sentence = "another epoch was being decoded when this one was complete; leave more time between stimuli"
                await self._refuse(cut.number, cut.sample, cut.stimulus, problem_of(refusal("epoch_dropped", sentence)))
                return
        await self._wait()
        self._inbox.patient = True
        self._decoding = asyncio.create_task(self._decode(start, served, cut, epochs))
        self._decoding.add_done_callback(self._rest)

    async def _decode(self, start: StreamStart, served: ServedBundle, cut: LiveCut, epochs: SignalEpochs) -> None:
        try:
            self._websocket.state.still_allowed()
            owner = caller_of(self._websocket).owner
            with self._gate.place():
                async with asyncio.timeout(self._settings.request_timeout_s):
                    answer = await self._answers.of_epochs(start.options, [epochs], served, owner=owner)
            self._websocket.state.still_allowed()
        except TimeoutError:
            problem = problem_of(refusal("timed_out", "decoding the epoch took too long; ask for fewer pictures"))
        except HTTPException as error:
            problem = problem_of(error)
            if problem.status in (401, 403):
                raise
        else:
            self._counts["answered"] += 1
            await self._send(StreamEpoch(number=cut.number, sample=cut.sample, stimulus=cut.stimulus, answer=answer))
            return
        await self._refuse(cut.number, cut.sample, cut.stimulus, problem)

    async def _finish(self, cutter: LiveCutter) -> None:
        await self._wait()
        for number, sample, stimulus in cutter.flush():
            sentence = "the stream ended before the epoch was complete; go on sending for longer than 'latency' says"
            await self._refuse(number, sample, stimulus, problem_of(refusal("epoch_cut_off", sentence)))
        counts = {f"n_{name}": n for name, n in self._counts.items()}
        await self._send(StreamSummary(n_samples=cutter.n_samples, n_stimuli=cutter.n_marks, **counts))

    async def _wait(self) -> None:
        """Wait for the epoch being decoded; what it failed with is raised here."""
        if self._decoding is not None:
            await self._decoding

    def _rest(self, decoding: asyncio.Task[None]) -> None:
        self._inbox.patient = False
        if not decoding.cancelled() and decoding.exception() is not None:
            self._inbox.interrupt()  # what it failed with ends the stream now, not with the next epoch

    async def _refuse(self, number: int, sample: int, stimulus: str, problem: Problem) -> None:
        self._metrics.count_refusal(problem.code)
        self._counts["dropped" if problem.code in _DROPPED else "refused"] += 1
        await self._send(StreamRefused(number=number, sample=sample, stimulus=stimulus, problem=problem))

    async def _send(self, message: BaseModel) -> None:
        await self._websocket.send_text(message.model_dump_json())


def _parse(text: str) -> ClientMessage:
    try:
        return FROM_CLIENT.validate_json(text)
    except ValidationError as error:
        errors = tuple(
            FieldError(
                field=".".join(str(part) for part in item["loc"][1:]) or "message",
                message=item["msg"].removeprefix("Value error, "),
            )
            for item in error.errors(include_input=False, include_url=False)[:20]
        )
        detail = "; ".join(f"{item.field}: {item.message}" for item in errors)
        raise refusal("bad_message", detail, errors=errors) from None


def _chunk(content: bytes, start: StreamStart) -> NDArray[np.float32]:
    row = 4 * start.n_rows
    if not content or len(content) % row:
        raise refusal(
            "bad_message",
            f"a chunk has {len(content)} bytes, expected a positive multiple of {row}: little-endian float32, "
            f"({start.n_rows} channels, samples)",
        )
    return np.frombuffer(content, dtype="<f4").reshape(start.n_rows, -1).astype(np.float32, copy=False)


def _cutter(start: StreamStart, bundle: BundleInfo) -> LiveCutter:
    unknown = (float("nan"),) * 3
    positions = [place or unknown for place in start.positions] or [unknown] * len(start.ch_names)
    channels = LiveChannels(
        sfreq=start.sfreq,
        ch_names=start.ch_names,
        ch_types=start.kinds(),
        positions=np.asarray(positions, dtype=np.float32),
        per_unit=np.asarray(start.per_unit(), dtype=np.float64),
    )
    window = bundle.window
    try:
        return LiveCutter(channels, tmin=window.tmin, tmax=window.tmax, l_freq=window.l_freq, h_freq=window.h_freq)
    except ValueError as error:
        raise refusal(
            "bad_message", f"sfreq {start.sfreq:g} Hz cannot be filtered as this bundle needs: {error}"
        ) from None
