"""Counting what was used, in fixed windows of time, in one small SQLite table.

A file is shared by every replica on a machine and outlives restarts; without one the counts live in this process.
"""

import math
import sqlite3
import threading
import time

MINUTE_S, DAY_S = 60, 86400
# Counting is done while nothing else is: a file that somebody else has locked may hold everybody up for so long only,
_BUSY_S = 0.25
# and then not again before so many seconds.
_REST_S = 1.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS used (who TEXT, window INTEGER, start INTEGER, n INTEGER, PRIMARY KEY (who, window))"
)
_COUNT = (
    "INSERT INTO used VALUES (?, ?, ?, 1) ON CONFLICT (who, window) DO UPDATE SET "
    "n = CASE WHEN start = excluded.start THEN n + 1 ELSE 1 END, start = excluded.start RETURNING n"
)


class QuotaCounter:
    """Count uses per name and window.

    Parameters
    ----------
    path : str
        SQLite file; empty for memory.
    """

    def __init__(self, path: str = "") -> None:
        self._lock = threading.Lock()
        self._rests_until = 0.0
        self._base = sqlite3.connect(path or ":memory:", timeout=2.0, isolation_level=None, check_same_thread=False)
        # a count that is lost with the machine's power costs nobody anything
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = OFF")
        self._base.execute(_TABLE)
        self._base.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_S)}")

    def spend(self, who: str, window_s: int, limit: int) -> int:
        """Count one use; return 0, or the seconds until there is room again if it was one too many.

        Raises
        ------
        sqlite3.Error
            If the table cannot be used, or could not a moment ago.
        """
        now = time.time()
        start = int(now) // window_s * window_s
        with self._lock:
            if time.monotonic() < self._rests_until:
                raise sqlite3.OperationalError("the table could not be used a moment ago")
            try:
                ((n,),) = self._base.execute(_COUNT, (who, window_s, start)).fetchall()
            except sqlite3.Error:
                self._rests_until = time.monotonic() + _REST_S
                raise
        return 0 if n <= limit else max(1, math.ceil(start + window_s - now))

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._base.close()
