"""`phosphene erase-me`: everything that a service keeps of whoever asks is erased, once it was said to be meant."""

import argparse
import os
import sys
from collections.abc import Callable

from serving.stream_command import KEY_VARIABLE


def add_erasure_command(
    add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser],
) -> None:
    """Declare the command; ``add(name, run, text)`` makes one."""
    erase = add("erase-me", _erase, "erase everything that a service keeps of you: jobs, uploads, results, their key")
    erase.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default: %(default)s); "
                       f"its key, if it asks for one, is taken from the variable {KEY_VARIABLE}")  # fmt: skip
    erase.add_argument("--yes", action="store_true", help="really do it; nothing of it can be brought back")


def _erase(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        raise ValueError(f"this erases all your jobs and results at {arguments.url} for good; repeat it with --yes")
    import httpx

    from serving.client import PhospheneClient, problem_of

    try:
        with PhospheneClient(arguments.url, api_key=os.environ.get(KEY_VARIABLE, "")) as client:
            erased = client.erase_me(confirm=True)
    except httpx.HTTPError as error:
        print(f"phosphene erase-me: {error}", file=sys.stderr)
        refused = isinstance(error, httpx.HTTPStatusError) and problem_of(error) is not None
        return 2 if refused else 1
    told = erased.model_dump_json() if arguments.json else f"jobs erased: {erased.n_jobs}"
    print(told)
    return 0
