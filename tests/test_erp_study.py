"""Real recordings through one path: better than the yardsticks, with people or runs left out. Skipped without them."""

from pathlib import Path

import pytest
import yaml

from alignment.erp_study import ErpStudyConfig, run_study, study_data

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# configuration, yardstick, lower limit
EXPECTED = {
    "real_things_eeg1": (0.706, 0.80),
    "real_things_eeg1_aligned": (0.706, 0.88),
    "real_uci_object_pictures_recentred": (0.844, 0.845),
    "real_muse_n170_1": (0.663, 0.69),
    "real_muse_n170_3": (0.580, 0.585),
    "real_muse_p300": (0.766, 0.77),
}


def config_of(name: str) -> ErpStudyConfig:
    return ErpStudyConfig.model_validate(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))


def test_every_configuration_is_valid_and_says_whether_it_uses_other_epochs() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("real_*.yaml"))
    assert set(EXPECTED) <= set(names)
    for name in names:
        config = config_of(name)
        aligned = {one.alignment != "none" or one.recentre for one in config.settings}
        assert aligned == {name.endswith(("_aligned", "_recentred"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_nested_choice_beats_the_yardstick(name: str, shared_data: Path) -> None:
    yardstick, limit = EXPECTED[name]
    figure = run_study(config_of(name), shared_data).figures[0]
    assert limit > yardstick and figure.value >= limit
    assert figure.permutation_p < 0.002 and abs(figure.noise_baseline - figure.chance) < 0.09
    assert figure.interval[0] > figure.chance and "left out" in figure.split


@pytest.mark.parametrize(("name", "index"), [("real_things_eeg1", 1), ("real_muse_p300", 1)])
def test_one_fixed_setting_beats_the_yardstick(name: str, index: int, shared_data: Path) -> None:
    config = config_of(name)
    fixed = config.model_copy(update={"settings": config.settings[index : index + 1], "n_inner": 2})
    figure = run_study(fixed, shared_data).figures[0]
    assert figure.value > EXPECTED[name][0] + (0.05 if name == "real_things_eeg1" else 0.0)
    assert figure.permutation_p < 0.002


def test_groups_are_what_is_left_out(shared_data: Path) -> None:
    study = study_data("things_eeg1", shared_data)
    assert len(set(study.groups.tolist())) == 36 and study.resampled == "person" and study.n_averaged > 1
    study = study_data("muse_p300", shared_data)
    assert len(set(study.groups.tolist())) == 6 and study.resampled == "run" and study.positive == "target"
