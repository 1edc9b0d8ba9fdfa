"""A live recording over the WebSocket: answers as for uploads whatever the chunks, and every bound holds."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import CH_NAMES, FakeBackend, fake_service
from tiny_bundle import LAYOUTS, make_tiny_bundle, tiny_recording
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from encoders.epochs import SignalEpochs
from encoders.live_cutting import LiveChannels, LiveCutter
from encoders.sensors import standard_layout
from serving.access_settings import AccessSettings
from serving.audit import verify
from serving.local_backend import LocalBackend
from serving.page import live_example
from serving.schema import GenerationResponse
from serving.settings import ServingSettings, StreamSettings
from serving.stream_client import StreamClient
from serving.stream_schema import MAX_MESSAGE_BYTES, StreamEpoch, StreamOptions, StreamRefused, StreamStart
from serving.user_groups import (
    AccessFile,
    GroupDescription,
    Quota,
    create_group,
    read_access_file,
    revoke_user,
    write_access_file,
)

SFREQ = 100.0
LAYOUT = standard_layout("things_eeg2_63")
OPTIONS = {"num_inference_steps": 1}
EEG = {"modality": "eeg", "ch_names": list(LAYOUT.ch_names), "sfreq": SFREQ, "unit": "uV", "when_busy": "wait"}
SMALL = {"type": "start", "modality": "eeg", "ch_names": list(CH_NAMES), "sfreq": SFREQ, "unit": "uV"}
MARKS = {60: "one", 200: "two", 215: "three", 450: "four"}


def recording(n_channels: int = 63, n: int = 600, scale: float = 10.0) -> np.ndarray:
    """Noise of some microvolts with an offset."""
    noise = np.random.default_rng(7).standard_normal((n_channels, n))
    return (scale * (noise + 3.0)).astype(np.float32)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real application over a tiny bundle's real models."""
    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle"),
        streams=StreamSettings(max_messages_per_s=1e5),
    )
    with fake_service(settings, LocalBackend(settings)) as address:  # type: ignore[arg-type]
        yield address


def streamed(
    url: str, data: np.ndarray, size: int, marks: dict[int, str], **start: Any
) -> dict[int, StreamEpoch | StreamRefused]:
    """Push a recording in chunks of `size`, each mark just before the chunk that holds it; return what came back."""
    given = StreamStart(**EEG | {"options": StreamOptions(**OPTIONS)} | start)
    found: dict[int, StreamEpoch | StreamRefused] = {}
    left = sorted(marks)
    with StreamClient(url, given) as client:
        for first in range(0, data.shape[1], size):
            while left and left[0] < first + size:
                client.mark(left[0], marks[left.pop(0)])
            client.push(data[:, first : first + size])
            found |= {one.number: one for one in client.answers()}
        found |= {one.number: one for one in client.finish()}
        assert client.summary is not None and client.summary.n_samples == data.shape[1]
        assert client.summary.n_stimuli == len(found) == len(marks), "every stimulus is told of once"
    return found


def test_the_chunks_do_not_change_the_answers(url: str) -> None:
    data = recording()
    whole = streamed(url, data, 200, MARKS)
    assert [one.stimulus for _, one in sorted(whole.items())] == list(MARKS.values())
    for size in (1, 7, 25):
        parts = streamed(url, data, size, MARKS)
        for number, epoch in parts.items():
            other = whole[number]
            assert isinstance(epoch, StreamEpoch) and isinstance(other, StreamEpoch)
            assert (epoch.sample, epoch.answer.epochs, epoch.answer.noise_floor, epoch.answer.report) == (
                other.sample, other.answer.epochs, other.answer.noise_floor, other.answer.report,
            )  # fmt: skip
            assert epoch.answer.epochs[0].images[0]


def test_the_answer_is_that_of_the_uploaded_epoch(url: str) -> None:
    data = recording()
    live = streamed(url, data, 50, {200: "two"})[0]
    filed = uploaded(url, cut_epochs(eeg_channels(), data, {200: "two"}))
    assert isinstance(live, StreamEpoch)
    assert live.answer.epochs == filed.epochs and live.answer.noise_floor == filed.noise_floor
    assert live.answer.notice == filed.notice and live.answer.seed == filed.seed


