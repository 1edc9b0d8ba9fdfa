"""`phosphene formats`: what may be sent, how, what is checked before it is read, and what each was tested with."""

import argparse
import json
from collections.abc import Callable


def add_formats_command(
    add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser],
) -> None:
    """Declare the command; ``add(name, run, text)`` makes one."""
    add("formats", _formats, "list the recording formats: how to send each, what is checked")


def _formats(arguments: argparse.Namespace) -> int:
    from encoders.formats import FORMATS

    entries = [
        {
            "name": entry.name,
            "supported": entry.read is not None,
            "send": entry.send if entry.read else "",
            "checks": entry.checks,
            "tested_with": entry.tested,
            "advice": entry.advice,
        }
        for entry in FORMATS
    ]
    if arguments.json:
        print(json.dumps(entries))
        return 0
    for entry in entries:
        if entry["supported"]:
            print(f"{entry['name']}\n  send    {entry['send']}\n  checked {entry['checks']}")
            print(f"  tested  {entry['tested_with'] or 'untested: no small true file could be made or found'}")
    print("Not read:")
    for entry in entries:
        if not entry["supported"]:
            print(f"  {entry['name']}: {entry['advice']}")
    print("Every file: size, packing, links and names in zips; then shape, rate, names, finite values and their size.")
    return 0
