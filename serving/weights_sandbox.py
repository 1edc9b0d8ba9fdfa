"""Reading of foreign weights in a process of its own that can open no file, and has little time and memory.

`read_isolated` starts ``python -m serving.weights_sandbox`` with two open files: the weights, and an empty one for the
answer. The child imports numpy and the reader, takes its own rights away, and only then looks at the weights. The
answer is safetensors, which the parent checks like any other file.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.landlock import forbid_files

MAX_FILE_BYTES = 4 << 30
_MB = 1 << 20
_MEMORY_MB = 512
_SECONDS_PER_GB = 60.0
_SECONDS = 30.0
_MAX_DETAIL = 2000


def read_isolated(path: Path) -> dict[str, NDArray[Any]]:
    """Read every tensor of a torch checkpoint that is not trusted.

    Parameters
    ----------
    path : Path
        ``.pth``, ``.pt`` or ``.ckpt``, as `encoders.foreign_weights.read_foreign_weights` reads them.

    Returns
    -------
    dict of str to ndarray
        Float32, integers and booleans.

    Raises
    ------
    ValueError
        If the file is refused, or reading it takes more time or memory than allowed.
    OSError
        If the file cannot be opened, or the machine has no Landlock.
    """
    with path.open("rb") as weights, tempfile.TemporaryFile() as answer:
        n_bytes = os.fstat(weights.fileno()).st_size
        if n_bytes > MAX_FILE_BYTES:
            raise ValueError(f"{path.name} has {n_bytes} bytes, at most {MAX_FILE_BYTES} are read; it is no encoder")
        status, said = _run_child(weights, answer, seconds=_SECONDS + _SECONDS_PER_GB * n_bytes / (1 << 30))
        if status == 0 and said == {"code": "ok"}:
            return _arrays(answer, path.name)
    if said.get("code") == "no_isolation":
        raise OSError(said.get("detail", ""))
    detail = said.get("detail") or (
        "reading it took more time or memory than a checkpoint needs; it is damaged or hostile, download it again"
    )
    raise ValueError(f"{path.name}: {detail}")


def _run_child(weights: IO[bytes], answer: IO[bytes], *, seconds: float) -> tuple[int, dict[str, str]]:
    descriptors = (weights.fileno(), answer.fileno())
    keep = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    keep |= {
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "serving.weights_sandbox", *map(str, descriptors), str(int(seconds))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        env=keep,
        cwd="/",
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=seconds + 10.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return 1, {}
    try:
        said = json.loads(output[: 4 * _MAX_DETAIL])
    except ValueError:
        said = {}
    return child.returncode, {str(k): str(v)[:_MAX_DETAIL] for k, v in said.items()} if isinstance(said, dict) else {}


def _arrays(answer: IO[bytes], name: str) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    answer.seek(0)
    try:
        return dict(load(answer.read()))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{name}: the process that read it gave back no tensors; download it again") from error


def main(weights: int, answer: int, seconds: int) -> None:
    """Read the weights at descriptor ``weights`` and write safetensors to descriptor ``answer``."""
    from safetensors.numpy import save

    from encoders.foreign_weights import ForeignWeightsError, read_foreign_weights

    with os.fdopen(weights, "rb") as file, os.fdopen(answer, "wb") as sink:
        # numpy and zipfile load parts of themselves at first use, which would need files afterwards
        save({"warm": np.zeros(1, dtype=np.float32)})
        n_bytes = os.fstat(file.fileno()).st_size
        _limit(n_bytes, seconds)
        try:
            forbid_files()
        except OSError as error:
            _say("no_isolation", str(error))
            return
        try:
            sink.write(save(read_foreign_weights(file)))
            sink.flush()
        except ForeignWeightsError as error:
            _say("refused", str(error))
        except MemoryError:
            _say("refused", "reading it needs more memory than its length allows; it is damaged or hostile")
        else:
            _say("ok")


def _say(code: str, detail: str = "") -> None:
    print(json.dumps({"code": code, "detail": detail[:_MAX_DETAIL]} if detail else {"code": code}), flush=True)


def _limit(n_bytes: int, seconds: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for kind, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY_MB * _MB + 8 * n_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _MB + 3 * n_bytes),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