def test_free_text_of_markers_is_numbered_as_that_of_uploads(url: str) -> None:
    text, other = "Anna Weiss, 3.4.1990", "second visit of Anna"
    marks = {60: text, 200: "face", 330: other, 450: text, 590: other}  # the last is cut off
    options = StreamOptions(**OPTIONS, average=True)
    found = [one for _, one in sorted(streamed(url, recording(n=600), 50, marks, options=options).items())]
    assert [one.stimulus for one in found] == ["free text 1", "face", "free text 2", "free text 1", "free text 2"]
    assert isinstance(found[-1], StreamRefused)
    for one in found[:-1]:
        assert isinstance(one, StreamEpoch) and one.answer.epochs[0].stimulus == one.stimulus
        warned = any("free text" in warning for warning in one.answer.report.warnings)
        assert warned == one.stimulus.startswith("free text")
    assert isinstance(found[3], StreamEpoch) and found[3].answer.epochs[0].n_averaged == 2
    assert not any("Anna" in one.model_dump_json() for one in found)


def eeg_channels() -> LiveChannels:
    n = len(LAYOUT.ch_names)
    return LiveChannels(SFREQ, LAYOUT.ch_names, LAYOUT.ch_types, np.full((n, 3), np.nan, np.float32), np.full(n, 1e-6))


def cut_epochs(channels: LiveChannels, data: np.ndarray, marks: dict[int, str]) -> SignalEpochs:
    """Cut as a stream does, into one recording; the marks are far enough apart to come in their order."""
    cutter = LiveCutter(channels, tmin=-0.3, tmax=0.83, l_freq=0.1, h_freq=40.0)
    for sample, stimulus in marks.items():
        cutter.mark(sample, stimulus)
    cuts = [cut.epochs() for first in range(0, data.shape[1], 200) for cut in cutter.push(data[:, first : first + 200])]
    return replace(cuts[0], data=np.concatenate([one.data for one in cuts]), stimulus=tuple(marks.values()),
                   n_averaged=(1,) * len(cuts))  # fmt: skip


def uploaded(url: str, epochs: SignalEpochs, **fields: Any) -> GenerationResponse:
    with httpx.Client(base_url=url, trust_env=False, timeout=60.0) as http:
        response = http.post("/v1/generations", files={"file": epochs.to_bytes()}, data=OPTIONS | fields)
    return GenerationResponse.model_validate_json(response.content)


def test_with_averaging_each_answer_is_that_of_an_upload_of_the_repetitions_so_far(url: str) -> None:
    data = recording(n=1100)
    marks = {60: "one", 200: "two", 330: "one", 450: "one", 580: "two", 700: "", 830: ""}
    live = streamed(url, data, 50, marks, options=StreamOptions(**OPTIONS, average=True))
    cuts = cut_epochs(eeg_channels(), data, marks)
    for number, stimulus in enumerate(marks.values()):
        so_far = [index for index in range(number + 1) if cuts.stimulus[index] == stimulus] if stimulus else [number]
        filed = uploaded(url, cuts.select(so_far), average="true")
        one = live[number]
        assert isinstance(one, StreamEpoch)
        assert one.answer.epochs == filed.epochs and one.answer.report == filed.report
        assert one.answer.epochs[0].n_averaged == len(so_far) and one.stimulus == stimulus
    single = streamed(url, data, 50, {450: "one"})[0]
    assert isinstance(single, StreamEpoch) and isinstance(live[3], StreamEpoch)
    assert single.answer.epochs != live[3].answer.epochs, "a mean of three is another signal than the third"


