"""Failures in the log: what kind, and where in the code. What an error says is left out.

The words of an error often quote what it was given: a name, a file, samples. The log of a service must hold none.
"""

import logging
import traceback

# uvicorn's protocols log through the first; the others are the defaults of the library of WebSockets
_WORDY = ("uvicorn.error", "websockets.server", "websockets.protocol")


def quiet_servers() -> None:
    """Keep frames, headers and addresses of connections out of the log, however much of it somebody wants to see.

    Servers write them at DEBUG and INFO, and Ray Serve's proxy gives its server the level of the root.
    """
    for name in _WORDY:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))


def log_failure(logger: logging.Logger, sentence: str, error: BaseException) -> None:
    """Log an error that nobody expected, and the ones that led to it, by type and place."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 8:
        places = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_tb(seen.__traceback__)]
        parts.append("\n  ".join([type(seen).__name__, *places]))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    logger.error("%s: %s", sentence, "\nafter ".join(parts))
