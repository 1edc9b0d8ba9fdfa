"""A run over a whole data set on Ray Data: what is left to do is streamed through a bounded pool of decoders.

Finished blocks are files, so a run that was killed goes on where it was; the final table is made of them at the end.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from encoders.answer_table import count_answers, join_answers
from encoders.epoch_ranges import EpochRange, ranges, summarise
from generation.bundle import Bundle
from serving.cluster import local_ray
from serving.dataset_block import BLOCKS, BlockDecoder, DatasetSettings, block_file

RUN, TABLE, LOCK = "run.json", "epochs.parquet", ".lock"
LOCAL = "local"
_CONNECT_S = 5.0
_Rows = dict[str, Any]


@dataclass(frozen=True)
class DatasetResult:
    """What a run came to: its table, rows, refused epochs among them, and the blocks that earlier runs had finished."""

    table: Path
    n_epochs: int
    n_refused: int
    n_blocks: int
    n_blocks_before: int


class BlockTask:
    """What a Ray Data worker does: it is constructed with the models and called with one block at a time."""

    def __init__(self, bundle: str, settings: dict[str, Any], out: str) -> None:
        self._fault = _unreached(bundle, os.path.join(out, RUN))
        self.decoder = None if self._fault else BlockDecoder(bundle, settings, out)

    def __call__(self, rows: _Rows) -> _Rows:
        """Decode blocks; a failure that ends the run is returned in words, because Ray would retry what is raised."""
        blocks = zip(rows["number"], rows["block"], strict=True)
        said = [self._decode(int(number), EpochRange(**json.loads(str(text)))) for number, text in blocks]
        return {"number": rows["number"], "failed": np.asarray(said, dtype=object)}

    def _decode(self, number: int, block: EpochRange) -> str:
        fault = self._fault or _unreached(block.path)
        if fault or self.decoder is None:
            return fault
        try:
            self.decoder.decode(number, block)
        except OSError as error:
            return _in_words(error)
        return ""


def decode_dataset(
    source: Path, bundle: Path, out: Path, settings: DatasetSettings, *, address: str = LOCAL, n_workers: int = 1
) -> DatasetResult:
    """Decode every epoch of a data set; run it again to go on after an interruption.

    Parameters
    ----------
    source : Path
        See `encoders.epoch_ranges`. On a cluster every machine must reach it, and `bundle` and `out`, by these paths.
    bundle, out : Path
        The folder `out` receives ``epochs.parquet``, ``pictures/``, and ``blocks/`` and ``run.json`` for going on.
    settings : DatasetSettings
    address : str
        "local" starts a private Ray on this machine that ends with the run; else where a Ray cluster is, or "auto".
    n_workers : int
        Decoders at work at the same time, of one core each.

    Returns
    -------
    DatasetResult

    Raises
    ------
    ValueError
        If the source is none, or `out` belongs to a run with other data, bundle or settings.
    OSError
        If nothing answers at `address`, or the disk is full or cannot be written; what was finished is kept.
    """
    _check_answers(address)
    source, bundle, out = source.resolve(), bundle.resolve(), out.resolve()
    about = _about(source, bundle, settings)
    (out / BLOCKS).mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _check_same_run(out / RUN, about)
        n_blocks = sum(1 for _ in ranges(source, settings.block_epochs))
        waiting = [(n, one) for n, one in enumerate(ranges(source, settings.block_epochs))
                   if not block_file(out, n).exists()]  # fmt: skip
        if waiting:
            _run(waiting, (str(bundle), settings.model_dump(), str(out)), address, n_workers)
        try:
            join_answers((block_file(out, number) for number in range(n_blocks)), out / TABLE)
        except OSError as error:
            raise OSError(_in_words(error)) from error
        n_epochs, n_refused = count_answers(out / TABLE)
    assert n_epochs == about["n_epochs"], (n_epochs, about)
    return DatasetResult(out / TABLE, n_epochs, n_refused, n_blocks, n_blocks - len(waiting))


def _run(
    waiting: list[tuple[int, EpochRange]], arguments: tuple[str, dict[str, Any], str], address: str, n_workers: int
) -> None:
    import ray
    import ray.data

    with ExitStack() as stack:
        if address == LOCAL:
            stack.enter_context(local_ray(n_workers + 1))
        else:
            ray.init(address=address, log_to_driver=False)
            stack.callback(ray.shutdown)
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name in ("ray.data", "ray.data._internal.progress"):
            logging.getLogger(name).setLevel(logging.ERROR)
        rows = [{"number": number, "block": json.dumps(asdict(block))} for number, block in waiting]
        done = ray.data.from_items(rows).map_batches(
            BlockTask,
            fn_constructor_args=arguments,
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
        )
        for row in tqdm(done.iter_rows(), total=len(waiting), desc="blocks", delay=1.0):
            if row["failed"]:
                raise OSError(row["failed"])


def _check_answers(address: str) -> None:
    """See whether anything is there, which Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # local, auto, or a client's address
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise OSError(f"no Ray cluster answers at {address} ({error}); give what `ray start` printed") from error


def _about(source: Path, bundle: Path, settings: DatasetSettings) -> dict[str, Any]:
    """Say what a run is of, so that no other goes on in its folder."""
    manifest = Bundle.load(bundle).manifest
    about = {"bundle": manifest.id, "preprocessing_hash": manifest.preprocessing_hash}
    return asdict(summarise(source)) | about | settings.model_dump()


def _check_same_run(path: Path, about: dict[str, Any]) -> None:
    if not path.exists():
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(about, indent=1))
        partial.replace(path)
        return
    before = json.loads(path.read_text())
    other = {name: (before.get(name), value) for name, value in about.items() if before.get(name) != value}
    if other:
        told = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in other.items())
        raise ValueError(f"{path.parent} holds another run: {told}; use the same settings, or another folder")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Let one run at a time into a folder; a killed one lets go of it by itself."""
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run works in {out}; wait for it, or use another folder") from None
        yield


def _unreached(*paths: str) -> str:
    """Say what this machine of a cluster, which need not be the one where the run began, does not find."""
    lost = next((path for path in paths if not os.path.exists(path)), None)
    return f"{os.uname().nodename} does not reach {lost}; all machines must, by the same path" if lost else ""


def _in_words(error: OSError) -> str:
    advice: dict[int | None, str] = {
        errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EACCES: "look at its permissions",
    }  # fmt: skip
    what = os.strerror(error.errno) if error.errno else str(error)
    todo = advice.get(error.errno, "look at the disk")
    return f"cannot write results ({what}); {todo} and run the same command again: finished blocks are kept"