def test_eeg_and_meg_on_one_clock_are_answered_like_an_upload_of_both(url: str) -> None:
    helmet = standard_layout(LAYOUTS["meg"])  # type: ignore[arg-type]
    names, types = (*LAYOUT.ch_names, *helmet.ch_names), (*LAYOUT.ch_types, *helmet.ch_types)
    n = len(names)
    data = recording(n) * np.where(np.arange(n) < 63, 1e-6, 2e-13).astype(np.float32)[:, None]
    start = {"modality": "eeg+meg", "unit": "SI", "ch_names": names, "ch_types": types}
    live = streamed(url, data, 50, {200: "two"}, **start)[0]
    channels = LiveChannels(SFREQ, names, types, np.full((n, 3), np.nan, np.float32), np.ones(n))
    filed = uploaded(url, cut_epochs(channels, data, {200: "two"}))
    assert isinstance(live, StreamEpoch)
    assert live.answer.report.modalities == ("eeg", "meg") == filed.report.modalities
    assert live.answer.epochs == filed.epochs and live.answer.report == filed.report
    for given, said in (
        (start | {"unit": "uV"}, "channels of one kind"),
        (start | {"ch_types": ("eeg",) * n}, "no channel is meg"),
    ):
        with pytest.raises(ValueError, match=said):
            StreamStart(**EEG | given)


def test_units_positions_and_meg(url: str) -> None:
    data = recording()
    given = streamed(url, data, 100, {200: ""})[0]
    volts = streamed(url, data * np.float32(1e-6), 100, {200: ""}, unit="SI", positions=LAYOUT.positions.tolist())[0]
    assert isinstance(given, StreamEpoch) and isinstance(volts, StreamEpoch)
    assert volts.answer.epochs[0].confidence == pytest.approx(given.answer.epochs[0].confidence, abs=0.03)
    helmet = standard_layout(LAYOUTS["meg"])  # type: ignore[arg-type]
    meg = streamed(
        url, recording(len(helmet.ch_names), scale=200.0), 100, {200: ""}, modality="meg", unit="fT",
        ch_names=helmet.ch_names,
    )[0]  # fmt: skip
    assert isinstance(meg, StreamEpoch) and meg.answer.report.modalities == ("meg",)


def test_a_marker_channel_does_what_markers_do(url: str) -> None:
    data = recording()
    codes = np.zeros((1, data.shape[1]), np.float32)
    codes[0, 200:205] = 7
    start = StreamStart(**EEG | {"options": StreamOptions(**OPTIONS), "marker_channel": "STI"})
    with StreamClient(url, start) as client:
        client.push(np.concatenate([data, codes]))
        (epoch,) = client.finish()
    marked = streamed(url, data, 50, {200: "7"})[0]
    assert isinstance(epoch, StreamEpoch) and isinstance(marked, StreamEpoch)
    assert epoch.answer.epochs == marked.answer.epochs and epoch.stimulus == "7"


def test_bad_signals_are_refused_epoch_by_epoch_in_the_words_of_uploads(url: str) -> None:
    data = recording()
    data[:, 300:] = 5.0
    found = streamed(url, data, 50, {10: "early", 100: "good", 400: "flat", 590: "cut off"})
    early, good, flat, cut_off = (found[number] for number in range(4))
    assert isinstance(good, StreamEpoch)
    assert isinstance(early, StreamRefused) and "too soon" in early.problem.detail
    assert isinstance(flat, StreamRefused) and flat.problem.code == "epochs_mismatch"
    assert "clipped" in flat.problem.detail or "flat" in flat.problem.detail
    assert isinstance(cut_off, StreamRefused) and cut_off.problem.code == "epoch_cut_off"
    wrong_unit = streamed(url, recording(), 50, {200: ""}, unit="V")[0]
    assert isinstance(wrong_unit, StreamRefused) and "another unit" in wrong_unit.problem.detail
    few = streamed(url, recording(10), 50, {200: ""}, ch_names=LAYOUT.ch_names[:10])[0]
    assert isinstance(few, StreamRefused) and "channels" in few.problem.detail


def test_the_example_of_the_page_can_be_streamed(url: str, tmp_path: Path) -> None:
    example = tiny_recording("eeg", 2)
    example.save(tmp_path / "example.npz")
    offered = live_example(tmp_path / "example.npz")
    start = StreamStart.model_validate(offered["start"] | {"when_busy": "wait", "options": OPTIONS})
    data = np.frombuffer(base64.b64decode(offered["samples"]), "<f4").reshape(len(example.ch_names), -1)
    first = offered["markers"][0]
    window = slice(first["sample"] - 20, first["sample"] + 80)
    np.testing.assert_array_equal(data[:, window], example.data[0])
    with StreamClient(url, start) as client:
        for marker in offered["markers"]:
            client.mark(marker["sample"], marker["stimulus"])
        client.push(data)
        found = list(client.finish())
    assert [one.stimulus for one in found if isinstance(one, StreamEpoch)] == ["image-0", "image-1"] * 3


