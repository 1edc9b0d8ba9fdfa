"""`phosphene stream`: a file is replayed, and a real outlet of the lab streaming layer is followed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mne
import numpy as np
import pytest
from fake_service import CH_NAMES, FakeBackend, fake_service

from encoders.continuous import ContinuousRecording
from serving.cli import main
from serving.settings import ServingSettings
from serving.stream_schema import StreamOptions
from serving.stream_sources import FileReplay

SFREQ = 100.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service(ServingSettings(bundle=Path("unused")), FakeBackend()) as address:
        yield address


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = 1e-5 * np.random.default_rng(0).standard_normal((len(CH_NAMES), 600))
    raw = mne.io.RawArray(data, mne.create_info(list(CH_NAMES), SFREQ, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([1.0, 3.0, 5.9], 0.0, ["Stimulus/cat", "Stimulus/dog", "Stimulus/late"]))
    path = tmp_path_factory.mktemp("file") / "run_raw.fif"
    raw.save(path, verbose="error")
    return path


def test_a_replayed_file_becomes_pictures_and_words(
    url: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", str(file), "--url", url, "--out", str(tmp_path), "--speed", "0", "--images", "2"]) == 0
    cat, dog, late, summary = capsys.readouterr().out.splitlines()
    assert cat.startswith("epoch 0 Stimulus/cat at 1.0 s: confidence 0.200 (no better than noise")
    assert "nearest: a red star on grass" in dog
    assert "ended before the epoch was complete" in late
    assert "3 stimuli: 2 decoded, 0 dropped, 1 refused" in summary
    assert len(list(tmp_path.glob("epoch-00?-image-?.png"))) == 4


def test_repetitions_are_averaged_when_asked_for(
    url: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = mne.io.read_raw_fif(file, verbose="error")
    raw.set_annotations(mne.Annotations([1.0, 2.5, 4.0], 0.0, ["cat", "dog", "cat"]))
    raw.save(tmp_path / "again_raw.fif", verbose="error")
    given = ["stream", str(tmp_path / "again_raw.fif"), "--url", url, "--out", str(tmp_path), "--speed", "0"]
    assert main([*given, "--average", "--json"]) == 0
    *epochs, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert [one["decoded"]["n_averaged"] for one in epochs] == [1, 1, 2]
    assert main([*given, "--average"]) == 0
    assert "cat at 4.0 s, mean of 2: confidence" in capsys.readouterr().out


def test_a_file_of_both_modalities_is_sent_as_one_stream() -> None:
    both = ContinuousRecording(
        np.zeros((2, 10), np.float32), SFREQ, ("Cz", "MLC11"), ("eeg", "mag"), np.full((2, 3), np.nan, np.float32), ()
    )
    start = FileReplay(both, 0.0).start(StreamOptions())
    assert start.modality == "eeg+meg" and start.kinds() == ("eeg", "mag") and start.per_unit() == (1.0, 1.0)


def test_speed_is_kept_and_json_is_json(
    url: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    given = ["stream", str(file), "--url", url, "--out", str(tmp_path), "--speed", "4", "--onsets", "2.0", "--json"]
    assert main(given) == 0
    assert time.monotonic() - began > 6.0 / 4.0
    epoch, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert epoch["seconds"] == 2.0 and epoch["decoded"]["confidence_words"] and Path(epoch["files"][0]).is_file()
    assert summary["n_answered"] == 1


def test_what_is_wrong_is_said(url: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--url", url, "--out", str(tmp_path)]
    assert main(["stream", *where]) == 2 and "--lsl" in capsys.readouterr().err
    assert main(["stream", str(file), "--subject", "nobody", *where]) == 2 and "sim-01" in capsys.readouterr().err
    assert main(["stream", "--lsl", "x", *where]) == 2 and "marker" in capsys.readouterr().err


def test_a_running_outlet_is_followed(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"liblsl cannot be loaded: {error}")
    name = f"amplifier-{time.monotonic_ns()}"
    info = pylsl.StreamInfo(name, "EEG", len(CH_NAMES), SFREQ, "float32", name)
    channels = info.desc().append_child("channels")
    for label in CH_NAMES:
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", "microvolts")
    marker_info = pylsl.StreamInfo(f"{name}-markers", "Markers", 1, 0.0, "string", f"{name}-markers")
    outlet, markers = pylsl.StreamOutlet(info), pylsl.StreamOutlet(marker_info)
    stop = threading.Event()

    def run() -> None:
        """Send noise at the nominal rate, and a marker every 2 s once somebody listens."""
        rng, began, sent = np.random.default_rng(0), pylsl.local_clock(), 0
        next_marker = 0.0
        while not stop.is_set():
            due = int((pylsl.local_clock() - began) * SFREQ)
            if due > sent:
                outlet.push_chunk(
                    rng.normal(scale=10.0, size=(due - sent, len(CH_NAMES))).tolist(), began + due / SFREQ
                )
                sent = due
            if markers.have_consumers() and pylsl.local_clock() > next_marker:
                if next_marker:
                    markers.push_sample(["picture"])
                next_marker = pylsl.local_clock() + 2.0
            time.sleep(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        given = ["--lsl", name, "--marker-stream", f"{name}-markers", "--seconds", "7", "--json"]
        assert main(["stream", *given, "--url", url, "--out", str(tmp_path)]) == 0
    finally:
        stop.set()
        thread.join()
    *epochs, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert summary["n_samples"] > 400 and summary["n_answered"] >= 2, (epochs, summary)
    decoded = [one for one in epochs if "decoded" in one]
    assert all(one["stimulus"] == "picture" for one in decoded)
    steps = np.diff([one["seconds"] for one in decoded])
    assert np.allclose(steps, 2.0, atol=0.15), steps


@pytest.mark.parametrize(("address", "told"), [("127.0.0.1:1", "is no address"), ("http://127.0.0.1:1", "refused")])
def test_a_wrong_address_is_told_in_a_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, told: str
) -> None:
    assert main(["stream", str(file), "--url", address, "--out", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
