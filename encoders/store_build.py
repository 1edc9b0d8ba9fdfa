"""Build a store of epochs from a data set: parts in parallel processes, resumable, never half published.

While parts are converted they lie in ``<out>/building``; ``store.json`` is written last, so a folder without it is no
store. A build that was stopped at any moment is finished by the same call, with the same bytes as one that was not.
"""

import fcntl
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from tqdm import tqdm

from encoders.durable_files import sync
from encoders.epoch_source import EpochPart, EpochSource
from encoders.store import COLUMNS, EpochStore
from encoders.store_manifest import (
    MANIFEST,
    METADATA,
    SHARDS,
    BuildPlan,
    PlannedPart,
    StoredDtype,
    StoreManifest,
    replace_durably,
)
from encoders.store_part import FinishedPart, check_agreement, convert_part, plan_part, read_finished, table_bytes
from encoders.store_shards import scales_of

SHARD_BYTES = 128 * 1024**2
BUILDING, PLAN, LOCK = "building", "plan.json", "lock"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_Job = tuple[EpochPart, PlannedPart, str, BuildPlan, Path]


def build_store(
    source: EpochSource,
    out: Path | str,
    *,
    n_workers: int = 1,
    progress: bool = False,
    dtype: StoredDtype = "float16",
    shard_bytes: int = SHARD_BYTES,
    settings: str = "",
) -> EpochStore:
    """Convert a data set into a store, or go on with a conversion that was stopped.

    Parameters
    ----------
    source : EpochSource
        Picklable when ``n_workers`` is above 1.
    out : Path or str
        Folder of the store: absent, empty, unfinished, or finished from the same inputs (then nothing is done).
    n_workers : int
        Processes, of one thread each; a script that asks for more than 1 needs ``if __name__ == "__main__"``. Each
        holds a block of the source and a shard in memory. The result does not depend on it.
    progress : bool
        Show a bar of parts.
    dtype : str
        ``float16`` (11 significant bits), or ``float32`` for twice the space.
    shard_bytes : int
        Upper bound of a shard's signal; shards never hold epochs of two parts.
    settings : str
        What else decides the signal, the converter's options as JSON say; recorded, and compared when a build goes on.

    Returns
    -------
    EpochStore

    Raises
    ------
    ValueError
        If parts disagree in channels, rate or window, a value cannot be stored, or inputs or settings are not those
        with which an unfinished or finished store in ``out`` was begun.
    OSError
        If the disk is full, or another process builds the same store. Finished parts are kept in every case.
    """
    out = Path(out)
    if n_workers < 1:
        raise ValueError(f"n_workers is {n_workers}, expected at least 1")
    parts = tuple(source.parts())
    root = _common_folder(parts)
    plan = _plan(source.dataset, parts, root, dtype, shard_bytes, settings)
    if (out / MANIFEST).is_file() and not (out / BUILDING).exists():
        return _finished_store(out, plan)
    building = out / BUILDING
    _check_folder(out)
    building.mkdir(parents=True, exist_ok=True)
    with _lock(building / LOCK):
        if not (out / MANIFEST).is_file():
            _begin(building, plan)
            finished = _convert(parts, root, plan, building, n_workers, progress)
            _publish(out, plan, finished)
        store = _finished_store(out, plan)
        shutil.rmtree(building)
    return store


def _plan(
    dataset: str, parts: Sequence[EpochPart], root: str, dtype: StoredDtype, shard_bytes: int, settings: str
) -> BuildPlan:
    names = [part.name for part in parts]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValueError(f"parts {twice[:5]} appear more than once; their names must be unique")
    try:
        planned = tuple(plan_part(part, root) for part in parts)
        return BuildPlan(dataset=dataset, settings=settings, dtype=dtype, shard_bytes=shard_bytes, parts=planned)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"cannot build a store: {first['loc']} is {first['input']!r}: {first['msg']}") from error


def _common_folder(parts: Sequence[EpochPart]) -> str:
    folders = [os.path.dirname(os.path.abspath(path)) for part in parts for path in part.inputs]
    return os.path.commonpath(folders) if folders else os.getcwd()


def _check_folder(out: Path) -> None:
    if out.is_dir() and not (out / BUILDING).is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is neither empty nor a store; choose another folder")


def _finished_store(out: Path, plan: BuildPlan) -> EpochStore:
    store = EpochStore.open(out)
    _check_same(store.manifest.plan, plan, out)
    return store