BOUNDS = StreamSettings(max_streams=2, max_seconds=3.0, idle_s=1.0, max_messages_per_s=200.0)


@pytest.fixture(scope="module")
def shared_backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def backend(shared_backend: FakeBackend) -> FakeBackend:
    """The one backend, as if it were new."""
    shared_backend.step_s, shared_backend.failure = 0.0, None
    shared_backend.n_started = shared_backend.n_finished = 0
    return shared_backend


@pytest.fixture(scope="module")
def small(shared_backend: FakeBackend) -> Iterator[str]:
    """The application over a backend without models, with low bounds."""
    settings = ServingSettings(bundle=Path("unused"), streams=BOUNDS, max_epochs=8, max_in_flight=2)
    with fake_service(settings, shared_backend) as address:
        yield address


@contextmanager
def opened(url: str, **start: Any) -> Iterator[ClientConnection]:
    with connect(url.replace("http", "ws") + "/v1/stream", proxy=None, max_size=None) as socket:
        if start:
            socket.send(json.dumps(start))
            assert json.loads(socket.recv(timeout=20))["type"] == "ready"
        yield socket


def ending(socket: ClientConnection) -> tuple[int, str, str]:
    """Read to the end; return the close code, the reason and the last problem's sentence."""
    detail = ""
    try:
        while True:
            message = json.loads(socket.recv(timeout=20))
            detail = message["problem"]["detail"] if message["type"] == "problem" else detail
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, closed.rcvd.reason, detail


GOOD = np.ones((len(CH_NAMES), 5), "<f4").tobytes()
MARK = json.dumps({"type": "marker", "sample": 1000})


@pytest.mark.parametrize(
    ("start", "messages", "code", "reason", "said"),
    [
        ({}, [GOOD], 1003, "no_start", "start"),
        ({}, [MARK], 1003, "no_start", "start"),
        ({}, ["{"], 1007, "bad_message", "JSON"),
        ({}, [json.dumps(SMALL | {"unit": "fT"})], 1007, "bad_message", "unit"),
        ({}, [json.dumps(SMALL | {"modality": "meg", "unit": "SI"})], 1007, "bad_message", "this bundle decodes"),
        ({}, [json.dumps(SMALL | {"sfreq": "NaN"})], 1007, "bad_message", "sfreq"),
        ({}, [json.dumps(SMALL | {"options": {"onsets": "1"}})], 1007, "bad_message", "no effect"),
        ({}, [json.dumps(SMALL | {"options": {"subject": "nobody"}})], 1008, "bad_field", "sim-01"),
        ({}, [json.dumps(SMALL | {"options": {"purpose": "diagnosis"}})], 1008, "purpose_refused", "diagnosis"),
        (SMALL, [GOOD[:-4]], 1007, "bad_message", "multiple of 44"),
        (SMALL, [b""], 1007, "bad_message", "multiple of 44"),
        (SMALL, [np.full((11, 5), np.nan, "<f4").tobytes()], 1007, "bad_message", "NaN"),
        (SMALL, [np.ones((11, 201), "<f4").tobytes()], 1007, "bad_message", "200 samples"),
        (SMALL, [json.dumps(SMALL)], 1007, "bad_message", "second start"),
        (SMALL, [bytes(MAX_MESSAGE_BYTES + 4)], 1009, "message_too_large", "1048576"),
        (SMALL, [GOOD] * 450, 1008, "stream_too_fast", "200 messages"),
        (SMALL, [MARK] * 9, 1008, "too_many_epochs", "8"),
        (SMALL, [GOOD], 1008, "stream_idle", "1 s"),
    ],
)
def test_what_is_out_of_bounds_is_closed_with_its_reason(
    small: str, start: dict[str, Any], messages: list[str | bytes], code: int, reason: str, said: str
) -> None:
    with opened(small, **start) as socket:
        try:
            for message in messages:
                socket.send(message)
        except ConnectionClosed:
            pass
        found = ending(socket)
    assert found[:2] == (code, reason) and said in found[2], found


