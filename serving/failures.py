"""Failures in the log: what kind, and where in the code. What an error says is left out.

The words of an error often quote what it was given: a name, a file, samples. The log of a service must hold none.
"""

import logging
import traceback


def log_failure(logger: logging.Logger, sentence: str, error: BaseException) -> None:
    """Log an error that nobody expected, and the ones that led to it, by type and place."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 8:
        places = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_tb(seen.__traceback__)]
        parts.append("\n  ".join([type(seen).__name__, *places]))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    logger.error("%s: %s", sentence, "\nafter ".join(parts))
