"""Train every encoder and every fusion on one simulated study and write the tables of ``BENCHMARKS.md``.

    python benchmarks/encoder_table.py [--workers N] [--part PART] [--only WORDS] [--work DIR] [--table]

                                                                                               (make bench-encoders)

Every job gets the same recordings, the same loss and the same `Budget` of optimizer steps and of processor time for
them (two rows say that they had more), on one thread: the number of steps is set from the speed of the first ones, so
that the learning rate always runs through its whole cycle. Weights are selected on validation pictures; the test
pictures are looked at once per job. Finished jobs are skipped and killed ones go on from their checkpoint, so
the command may be stopped and repeated; ``--table`` only writes what is there, and says what is missing. With
``--part fusion`` the fusions and the encoders alone that they are compared with are trained, and their two tables are
written. About two hours of two cores for all, half of it for the fusions.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.runtime import Runtime  # noqa: E402
from benchmarks.encoder_jobs import BOTH, LAYOUT_NAMES, Job, all_jobs, fusion_jobs  # noqa: E402
from benchmarks.encoder_laboratory import Laboratory, run_job, run_yardsticks  # noqa: E402
from benchmarks.encoder_report import write_tables  # noqa: E402
from benchmarks.fusion_report import write_fusion_section  # noqa: E402
from benchmarks.fusion_without_learning import run_without_learning  # noqa: E402
from encoders.durable_files import write_atomic  # noqa: E402

RUN = {"yardsticks": run_yardsticks, "without learning": run_without_learning}


def claimed(folder: Path) -> bool:
    """Claim a job for this process; a claim of a process that is gone is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / "claim"
    try:
        with claim.open("x") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        owner = claim.read_text().strip()
        if owner.isdigit() and (Path("/proc") / owner).exists():
            return False
        claim.unlink(missing_ok=True)
        return claimed(folder)


def work_through(jobs: Sequence[Job], work: Path, threads: int) -> None:
    """Do every job that is neither done nor claimed, all on the same recordings."""
    laboratory: Laboratory | None = None
    runtime = Runtime(threads=threads)
    modalities = tuple(dict.fromkeys(name for job in jobs for name in job.modalities))
    for job in jobs:
        folder = work / job.key
        if (folder / "result.json").exists() or not claimed(folder):
            continue
        if laboratory is None:
            laboratory = Laboratory(modalities, runtime)
        mine = laboratory if job.modalities == modalities else laboratory.only(job.modalities)
        started = time.perf_counter()
        try:
            result = RUN.get(job.group, run_job)(job, mine, folder)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            result = {"job": job.key, "title": job.title, "group": job.group, "modalities": job.modalities,
                      "seed": job.seed, "error": f"{type(error).__name__}: {error}"}  # fmt: skip
        result["wall_seconds"] = time.perf_counter() - started
        write_atomic(folder / "result.json", json.dumps(result, indent=1).encode())
        (folder / "claim").unlink(missing_ok=True)
        print(f"{job.key}: {result.get('error') or summary_line(result)}", flush=True)


def summary_line(result: dict[str, Any]) -> str:
    """Say the averaged top-1 of each combination."""
    scores = result["scores"]
    tables = scores["ridge"] if "ridge" in scores else scores
    parts = [f"{key} {value:.3f}" for key, table in tables.items() for value in [_averaged(table)["top_1"]]]
    return f"averaged top-1 {', '.join(parts)}; {result['wall_seconds']:.0f} s"


def _averaged(table: dict[str, Any]) -> dict[str, Any]:
    return next(scores for label, scores in table.items() if label != "single")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "bench", help="folder of finished jobs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="one thread each")
    parser.add_argument("--only", default="", help="comma-separated words; a job runs if its key holds one of them")
    parser.add_argument("--part", choices=("all", "fusion"), default="all", help="fusion: its two tables, others stay")
    parser.add_argument("--table", action="store_true", help="write the tables of what is finished and stop")
    parser.add_argument("--note", default="", help="a sentence above the tables: what was special about this run")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    words = [word for word in arguments.only.split(",") if word]

    def expected() -> list[Job]:
        jobs = all_jobs(arguments.work)
        return fusion_jobs(jobs) if arguments.part == "fusion" else jobs

    def chosen() -> list[Job]:
        return [job for job in expected() if not words or any(word in job.key for word in words)]

    if arguments.worker:
        work_through(chosen(), arguments.work, threads=1)
        return
    while not arguments.table:
        before = [job.key for job in chosen()]
        command = [sys.executable, __file__, "--worker", "--work", str(arguments.work), "--only", arguments.only,
                   "--part", arguments.part]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen(command, env=environment) for _ in range(arguments.workers)]
        failed = [one.returncode for one in running if one.wait()]
        if failed:
            raise SystemExit(f"{len(failed)} of {arguments.workers} workers failed; run the command again to go on")
        if [job.key for job in chosen()] == before:  # the best of the first round get more seeds in the second
            break
    names = {BOTH: LAYOUT_NAMES[BOTH]} if arguments.part == "fusion" else LAYOUT_NAMES
    write_tables(arguments.work, names, expected(), arguments.note)
    write_fusion_section(arguments.work, expected(), arguments.note)


if __name__ == "__main__":
    main()
