"""The command line: it answers at once, names what is wrong, and decodes without a server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny_bundle import make_tiny_bundle, tiny_recording
from toy_brain import write_toy_targets

from serving.cli import DEMO_BUNDLE, _given_settings, _parser, main
from serving.cluster import free_port
from serving.rendering import SOURCE_TYPE, contact_sheet
from serving.settings import ServingSettings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'mne', 'numpy', 'pydantic', 'fastapi', 'diffusers'}"
    code = f"import sys, serving.cli; serving.cli._parser().format_help(); print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - started

    # the interpreter's own start is measured beside it, because a busy machine slows both
    start = min(seconds("-c", "pass") for _ in range(3))
    assert min(seconds("-m", "serving.cli", "--help") for _ in range(3)) < start + 0.4


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    listed = capsys.readouterr().out
    assert ended.value.code == 0
    commands = ("serve", "decode", "simulate", "evaluate", "encoders", "train", "import", "embed", "demo")
    assert all(name in listed for name in commands)
    assert "generated estimates" in " ".join(listed.split())


def test_decode_writes_marked_pictures_and_an_answer(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "recording.npz"
    tiny_recording("eeg", 2).save(recording)
    arguments = ["decode", str(recording), "--bundle", str(bundle), "--out", str(tmp_path / "out"), "--images", "2"]
    assert main([*arguments, "--seed", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in pictures] == [f"epoch-00{e}-image-{i}.png" for e in range(2) for i in range(2)]
    with Image.open(pictures[0]) as picture:
        assert SOURCE_TYPE in picture.text["XML:com.adobe.xmp"]
    assert answer == json.loads((tmp_path / "out" / "answer.json").read_text())
    assert (answer["seed"], len(answer["epochs"])) == (3, 2) and "images" not in answer["epochs"][0]
    first = [path.read_bytes() for path in pictures]
    assert main([*arguments, "--seed", "3"]) == 0
    assert [path.read_bytes() for path in pictures] == first
    assert "confidence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: path.write_bytes(b"junk"), "known recording format"),
        (lambda path: tiny_recording().pick(tiny_recording().ch_names[:9]).save(path), "channels"),
    ],
)
def test_what_does_not_fit_ends_with_status_2_and_a_sentence(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, named: str
) -> None:
    recording = tmp_path / "recording.npz"
    make(recording)  # type: ignore[operator]
    assert main(["decode", str(recording), "--bundle", str(bundle), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert named in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_missing_files_and_damaged_bundles_are_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["decode", str(tmp_path / "no.npz"), "--bundle", str(bundle), "--out", str(tmp_path)]) == 2
    assert "no.npz" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert main(["decode", str(tmp_path / "no.npz"), "--bundle", str(bundle), "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file" in capsys.readouterr().err
    assert main(["serve", "--bundle", str(tmp_path), "--port", str(free_port())]) == 2
    assert "manifest.json" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--bundle", str(bundle), "--port", port]) == 2
        assert port in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["serve", "--bundle", str(bundle), "--port", port, "--access", "~/keys.yaml"]) == 2
    assert f"{tmp_path}/keys.yaml" in capsys.readouterr().err
    assert main(["demo", "--bundle", str(bundle), "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "targets.safetensors" in capsys.readouterr().err


def settings_of(*flags: str) -> ServingSettings:
    return ServingSettings.model_validate(_given_settings(_parser().parse_args(["serve", *flags])))


def test_settings_of_a_file_hold_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("bundle: /srv/mine\nhost: 127.0.0.2\nport: 9000\njobs: {n_at_once: 2}\naccess: {purposes: [x]}\n")
    told = settings_of("--settings", str(path))
    assert (told.bundle, told.host, told.port) == (Path("/srv/mine"), "127.0.0.2", 9000)
    assert not told.jobs.folder and told.access.purposes == ("x",)
    told = settings_of("--settings", str(path), "--port", "9001", "--bundle", "other", "--jobs", "here")
    assert (told.bundle, told.host, told.port) == (Path("other"), "127.0.0.2", 9001)
    assert (told.jobs.folder, told.jobs.n_at_once) == ("here", 2)
    told = settings_of()
    assert (told.bundle, told.host, told.port) == (DEMO_BUNDLE, "127.0.0.1", 8000) and told.jobs.folder


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: 9000\njobs: {folder: [\n", "is not YAML (line 3"),
        ("- port\n", "expected lines of `name: value`"),
        ("jobs: /srv/jobs\n", "expected names and values; for instance `jobs: {folder: /srv/jobs}`"),
        ("prot: 9000\n", "phosphene serve: prot is no setting here; check its spelling\n"),
        ("generator: {n_replica: 2}\n", "generator.n_replica is no setting here"),
        ("port: 99999\n", "port: Input should be less than or equal to 65535, got 99999\n"),
        ("encoder: {n_replicas: 0}\n", "phosphene serve: encoder: n_replicas is 0 and max_replicas too;"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert main(["serve", "--settings", str(path)]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and "pydantic" not in said


def test_a_service_that_does_not_start_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(settings: ServingSettings) -> None:
        raise RuntimeError("the service did not start. Generator: no memory")

    monkeypatch.setattr("serving.cluster.local_service", fails)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["serve"]) == 1
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before, "whoever starts processes from here would start them deaf to SIGTERM"
    assert "phosphene serve: the service did not start. Generator: no memory\n" in capsys.readouterr().err


@pytest.mark.faults
def test_a_service_that_is_told_to_end_takes_all_its_processes_along(bundle: Path, tmp_path: Path) -> None:
    others: list[psutil.Process] = []
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(bundle), "--port", str(free_port())]
    with open(tmp_path / "log", "wb") as log:
        service = psutil.Popen(
            [*command, "--jobs", str(tmp_path / "jobs"), "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert "url" in json.loads(service.stdout.readline())
        others = service.children(recursive=True)
        assert len(others) > 5
        folders = set(re.findall(r"/tmp/ph-\w+", " ".join(" ".join(process.cmdline()) for process in others)))
        assert folders and all(os.path.isdir(folder) for folder in folders)
        service.send_signal(signal.SIGTERM)
        assert service.wait(90) == 0
        told = (tmp_path / "log").read_text()
        assert "ending the service" in told and "SIGTERM received" not in told
        _, left = psutil.wait_procs(others, timeout=10)
        assert not left, [process.name() for process in left]
        assert not any(os.path.exists(folder) for folder in folders)
    finally:
        for process in (service, *others):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_evaluate_prints_the_stored_scores(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--bundle", str(bundle), "--stored", "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)["stored"]
    assert stored["chance"] == 0.005 and "random weights" in stored["data"]
    assert main(["evaluate", "--bundle", str(bundle), "--stored"]) == 0
    assert "chance 0.005" in capsys.readouterr().out


def test_simulate_names_what_is_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--scenes", "0"), ("--repetitions", "0"), ("--subject", "9")):
        assert main(["simulate", "--out", str(tmp_path / "out"), flag, value]) == 2
        assert f"{flag.removeprefix('--')} is {value}, expected" in capsys.readouterr().err


def test_evaluate_refuses_to_write_a_report_of_nothing_measured(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--bundle", str(bundle), "--stored", "--out", str(tmp_path / "out")]) == 2
    assert "leave one of them out" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_contact_sheet_shows_every_picture() -> None:
    rng = np.random.default_rng(0)
    rows = {label: [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)] for label in ("a", "b")}
    sheet = np.asarray(contact_sheet(rows, title="title", cell=32))
    for pictures in rows.values():
        for picture in pictures:
            windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
            close = np.abs(windows[..., 0, 0, :].astype(int) - picture[0, 0]).sum(axis=-1) == 0
            assert any(np.array_equal(windows[y, x], picture) for y, x in np.argwhere(close))


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("phosphene")
    if not command.is_file():
        pytest.skip("the package is not installed in this environment")
    found = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, env=os.environ)
    assert "decode" in found.stdout


def test_encoders_are_listed_with_size_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["eeg_project"]["n_parameters"] > 17e6 and "UBP" in entries["eeg_project"]["source"]
    assert main(["encoders", "--presets"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in entries) and "brain_module_demo" in printed


def test_train_runs_a_chosen_encoder_on_chosen_modalities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "modalities": {"eeg": {"layout": "things_eeg2_63", "encoder": "brain_module_demo"}},
        "simulation": {"n_subjects": 1},
        "data": {"n_train_images": 40, "n_val_images": 10, "train_repetitions": 1, "test_repetitions": 2},
        "fit": {"max_steps": 50, "lr": 0.001},
        "batch_size": 20,
        "threads": 1,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings | {"targets": "overridden"}))
    write_toy_targets(tmp_path / "targets.safetensors")
    arguments = ["train", "--config", str(tmp_path / "config.yaml"), "--data", str(tmp_path), "--steps", "2"]
    assert main([*arguments, "--encoder", "eeg_project", "--run-dir", str(tmp_path / "run")]) == 0
    assert "eeg       single" in capsys.readouterr().out
    trained = json.loads((tmp_path / "run" / "brain" / "brain.json").read_text())
    assert trained["encoders"]["eeg"]["name"] == "eeg_project"
    assert json.loads((tmp_path / "run" / "report.json").read_text())["selection"]["steps"] == 2
    assert main([*arguments, "--encoder", "nonsense", "--run-dir", str(tmp_path / "other")]) == 2
    assert "'nonsense' is unknown" in capsys.readouterr().err
    assert main([*arguments, "--modality", "meg", "--run-dir", str(tmp_path / "other")]) == 2
    assert "the config has the modalities ['eeg'], got ['meg']" in capsys.readouterr().err
