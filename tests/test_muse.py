"""Runs in the headset's layout are read, cleaned and checked; a run that was stored twice is used once."""

from pathlib import Path

import numpy as np
import pytest

from encoders.datasets.muse import N170, read_muse_epochs, read_run


def write_run(path: Path, seed: int, n_events: int = 80, marker: str = "Marker0", rate: float = 256.0) -> None:
    generator = np.random.default_rng(seed)
    n = 256 * 60
    data = generator.normal(scale=15.0, size=(n, 5)).round(3)
    codes = np.zeros(n)
    onsets = 200 + np.arange(n_events) * 180
    codes[onsets] = 1 + np.arange(n_events) % 2
    times = 1000.0 + np.arange(n) / rate
    lines = [f"timestamps,TP9,AF7,AF8,TP10,Right AUX,{marker}"]
    for time, row, code in zip(times, data, codes, strict=True):
        lines.append(f"{time:.3f}," + ",".join(f"{value:.3f}" for value in row) + f",{int(code)}")
    path.write_text("\n".join(lines) + "\n")


def test_runs_become_clean_labelled_epochs(tmp_path: Path) -> None:
    write_run(tmp_path / "a.csv", 0)
    write_run(tmp_path / "b.csv", 1, marker="Marker")
    found = read_muse_epochs(sorted(tmp_path.glob("*.csv")), N170)
    assert found.data.shape == (160 - found.n_rejected, 4, 231) and found.data.dtype == np.float32
    assert found.n_events == 160 and not found.left_out
    assert set(found.label) == {"house", "face"} and set(found.run) == {"a", "b"}
    assert np.allclose(found.data[..., :26].mean(axis=2), 0, atol=1e-11)
    assert 1e-7 < found.data.std() < 15e-6


def test_copies_and_near_empty_runs_are_left_out_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a.csv", 0)
    write_run(tmp_path / "b.csv", 1)
    write_run(tmp_path / "c.csv", 2, n_events=7)
    # the copy has another name and lost its first second
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "z.csv").write_text("\n".join([lines[0], *lines[257:]]) + "\n")
    found = read_muse_epochs(sorted(tmp_path.glob("*.csv")), N170)
    assert dict(found.left_out) == {"c": "7 events", "z": "a copy of a"}
    assert set(found.run) == {"a", "b"}


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_run(path, 0, rate=220.0)
    with pytest.raises(ValueError, match="220.0 samples per second"):
        read_run(path)
    write_run(path, 0)
    with pytest.raises(ValueError, match=r"markers \[2\] are unknown"):
        read_muse_epochs([path], {1: "house"})
    path.write_text(path.read_text().replace("AF7", "Fz"))
    with pytest.raises(ValueError, match="is this a Muse run"):
        read_run(path)


def test_real_runs(shared_data: Path) -> None:
    found = read_muse_epochs(sorted((shared_data / "muse_n170").glob("sub-03*.csv")), N170)
    assert list(found.left_out.values()) == ["7 events"]
    assert found.n_events == 788 and len(np.unique(found.run)) == 4 and 600 < len(found.data) < 700
