"""A search spread over a Ray cluster: one Ray task per worker, all of them on the trials of one Optuna storage.

    python -m serving.tune --config configs/NAME.yaml --space configs/search.yaml --run-dir /shared/search --trials 40 \
        --workers 8 --gpus-per-worker 1 --address auto --storage postgresql://...

Ray places the workers and starts a lost one again; which trial is next, and which is cut, the storage decides. Run
folder, targets and prepared epochs must be on a file system that all machines see.
"""

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from serving.cluster import local_ray

MAX_RESTARTS = 3


def tune(
    config: dict[str, Any], space: dict[str, Any], run_dir: Path, n_trials: int, *, n_workers: int, storage: str = "",
    address: str = "", cpus: int = 1, gpus: float = 0.0, n_check: int = 0, n_seeds: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Run a search on a Ray cluster and write its report.

    Parameters
    ----------
    config, space : dict
        Settings of `TrainConfig` and `SearchConfig`.
    run_dir : Path
    n_trials : int
        In all, those of earlier runs counted.
    n_workers : int
        Tasks that train at the same time.
    storage : str
        As in `alignment.search.search`.
    address : str
        Of the cluster; empty: a private one on this machine, ended afterwards.
    cpus : int
    gpus : float
        Of each worker.
    n_check, n_seeds : int
        As in `alignment.search.search`; this process does the check.

    Returns
    -------
    dict
        As `alignment.search.search`.

    Raises
    ------
    ValueError
        If the search cannot be opened, or several machines would share a SQLite file.
    """
    from alignment.search import conclude, open_search
    from alignment.search_space import SearchConfig
    from alignment.train_config import TrainConfig

    opened = open_search(
        TrainConfig.model_validate(config), SearchConfig.model_validate(space), run_dir.resolve(), storage
    )
    with _connected(address) if address else local_ray(n_workers * cpus):
        import ray  # not before: a private cluster sets what Ray reads on import

        machines = [one for one in ray.nodes() if one["Alive"]]  # type: ignore[no-untyped-call]
        if len(machines) > 1 and (not storage or storage.startswith("sqlite")):
            raise ValueError(
                f"a SQLite file cannot be shared by the {len(machines)} machines of {address!r}; give as storage the "
                "URL of a database server"
            )
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_RESTARTS)(_work)
        ray.get([task.remote(config, space, str(opened.run_dir), n_trials, storage) for _ in range(n_workers)])
    return conclude(opened, n_check=n_check, n_seeds=n_seeds)


def _work(config: dict[str, Any], space: dict[str, Any], run_dir: str, n_trials: int, storage: str) -> int:
    """Do missing trials in a process of Ray; return this process's id."""
    from alignment.search import do_trials, open_search
    from alignment.search_space import SearchConfig
    from alignment.train_config import TrainConfig

    opened = open_search(
        TrainConfig.model_validate(config), SearchConfig.model_validate(space), Path(run_dir), storage
    )  # fmt: skip
    do_trials(opened, n_trials)
    return os.getpid()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML of a training, see configs/")
    parser.add_argument("--space", type=Path, required=True, help="YAML of the search, see configs/search.yaml")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True, help="in all, those of earlier runs counted")
    parser.add_argument("--workers", type=int, required=True, help="trials that train at the same time")
    parser.add_argument("--storage", default="", help="URL of a database; default: SQLite in the run dir")
    parser.add_argument("--address", default="", help="of a Ray cluster; default: a private one on this machine")
    parser.add_argument("--cpus-per-worker", type=int, default=1)
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--check-top", type=int, default=0, metavar="N", help="train the best N on all data too")
    parser.add_argument("--check-seeds", type=int, default=1, metavar="N", help="trainings of each of these")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    from alignment.search import search_text

    report = tune(
        yaml.safe_load(arguments.config.read_text()), yaml.safe_load(arguments.space.read_text()), arguments.run_dir,
        arguments.trials, n_workers=arguments.workers, storage=arguments.storage, address=arguments.address,
        cpus=arguments.cpus_per_worker, gpus=arguments.gpus_per_worker, n_check=arguments.check_top,
        n_seeds=arguments.check_seeds,
    )  # fmt: skip
    print(search_text(report))


if __name__ == "__main__":
    main()
