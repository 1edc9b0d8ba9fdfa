"""What every test shares: one thread, no network, and the folder of real recordings where there is one."""

import os
import subprocess
from pathlib import Path

# Before torch, transformers or ray are imported: each reads these once.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray takes 127.0.0.1 for another address of this machine
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
import s3fs  # noqa: E402
import torch  # noqa: E402
from postgres_server import PostgresServer, find_binaries, postgres_server  # noqa: E402
from s3_server import s3_server  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Folder that holds ``pyproject.toml``."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings: ``PHOSPHENE_TEST_DATA``, else ``../shared/data`` beside the project."""
    folder = Path(os.environ.get("PHOSPHENE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no recordings at {folder}; set PHOSPHENE_TEST_DATA to a folder that holds MANIFEST.json")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of our own."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine; install Debian's package postgresql")
    with postgres_server(binaries) as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[s3fs.S3FileSystem]:
    """Files of a server that speaks S3, with one bucket; the environment names it to whoever asks for ``s3://``."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        yield files
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