def test_the_messages_are_described(small: str) -> None:
    with httpx.Client(base_url=small, trust_env=False) as http:
        described = http.get("/v1/stream").json()
        assert "/v1/stream" in http.get("/openapi.json").json()["paths"]
    named = set(described["client"]["discriminator"]["mapping"]) | set(described["server"]["discriminator"]["mapping"])
    assert {"start", "marker", "end", "ready", "received", "epoch", "refused", "problem", "summary"} == named
    assert "uV" in described["client"]["$defs"]["StreamStart"]["properties"]["unit"]["description"]


def test_a_stream_ends_after_its_time_and_only_so_many_are_open(small: str) -> None:
    started = time.monotonic()
    with opened(small, **SMALL) as first:
        with opened(small, **SMALL) as second, opened(small) as third:
            assert ending(third)[:2] == (1013, "too_many_streams")
            second.send(GOOD)
        with opened(small, **SMALL):
            pass
        try:
            while time.monotonic() - started < 20.0:
                time.sleep(0.2)
                first.send(GOOD)
        except ConnectionClosed:
            pass
        assert ending(first)[:2] == (1008, "stream_too_long") and 3.0 < time.monotonic() - started < 6.0


def test_open_streams_are_counted_in_the_metrics(url: str) -> None:
    def becomes(n: int) -> bool:
        deadline = time.monotonic() + 10.0
        while f"phosphene_streams_open {n}.0\n" not in httpx.get(f"{url}/metrics", trust_env=False).text:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    assert becomes(0)
    with opened(url, type="start", **EEG):
        assert becomes(1)
        with opened(url, type="start", **EEG):
            assert becomes(2)
        assert becomes(1)
    assert becomes(0)


def test_samples_beyond_the_window_are_not_stored(small: str, backend: FakeBackend) -> None:
    backend.step_s = 0.5
    with opened(small, **SMALL | {"when_busy": "wait"}) as socket:
        for sample in (100, 150):
            socket.send(json.dumps({"type": "marker", "sample": sample}))
        chunk = np.random.default_rng(0).standard_normal((11, 200)).astype("<f4").tobytes()
        try:
            for _ in range(300):
                socket.send(chunk)
        except ConnectionClosed:
            pass
        code, reason, detail = ending(socket)
    assert (code, reason) == (1008, "stream_too_fast") and "max_ahead" in detail


@pytest.mark.parametrize("when_busy", ["drop", "wait"])
def test_one_epoch_at_a_time_and_what_is_dropped_is_said(small: str, backend: FakeBackend, when_busy: str) -> None:
    backend.step_s = 0.15
    data = recording(len(CH_NAMES), 700)
    start = StreamStart(**SMALL | {"when_busy": when_busy})
    with StreamClient(small, start) as client:
        for sample in (100, 110, 120, 500):
            client.mark(sample)
        found = []
        client.push(data[:, :300])
        while not any(isinstance(one, StreamEpoch) for one in found):
            time.sleep(0.02)
            found += list(client.answers())
        if when_busy == "drop":
            time.sleep(0.1)
        client.push(data[:, 300:])
        found += list(client.finish())
        summary = client.summary
    assert summary is not None and summary.n_stimuli == 4 == len(found)
    dropped = [one.number for one in found if isinstance(one, StreamRefused) and one.problem.code == "epoch_dropped"]
    assert dropped == ([1, 2] if when_busy == "drop" else [])
    assert (summary.n_answered, summary.n_dropped, summary.n_refused) == (4 - len(dropped), len(dropped), 0)
    assert backend.n_started == backend.n_finished == summary.n_answered


