"""Quotas: counted per name and window, shared through a file, free again when the window ends."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from serving import quota
from serving.quota import DAY_S, MINUTE_S, QuotaCounter


def test_uses_are_counted_until_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 600_000.0 * MINUTE_S + 12.5
    monkeypatch.setattr(quota.time, "time", lambda: now)
    counter = QuotaCounter()
    assert [counter.spend("lab/anna", MINUTE_S, 3) for _ in range(5)] == [0, 0, 0, 48, 48]
    assert counter.spend("lab/ben", MINUTE_S, 3) == 0 and counter.spend("lab/anna", DAY_S, 3) == 0
    now += 48.0
    assert counter.spend("lab/anna", MINUTE_S, 3) == 0
    counter.close()


def test_a_file_is_shared_and_outlives_the_process(tmp_path: Path) -> None:
    first, second = QuotaCounter(str(tmp_path / "quota.sqlite")), QuotaCounter(str(tmp_path / "quota.sqlite"))
    assert [one.spend("a", DAY_S, 3) == 0 for one in (first, second, first, second)] == [True, True, True, False]
    first.close()
    second.close()
    assert QuotaCounter(str(tmp_path / "quota.sqlite")).spend("a", DAY_S, 3) > 0


def test_a_file_that_somebody_has_locked_holds_nobody_up_for_long(tmp_path: Path) -> None:
    """The service counts in its event loop: while a count waits, nobody is answered, health checks neither."""
    counter = QuotaCounter(str(tmp_path / "quota.sqlite"))
    with closing(sqlite3.connect(tmp_path / "quota.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        for _ in range(10):
            with pytest.raises(sqlite3.Error):
                counter.spend("a", DAY_S, 3)
        assert time.monotonic() - started < 1.0
        other.execute("COMMIT")
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            assert counter.spend("a", DAY_S, 1) == 0
            break
        except sqlite3.Error:
            time.sleep(0.1)
    assert counter.spend("a", DAY_S, 1) > 0
    counter.close()
