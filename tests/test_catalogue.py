from typing import get_args

import pytest

from encoders.build import PRESETS, AnyEncoderConfig, SignalShape, build_encoder
from encoders.catalogue import REFERENCE_SHAPE, REFERENCE_WIDTH, catalogue, encoder_names


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in catalogue()}


def test_every_name_of_the_union_has_a_preset_of_that_name():
    names = encoder_names()
    assert len(names) == len(set(names)) >= len(get_args(AnyEncoderConfig))
    assert all(PRESETS[name].name == name for name in names)
    assert {config.name for config in PRESETS.values()} == set(names)


def test_sizes_and_variants_are_those_of_the_networks(entries):
    assert list(entries) == encoder_names()
    assert entries["eeg_project"].n_parameters == 63 * 250 * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * 1024
    assert entries["brain_module"].presets[0] == "brain_module"
    assert "brain_module_demo" in entries["brain_module"].presets
    assert all(entry.source for entry in entries.values())


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(encoder_names())))
def test_variants_build_at_the_reference_shape(preset):
    assert build_encoder(PRESETS[preset], REFERENCE_SHAPE, 32) is not None
    assert REFERENCE_WIDTH == 1024 and isinstance(REFERENCE_SHAPE, SignalShape)
