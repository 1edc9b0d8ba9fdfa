"""Averages per person and category: in volt, without channels that somebody lacks, decodable across people."""

from pathlib import Path

import numpy as np
import pytest

from encoders.datasets.things_eeg1_erps import FILE, read_category_epochs


def test_the_layout_is_read(tmp_path: Path) -> None:
    erp = np.random.default_rng(0).standard_normal((3, 2, 4, 10)).astype("f")
    erp[2, :, 1] = np.nan
    (tmp_path / FILE).parent.mkdir()
    arrays = {
        "erp_uV": erp, "subject": np.array([2, 5, 49]), "category": np.array(["animal", "tool"]),
        "ch_names": np.array(["Oz", "FCz", "Cz", "Pz"]), "times": np.arange(10, dtype="f") / 250 - 0.1,
        "sfreq": np.float32(250.0),
    }  # fmt: skip
    np.savez(tmp_path / FILE, **arrays)
    found = read_category_epochs(tmp_path)
    assert found.data.shape == (6, 3, 10) and found.ch_names == ("Oz", "Cz", "Pz") and found.dropped == ("FCz",)
    assert found.subject.tolist() == ["sub-02"] * 2 + ["sub-05"] * 2 + ["sub-49"] * 2
    assert found.category.tolist() == ["animal", "tool"] * 3
    assert np.allclose(found.data[3], erp[1, 1][[0, 2, 3]] * 1e-6) and found.tmin == pytest.approx(-0.1)
    np.savez(tmp_path / FILE, **(arrays | {"category": np.array(["animal"])}))
    with pytest.raises(ValueError, match="expected .3, 1, 4, 10"):
        read_category_epochs(tmp_path)


def test_real_people(shared_data: Path) -> None:
    found = read_category_epochs(shared_data)
    assert found.data.shape == (180, 62, 276) and found.dropped == ("FCz",)
    assert len(set(found.subject.tolist())) == 36 and 1e-7 < found.data.std() < 1e-5