def test_a_full_service_drops_epochs_too(small: str, backend: FakeBackend) -> None:
    backend.step_s = 0.3
    data = recording(len(CH_NAMES), 300)
    clients = [StreamClient(small, StreamStart(**SMALL)) for _ in range(2)]
    for client in clients:
        client.mark(100)
        client.push(data)

    # two places, both taken by the streams: an upload is refused while they are
    async def upload() -> int:
        async with httpx.AsyncClient(base_url=small, trust_env=False, timeout=30.0) as http:
            await asyncio.sleep(0.4)
            return (await http.post("/v1/generations", files={"file": b"x"})).status_code

    status = asyncio.run(upload())
    for client in clients:
        assert [type(one) for one in client.finish()] == [StreamEpoch]
        client.close()
    assert status == 429


def test_work_ends_when_the_client_leaves(small: str, backend: FakeBackend) -> None:
    backend.step_s = 0.5
    client = StreamClient(small, StreamStart(**SMALL))
    client.mark(100)
    client.push(recording(len(CH_NAMES), 300))
    deadline = time.monotonic() + 10.0
    while not backend.n_started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.close()
    time.sleep(2.5)
    assert (backend.n_started, backend.n_finished) == (1, 0)


def wait_for_log(caplog: pytest.LogCaptureFixture, words: str, n: int) -> None:
    """Wait until the words were logged n times: a stream is logged once it is over, which its client does not see."""
    deadline = time.monotonic() + 60.0
    while caplog.text.count(words) < n:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.02)


def test_nothing_of_the_signal_and_no_name_is_logged(small: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="serving"):
        start = StreamStart(**SMALL | {"ch_names": ["canary-1", "canary-2"], "when_busy": "wait"})
        with StreamClient(small, start) as client:
            client.mark(100, "canary-3")
            client.push(recording(2, 300))
            (refused,) = client.finish()
        wait_for_log(caplog, "WS /v1/stream 1000", 1)
    assert isinstance(refused, StreamRefused) and "lacks the channels" in refused.problem.detail
    assert "canary" not in caplog.text


def test_leaving_on_the_summary_is_a_good_end(small: str, caplog: pytest.LogCaptureFixture) -> None:
    n = 30
    with caplog.at_level(logging.INFO, logger="serving.stream"):
        for _ in range(n):
            with connect(small.replace("http", "ws") + "/v1/stream", proxy=None) as socket:
                socket.send(json.dumps(SMALL))
                socket.send(json.dumps({"type": "end"}))
                while json.loads(socket.recv(timeout=60.0))["type"] != "summary":
                    pass
        wait_for_log(caplog, "WS /v1/stream", n)
    assert caplog.text.count("WS /v1/stream 1000") == n, caplog.text


@dataclass(frozen=True)
class Guarded:
    url: str
    file: Path
    audit: Path
    keys: dict[str, str]


