"""`BENCHMARKS.md` as a set of sections: each script replaces its own and leaves the others alone."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "BENCHMARKS.md"
HEAD = "# Benchmarks\n\nEach section is written by the script that it names, never by hand.\n"


def standing_row(section: str, title: str) -> str:
    """Find the table row of ``title`` in a section as it stands, ``""`` if there is none."""
    return standing_line(section, f"| {title} |", f"| {title} (")


def standing_line(section: str, *begins: str) -> str:
    """Find the line of a section, as it stands, that begins with one of ``begins``; ``""`` if there is none."""
    text = FILE.read_text() if FILE.exists() else ""
    body = next((one for one in re.split(r"(?m)^## ", text) if one.startswith(f"{section}\n")), "")
    return next((line for line in body.splitlines() if line.startswith(begins)), "")


def write_section(title: str, body: str) -> None:
    """Put ``body`` under ``## title``, in place of what stood there, and print it."""
    text = FILE.read_text() if FILE.exists() else HEAD
    found = re.split(r"(?m)^(?=## )", text)[1:]
    section = f"## {title}\n\n{body.strip()}\n\n"
    titles = [one.splitlines()[0].removeprefix("## ") for one in found]
    if title in titles:
        found[titles.index(title)] = section
    else:
        found.append(section)
    FILE.write_text(HEAD + "\n" + "".join(one.rstrip() + "\n\n" for one in found).rstrip() + "\n")
    print(section)