def _begin(building: Path, plan: BuildPlan) -> None:
    """Record the plan, or compare it with the one that the build was begun with; remove half-written parts."""
    file = building / PLAN
    if file.is_file():
        _check_same(BuildPlan.model_validate_json(file.read_bytes()), plan, building.parent)
    else:
        replace_durably(file, plan.model_dump_json(indent=1).encode(), building)
    for path in building.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_same(begun: BuildPlan, plan: BuildPlan, out: Path) -> None:
    if begun == plan:
        return
    differences = [
        f"{field} was {getattr(begun, field)!r} and is {getattr(plan, field)!r}"
        for field in ("dataset", "settings", "dtype", "shard_bytes")
        if getattr(begun, field) != getattr(plan, field)
    ]
    before, now = ({part.name: part for part in one.parts} for one in (begun, plan))
    differences += [f"part {name} is new" for name in now if name not in before]
    differences += [f"part {name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        old, new = ({entry.path: entry for entry in one[name].inputs} for one in (before, now))
        changed = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
        differences += [f"inputs of part {name} changed: {changed[:3]}"] if changed else []
    said = "; ".join(differences[:5] or ["the parts come in another order"])
    raise ValueError(
        f"{out} was begun with other inputs or settings ({len(differences)} differences): {said}; delete {out} to "
        "build it anew, or choose another folder"
    )


def _convert(
    parts: Sequence[EpochPart], root: str, plan: BuildPlan, building: Path, n_workers: int, progress: bool
) -> list[FinishedPart]:
    """Convert the parts that are missing and return all, in the source's order."""
    finished = {part.name: read_finished(building / part.name) for part in parts if (building / part.name).is_dir()}
    jobs = [
        (part, planned, root, plan, building)
        for part, planned in zip(parts, plan.parts, strict=True)
        if part.name not in finished
    ]
    _check_parts(finished)
    bar = tqdm(total=len(parts), initial=len(finished), desc="parts", disable=not progress, mininterval=1.0)
    with bar:
        for name in _run(jobs, n_workers):
            finished[name] = read_finished(building / name)
            _check_parts(finished)
            bar.update()
    return [finished[part.name] for part in parts]


def _run(jobs: Sequence[_Job], n_workers: int) -> Iterator[str]:
    """Convert parts and give their names as they get finished."""
    if n_workers == 1:
        for job in jobs:
            convert_part(*job)
            yield job[0].name
        return
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(min(n_workers, len(jobs) or 1), context, _die_with_parent) as pool:
        futures = {pool.submit(convert_part, *job): job[0].name for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise OSError(
                "a converting process died, killed for its use of memory perhaps; run the same build again with fewer "
                "workers: finished parts are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_parts(finished: dict[str, FinishedPart]) -> None:
    parts = list(finished.values())
    for part in parts[1:]:
        check_agreement(f"part {part.name}", part.signal, f"part {parts[0].name}", parts[0].signal)


def _publish(out: Path, plan: BuildPlan, finished: Sequence[FinishedPart]) -> None:
    """Move the shards into place, write the table, and ``store.json`` last; may be stopped and done again."""
    building, shards = out / BUILDING, out / SHARDS
    shards.mkdir(exist_ok=True)
    for part in finished:
        for shard in part.shards:
            if (building / part.name / shard.file).exists():  # else an earlier run has moved it
                os.replace(building / part.name / shard.file, shards / shard.file)
    sync(shards)
    written = replace_durably(out / METADATA, table_bytes(_joined_tables(building, finished)), building)
    positions = list(dict.fromkeys(part.positions for part in finished))
    signal = finished[0].signal
    manifest = StoreManifest(
        plan=plan,
        signal=signal,
        scales=tuple(float(str(scale)) for scale in scales_of(signal.ch_types)),
        metadata=written,
        shards=tuple(shard for part in finished for shard in part.shards),
        part_epochs=tuple(part.n_epochs for part in finished),
        part_positions=tuple(positions.index(part.positions) for part in finished),
        positions=tuple(positions),
    )
    replace_durably(out / MANIFEST, manifest.to_text().encode(), building)


def _joined_tables(building: Path, finished: Sequence[FinishedPart]) -> pa.Table:
    tables, n_shards = [], 0
    for part in finished:
        table = pq.read_table(building / part.name / METADATA, use_threads=False)
        shard = pa.array(table["shard"].to_numpy() + n_shards, pa.int32())
        table = table.set_column(table.schema.get_field_index("shard"), "shard", shard)
        tables.append(table.append_column("part", pa.array([part.name] * len(table), pa.string())))
        n_shards += len(part.shards)
    joined = pa.concat_tables(tables)
    return joined.append_column("row", pa.array(np.arange(len(joined)))).select(COLUMNS.names).combine_chunks()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other builders out; the lock of a killed one is free."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(error.errno, f"another process builds {path.parent.parent}; wait for it") from None
        yield


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start inside use one thread; numerical libraries read this when they are imported."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however it was ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
