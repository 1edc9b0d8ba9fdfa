"""YAML that somebody wrote by hand: what is wrong with it is told with its place, not as a traceback."""

from pathlib import Path
from typing import Any

import yaml


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Parameters
    ----------
    text : str
    source : str
        Where it is from, for the message.

    Raises
    ------
    ValueError
        If it is not YAML; the message names the source, and the line where there are several.
    """
    try:
        return yaml.safe_load(text)
    except Exception as error:  # besides its own errors whatever int(), dates and a stack that is too deep raise in it
        where = ""
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            where = f" (line {error.problem_mark.line + 1}: {error.problem})"
        raise ValueError(f"{source} is not YAML{where}; correct it") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of names and values; an empty file is an empty mapping.

    Raises
    ------
    ValueError
        If it is not YAML, or something other than a mapping.
    OSError
        If it cannot be read.
    """
    content = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected lines of `name: value`; correct it")
    return content
