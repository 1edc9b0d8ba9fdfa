"""Trials of a search in an Optuna storage: drawn, cut by successive halving, shared by processes, tried again.

A trial of a process that died is tried again by whoever notices it. Everything drawn depends on the seed, the trial's
number and the results so far, so a search by one process that was stopped between trials goes on as if it had not been.
"""

import fcntl
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.search_space import SearchConfig, draw_values, values_of

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

STUDY = "search"
RETRY_OF, RETRIES, NOTE = "retry_of", "retries", "note"
MAX_RETRIES = 3
Report = Callable[[int, float], None]
Objective = Callable[[Mapping[str, Any], int, Report], float]


def default_storage(run_dir: Path) -> str:
    """Give the URL of the SQLite file in a run folder."""
    return f"sqlite:///{run_dir.resolve() / 'search.db'}"


def open_trials(
    run_dir: Path, storage: str, search: SearchConfig, digest: str, *, max_steps: int, validate_every: int
) -> "optuna.Study":
    """Open or make the trials of a search.

    Parameters
    ----------
    run_dir : Path
        Made when missing.
    storage : str
        URL of a database as SQLAlchemy takes it; empty: `default_storage`.
    search : SearchConfig
    digest : str
        `alignment.search_space.search_digest`.
    max_steps, validate_every : int
        Of a trial.

    Raises
    ------
    ValueError
        If the storage holds another search.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("searching needs Optuna, which is not installed: pip install 'phosphene[train]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # progress is told by this module's logger instead
    run_dir.mkdir(parents=True, exist_ok=True)
    url = storage or default_storage(run_dir)
    engine = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    # two processes that make the tables of one SQLite file at the same time get in each other's way
    with _lock(run_dir / ".search.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        rdb = optuna.storages.RDBStorage(
            url, engine_kwargs=engine, heartbeat_interval=search.heartbeat_seconds,
            grace_period=3 * search.heartbeat_seconds, heartbeat_stale_trial_callback=_try_again,
        )  # fmt: skip
        study = optuna.create_study(
            storage=rdb, study_name=STUDY, direction="maximize", load_if_exists=True,
            pruner=_pruner(search, max_steps, validate_every),
        )  # fmt: skip
        found = study.user_attrs.get("digest")
        if found is None:
            study.set_user_attr("max_steps", max_steps)
            study.set_user_attr("digest", digest)
        elif found != digest:
            raise ValueError(
                f"{url} holds a search with another config or space; use a new run folder (or storage) for this one"
            )
    return study


def run_trials(study: "optuna.Study", objective: Objective, search: SearchConfig, n_trials: int) -> None:
    """Work on a search until ``n_trials`` have ended, those of earlier and of other processes counted.

    Parameters
    ----------
    study : optuna.Study
        From `open_trials`.
    objective : callable
        ``objective(values, number, report) -> score``; ``report(step, score)`` ends the trial where it is cut.
        ``number`` stays the same when a trial is tried again. A `FloatingPointError` (it diverged) or `MemoryError`
        ends the trial below all others; any other error ends the search.
    search : SearchConfig
    n_trials : int
        Processes that start a trial in the same moment may exceed it by one each.
    """
    import optuna

    states = optuna.trial.TrialState
    ended, running = (states.COMPLETE, states.PRUNED), (states.RUNNING,)
    while _count(study, ended) < n_trials:
        if _count(study, ended + running) < n_trials:
            study.optimize(lambda trial: _attempt(trial, objective, search), n_trials=1)
            logger.info("%d of %d trials have ended", _count(study, ended), n_trials)
        else:  # others hold the last trials; should one of them die, its trial is done here
            time.sleep(min(search.heartbeat_seconds / 4, 5.0))
            _notice_dead(study)


def trial_table(study: "optuna.Study", search: SearchConfig) -> list[dict[str, Any]]:
    """List the trials that ended, the best first, those that were cut after those that were not."""
    import optuna

    states = optuna.trial.TrialState
    rows = []
    for trial in study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)):
        last = trial.last_step
        score = trial.value if trial.state == states.COMPLETE else trial.intermediate_values.get(last or 0)
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "score": score,
                "steps": last or 0,
                "seconds": trial.duration.total_seconds() if trial.duration else 0.0,
                "values": values_of(search.space, trial.params),
                "note": trial.user_attrs.get(NOTE, ""),
                "retry_of": trial.user_attrs.get(RETRY_OF),
            }
        )
    worst = float("-inf")
    return sorted(
        rows, key=lambda row: (row["state"] != "complete", -(worst if row["score"] is None else row["score"]))
    )


def _attempt(trial: "optuna.Trial", objective: Objective, search: SearchConfig) -> float:
    import optuna

    seed = search.seed * 1_000_003 + trial.number
    trial.study.sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=search.n_startup)
    values = draw_values(search.space, trial)

    def report(step: int, score: float) -> None:
        trial.report(score, step)
        if step < trial.study.user_attrs["max_steps"] and trial.should_prune():
            raise optuna.TrialPruned(f"cut at step {step}")

    try:
        return objective(values, int(trial.user_attrs.get(RETRY_OF, trial.number)), report)
    except (FloatingPointError, MemoryError) as error:
        trial.set_user_attr(NOTE, str(error))
        raise optuna.TrialPruned(str(error)) from error
    except KeyboardInterrupt:
        _try_again(trial.study, trial.study.trials[trial.number])
        raise


def _try_again(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    """Put a trial back into the queue, under the number that its folder has."""
    import optuna

    told = {
        RETRY_OF: trial.user_attrs.get(RETRY_OF, trial.number),
        RETRIES: trial.user_attrs.get(RETRIES, 0) + 1,
    }
    if told[RETRIES] <= MAX_RETRIES and trial.params:
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=told,
            )
        )


def _notice_dead(study: "optuna.Study") -> None:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _pruner(search: SearchConfig, max_steps: int, validate_every: int) -> "optuna.pruners.BasePruner":
    import optuna

    first = search.first_rung or validate_every
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(first, max(max_steps, first), search.reduction_factor)
    return optuna.pruners.SuccessiveHalvingPruner(first, search.reduction_factor)


def _count(study: "optuna.Study", states: tuple["optuna.trial.TrialState", ...]) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
