"""Arrays of picture by repetition become epochs in order, block by block."""

from functools import partial

import numpy as np
import pytest

from encoders.datasets import condition_arrays
from encoders.datasets.condition_arrays import ConditionArray, ConditionPart, known_positions, one_kind, time_axis


def array(**changes) -> ConditionArray:
    data = np.random.default_rng(0).standard_normal((5, 3, 2, 20))
    images = [f"{c}/{c}_01s.jpg" for c in "abcde"]
    return ConditionArray(
        **{"data": data, "images": images, "sfreq": 100.0, "tmin": 0.0, "ch_names": ("O1", "Oz")} | changes
    )


def part(given: ConditionArray, unit: str = "standard") -> ConditionPart:
    return ConditionPart("sub-01_train", ("train.npy",), "sub-01", "train", unit, partial(lambda x: x, given))


def test_epochs_come_by_condition_and_repetition_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given = array(session=np.arange(15).reshape(5, 3))
    whole = list(part(given).blocks())
    assert len(whole) == 1
    epochs, metadata = whole[0]
    np.testing.assert_allclose(epochs.data, given.data.reshape(15, 2, 20) * 1e-5, rtol=1e-6)
    assert metadata.image[:4] == ("a/a_01s.jpg",) * 3 + ("b/b_01s.jpg",) and metadata.concept[3] == "b"
    assert metadata.repetition == (0, 1, 2) * 5 and metadata.split == ("train",) * 15
    assert metadata.session == tuple(str(i) for i in range(15))
    monkeypatch.setattr(condition_arrays, "BLOCK_BYTES", 2 * 3 * 2 * 20 * 4)
    blocks = list(part(given).blocks())
    assert [e.n_epochs for e, _ in blocks] == [6, 6, 3]
    np.testing.assert_array_equal(np.concatenate([e.data for e, _ in blocks]), epochs.data)
    assert sum((m.session for _, m in blocks), ()) == metadata.session


def test_later_repetitions_are_counted_on() -> None:
    ((_, metadata),) = part(array(first_repetition=np.array([0, 3, 0, 6, 0]))).blocks()
    assert metadata.repetition[:6] == (0, 1, 2, 3, 4, 5) and metadata.repetition[9:12] == (6, 7, 8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ch_names": ("O1",)}, "channel names number 1, .* needs 2"),
        ({"images": ["a/a_01s.jpg"]}, "pictures number 1, .* needs 5"),
        ({"session": np.zeros((5, 2))}, "sessions number"),
        ({"data": np.zeros((5, 2, 20))}, "another layout or version"),
        ({"ch_names": ("O1", "MLC11")}, "are of kinds"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"train.npy: .*{reason}"):
        list(part(array(**changes)).blocks())


@pytest.mark.parametrize(
    ("times", "n_times", "expected"),
    [
        (np.linspace(-0.2, 1.0, 301), 250, (250.0, 0.0)),  # data without the 50 samples of the baseline
        (np.arange(-50, 250) / 250, 250, (250.0, 0.0)),
        (np.linspace(-0.2, 1.0, 301), 301, (250.0, -0.2)),
        (np.arange(-20, 80) / 100, 100, (100.0, -0.2)),
        (np.arange(-20, 80) / 100, 80, (100.0, 0.0)),
        (np.linspace(0, 1, 201), 201, (200.0, 0.0)),
        (np.linspace(0, 1, 201), 200, (200.0, 0.0)),
    ],
)
def test_times_may_list_a_baseline_that_the_data_lacks(times, n_times: int, expected) -> None:
    assert time_axis(times, n_times, "x") == expected


@pytest.mark.parametrize("n_times", [249, 252, 290, 302])
def test_other_lengths_are_refused(n_times: int) -> None:
    with pytest.raises(ValueError, match="301 values from -0.2 to 1 s, 251 of them after the onset"):
        time_axis(np.linspace(-0.2, 1.0, 301), n_times, "x")


def test_places_of_known_sensors() -> None:
    positions = known_positions(["Oz", "MLC11", "MLO42"])
    assert np.isfinite(positions[:2]).all() and np.isnan(positions[2]).all()
    assert positions[0, 1] < -0.05
    assert one_kind(["MLC11", "MZP01"], "x") == "mag" and one_kind(["O1"], "x") == "eeg"
