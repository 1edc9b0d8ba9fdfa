"""Curves of a run in TensorBoard or another tracker that Accelerate knows, in the run folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CURVES = "curves"
EVENTS = "events.out.tfevents"


@contextmanager
def tracked(name: str, run_dir: Path) -> Iterator[Callable[[int, Mapping[str, float]], None] | None]:
    """Open a tracker that is told every line of the log; for the first process only.

    Parameters
    ----------
    name : str
        As Accelerate names it, ``tensorboard`` say; empty for none.
    run_dir : Path
        TensorBoard's files go to its folder ``curves``. A resumed run writes a further file; steps since the last
        checkpoint are then in both.

    Yields
    ------
    callable or None
        ``on_log(step, numbers)``.

    Raises
    ------
    ValueError
        If Accelerate knows no such tracker.
    ImportError
        If its library is not installed.
    """
    if not name:
        yield None
        return
    from accelerate import tracking

    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"tracker {name!r} is unknown, allowed are {sorted(tracking.LOGGER_TYPE_TO_CLASS)}")
    if name not in {str(one) for one in tracking.get_available_trackers()}:
        raise ImportError(
            f"the tracker {name!r} needs a library that is not installed; pip install "
            f"{'phosphene[train]' if name == 'tensorboard' else name!r}, or run without --tracker"
        )
    kind = tracking.LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(CURVES, logging_dir=run_dir) if kind.requires_logging_directory else kind(CURVES)
    tracker.start()
    try:
        yield lambda step, numbers: tracker.log(dict(numbers), step=step)
    finally:
        tracker.finish()
        _without_machine_names(run_dir / CURVES)


def _without_machine_names(folder: Path) -> None:
    """Rename TensorBoard's ``events.out.tfevents.<time>.<machine>.<process>.<number>`` files."""
    for path in folder.glob(f"{EVENTS}.*.*.*.*"):
        time, *_, process, number = path.name.removeprefix(f"{EVENTS}.").split(".")
        path.rename(path.with_name(f"{EVENTS}.{time}.{process}.{number}"))
