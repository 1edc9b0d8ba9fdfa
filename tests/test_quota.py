"""Quotas: counted per name and window, shared through a file, free again when the window ends."""

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