USE = {"options": {"purpose": "research", "consent": True}}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, shared_backend: FakeBackend) -> Iterator[Guarded]:
    """The application behind keys, with an audit log; purpose and consent are required."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "access.yaml"
    groups, keys = create_group(AccessFile(), GroupDescription(group="live", users=("lea", "mia"), scopes=("stream",)))
    for description in (
        GroupDescription(group="lab", users=("anna",)),
        GroupDescription(group="hasty", users=("hugo",), scopes=("stream",), quota=Quota(decodes_per_day=1)),
    ):
        groups, more = create_group(groups, description)
        keys |= more
    write_access_file(file, groups)
    audit = folder / "audit.jsonl"
    access = AccessSettings(file=str(file), audit_file=str(audit), require_purpose=True, require_consent=True)
    with fake_service(ServingSettings(bundle=Path("unused"), access=access), shared_backend) as url:
        yield Guarded(url, file, audit, keys)


def test_keys_scopes_quotas_and_the_audit_log_hold_for_streams(guarded: Guarded, backend: FakeBackend) -> None:
    url, keys = guarded.url, guarded.keys
    for key, status in (("", 401), ("phk_x_y", 401), (keys["anna"], 403)):
        with pytest.raises(ValueError, match=f"HTTP {status}"):
            StreamClient(url, StreamStart(**SMALL | USE), api_key=key)
    with pytest.raises(ValueError, match="purpose_missing"):
        StreamClient(url, StreamStart(**SMALL), api_key=keys["lea"])
    StreamClient(url, StreamStart(**SMALL | USE), api_key=keys["hugo"]).close()
    with pytest.raises(ValueError, match="HTTP 429"):
        StreamClient(url, StreamStart(**SMALL | USE), api_key=keys["hugo"])
    offered: Any = ["phosphene", f"key.{keys['lea']}"]
    with connect(url.replace("http", "ws") + "/v1/stream", subprotocols=offered, proxy=None) as browser:
        assert browser.subprotocol == "phosphene"
    with StreamClient(url, StreamStart(**SMALL | USE), api_key=keys["lea"]) as client:
        client.mark(100, "canary")
        client.push(recording(len(CH_NAMES), 300))
        assert [type(one) for one in client.finish()] == [StreamEpoch]
    deadline = time.monotonic() + 10.0
    while len(found := lines(guarded.audit, who="live/lea", purpose="research")) < 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    begun, ended = found
    assert begun["status"] == 101 and begun["consent"] is True and ended["outcome"] == "ended"
    assert "canary" not in guarded.audit.read_text() and verify(guarded.audit).fault == ""


def lines(audit: Path, **wanted: Any) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    return [record for record in records if wanted.items() <= record.items()]


def test_one_user_does_not_take_all_streams(
    guarded: Guarded, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_slowly(*arguments: Any, **settings: Any) -> ClientConnection:
        connection = connect(*arguments, **settings)
        time.sleep(0.5)
        return connection

    start = StreamStart(**SMALL | USE)
    with ExitStack() as stack:
        for _ in range(StreamSettings().max_streams_per_user):
            stack.enter_context(StreamClient(guarded.url, start, api_key=guarded.keys["lea"]))
        with pytest.raises(ValueError, match="too_many_streams"):
            StreamClient(guarded.url, start, api_key=guarded.keys["lea"])
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="too_many_streams"):
            patch.setattr("serving.stream_client.connect", connect_slowly)  # refused before it has sent anything
            StreamClient(guarded.url, start, api_key=guarded.keys["lea"])
        with pytest.raises(ValueError, match="purpose_missing"):
            StreamClient(guarded.url, StreamStart(**SMALL), api_key=guarded.keys["mia"])


@pytest.mark.parametrize(("user", "code"), [("lea", "unknown_key"), ("mia", "not_allowed")])
def test_a_key_or_a_scope_that_is_taken_away_stops_a_running_stream(
    guarded: Guarded, backend: FakeBackend, user: str, code: str
) -> None:
    before = read_access_file(guarded.file)
    group = GroupDescription(group="live", users=("lea", "mia"), scopes=("embed",))
    after = revoke_user(before, "live", "lea") if user == "lea" else create_group(before, group)[0]
    data = recording(len(CH_NAMES), 1000)
    start = StreamStart(**SMALL | USE | {"when_busy": "wait"})
    with StreamClient(guarded.url, start, api_key=guarded.keys[user]) as client:
        client.mark(100)
        client.mark(500)
        client.push(data[:, :300])
        while not list(client.answers()):
            time.sleep(0.02)
        write_access_file(guarded.file, after)
        with pytest.raises(ValueError, match=code):
            client.push(data[:, 300:700])
            while True:
                time.sleep(0.05)
                list(client.answers())
    write_access_file(guarded.file, before)
    assert backend.n_finished == 1


def test_the_page_of_another_site_is_not_let_in(small: str) -> None:
    address = small.replace("http", "ws") + "/v1/stream"
    with pytest.raises(InvalidStatus), ExitStack() as stack:
        stack.enter_context(connect(address, proxy=None, origin="https://elsewhere.example"))  # type: ignore[arg-type]
    with connect(address, proxy=None, origin=small):  # type: ignore[arg-type]
        pass


def test_a_failing_backend_ends_the_stream_with_a_sentence(
    small: str, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failure = RuntimeError("secret of the device")
    with StreamClient(small, StreamStart(**SMALL | {"when_busy": "wait"})) as client:
        client.mark(100)
        client.push(recording(len(CH_NAMES), 300))
        with pytest.raises(ValueError, match="internal_error") as caught:
            list(client.finish())
    assert "secret" not in str(caught.value)
    wait_for_log(caplog, "a stream failed: RuntimeError", 1)
    assert "secret" not in caplog.text
