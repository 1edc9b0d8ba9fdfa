import pytest

from encoders.build import SignalShape


def test_holds_what_the_data_decides():
    shape = SignalShape(63, 64, 100.0, 4)
    assert (shape.n_channels, shape.n_times, shape.sfreq, shape.n_subjects) == (63, 64, 100.0, 4)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ((0, 64, 100.0, 4), "n_channels"),
        ((63, -1, 100.0, 4), "n_times"),
        ((63, 64, float("nan"), 4), "sfreq"),
        ((63, 64, 100.0, 0), "n_subjects"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes, named):
    with pytest.raises(ValueError, match=named):
        SignalShape(*sizes)
