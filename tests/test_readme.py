"""The README's blocks work. The comment above a block says how it is tested.

``run`` executes it here; ``server`` executes it against the HTTP interface; ``bundle`` executes it with the shipped
bundle (slow); ``parsed`` only checks that the commands, options, targets and files in it exist.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_service import FakeBackend, fake_service

from encoders.readers import read_epochs
from serving.cli import main
from serving.schema import GenerationResponse
from serving.settings import ServingSettings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODES = {"run", "server", "bundle", "parsed"}
OUTSIDE_PROGRAMS = {"sudo", "curl", "docker", "kubectl", "make", "set"}


@dataclass(frozen=True)
class Block:
    """One fenced block with the comment above it."""

    mode: str
    language: str
    code: str

    def commands(self) -> list[list[str]]:
        """Split a shell block into argument lists, comments removed."""
        return [words for line in self.code.splitlines() if (words := shlex.split(line, comments=True))]


BLOCKS = [
    Block(*match) for match in re.findall(r"<!-- block: (\w+) -->\n```(bash|python)\n(.*?)```", README, flags=re.DOTALL)
]


def of(*modes: str) -> list[Block]:
    return [block for block in BLOCKS if block.mode in modes]


def run(block: Block, folder: Path, url: str = "http://127.0.0.1:8000") -> str:
    """Execute a block in ``folder`` with the project's programs, and return what it printed."""
    code = block.code.replace("http://127.0.0.1:8000", url).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euc", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_block_says_how_it_is_tested() -> None:
    assert len(BLOCKS) == len(re.findall(r"^```(?:bash|python)$", README, flags=re.MULTILINE))
    assert {block.mode for block in BLOCKS} == MODES


@pytest.fixture(scope="module")
def folder_with_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's examples of the library have run, the npz file among them."""
    folder = tmp_path_factory.mktemp("readme")
    for block in of("run"):
        run(block, folder)
    return folder


def test_npz_example_is_a_recording(folder_with_recording: Path) -> None:
    epochs = read_epochs(folder_with_recording / "recording.npz")
    assert epochs.data.shape == (4, 63, 250)
    assert epochs.stimulus == ("a", "a", "b", "b")
    assert set(epochs.ch_types) == {"eeg"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service(ServingSettings(bundle=Path("unused")), FakeBackend()) as address:
        yield address


@pytest.mark.parametrize("block", of("server"), ids=lambda block: block.language)
def test_request_examples_are_answered(block: Block, folder_with_recording: Path, url: str) -> None:
    for old in [*folder_with_recording.glob("*.png"), *folder_with_recording.glob("*.json")]:
        old.unlink()
    printed = run(block, folder_with_recording, url)
    if block.language == "python":
        assert len(printed.splitlines()) == 2, "two stimuli"
        assert len(list(folder_with_recording.glob("*.png"))) == 4
    else:
        answer = GenerationResponse.model_validate_json((folder_with_recording / "answer.json").read_text())
        assert [len(epoch.images) for epoch in answer.epochs] == [2, 2]
        assert answer.seed == 7


@pytest.mark.slow
@pytest.mark.parametrize("block", of("bundle"), ids=["decode", "evaluate"])
def test_command_examples_work_with_the_shipped_bundle(block: Block, tmp_path: Path) -> None:
    assert run(block, tmp_path).strip()
    if "decode" in block.code:
        answer = json.loads((tmp_path / "out" / "decoded" / "answer.json").read_text())
        assert len(answer["epochs"]) == 3 and len(list((tmp_path / "out" / "decoded").glob("*.png"))) == 6
        assert (tmp_path / "out" / "fused" / "answer.json").is_file()


COMMANDS = [
    words for block in of("parsed", "bundle", "server") if block.language == "bash" for words in block.commands()
]


# What one command writes, another may read.
WRITTEN = {words[place + 1] for words in COMMANDS for place, word in enumerate(words) if word == "--out"}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_commands_options_and_files_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program, rest = words[0], words[1:]
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    elif program == ".venv/bin/phosphene":
        check_options(rest, capsys)
    else:
        assert program in OUTSIDE_PROGRAMS or (Path(sys.executable).parent / Path(program).name).is_file(), program
    for word in rest:
        if word.endswith((".yaml", ".yml")) and word not in WRITTEN:
            assert (ROOT / word).is_file(), word
    if "-m" in rest:
        assert (ROOT / (rest[rest.index("-m") + 1].replace(".", "/") + ".py")).is_file()


def check_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Ask the command itself for its options."""
    inner = words[1:2] if words[0] == "users" else []
    ask = ["--help"] if words == ["--help"] else [words[0], *inner, "--help"]
    with pytest.raises(SystemExit) as ended:
        main(ask)
    assert ended.value.code == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= known


def test_linked_files_exist() -> None:
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link}
    assert {"docs/demo.png", "CONTRIBUTING.md", "CHANGELOG.md"} <= links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_no_figure_is_left_to_fill_in() -> None:
    assert "TODO" not in README
