import pytest

from encoders.modality import CHANNEL_KINDS, MODALITIES, kind_of_name, modality_of


def test_kinds_and_modalities_refer_to_each_other() -> None:
    for name, kind in CHANNEL_KINDS.items():
        assert kind.name == name
        assert name in MODALITIES[kind.modality].kinds
    listed = [kind for modality in MODALITIES.values() for kind in modality.kinds]
    assert sorted(listed) == sorted(CHANNEL_KINDS)


def test_plausible_ranges_are_narrower_than_a_unit_mistake() -> None:
    for kind in CHANNEL_KINDS.values():
        low, high = kind.plausible_spread
        assert 0 < low < high < 1e6 * low


@pytest.mark.parametrize(
    ("ch_name", "kind"),
    [
        ("MLC11-1609", "mag"),
        ("MRO53", "mag"),
        ("MZF01-2908", "mag"),
        ("MEG 0111", "mag"),
        ("MEG0113", "grad"),
        ("MEG 2642", "grad"),
        ("Fp1", "eeg"),
        ("MLC1", "eeg"),
    ],
)
def test_kind_of_name(ch_name: str, kind: str) -> None:
    assert kind_of_name(ch_name) == kind


def test_modality_of_needs_one_modality() -> None:
    assert modality_of(("mag", "grad", "mag")).name == "meg"
    with pytest.raises(ValueError, match="one modality"):
        modality_of(("eeg", "mag"))
