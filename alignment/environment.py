"""What a run was made with: versions, device and source revision, without names of machines or people."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alignment.runtime import Runtime
from encoders.durable_files import write_atomic

PACKAGES = ("phosphene", "torch", "accelerate", "numpy", "scipy", "mne", "safetensors", "pydantic", "pyarrow")
ROOT = Path(__file__).resolve().parents[1]


def environment(runtime: Runtime, root: Path = ROOT) -> dict[str, Any]:
    """Describe versions, platform, device and, in a git checkout at ``root``, the revision."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "runtime": runtime.summary(),
        "git": _revision(root),
    }


def write_environment(path: Path, found: dict[str, Any]) -> None:
    """Add an environment to the list in a JSON file, unless the last entry is the same.

    A run that was resumed somewhere else has several.
    """
    known = json.loads(path.read_text()) if path.exists() else []
    if not known or known[-1] != found:
        write_atomic(path, json.dumps([*known, found], indent=1).encode())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _revision(root: Path) -> dict[str, Any] | None:
    """Give the commit and whether tracked files differ from it; None outside a checkout or without git."""
    if not (root / ".git").exists():
        return None
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=30, check=True
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": said[0], "changed": bool(said[1])}
