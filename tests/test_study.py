import numpy as np
import pytest

from alignment.pairs import TargetSplit
from alignment.study import DataConfig, Study, _spread_over_concepts
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from encoders.simulate import SimulationConfig
from tests.toy_brain import write_toy_targets


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    targets = write_toy_targets(tmp_path_factory.mktemp("study") / "targets.safetensors")
    preprocessors = {"eeg": Preprocessor(default_preprocess("eeg"), standard_layout("things_eeg2_63"))}
    data = DataConfig(n_train_images=30, n_val_images=10, train_repetitions=2, test_repetitions=3)
    return Study.record(targets, preprocessors, SimulationConfig(n_subjects=2), data)


def test_rows_are_people_by_pictures_by_repetitions(study):
    assert len(study.train) == 2 * 30 * 2 and study.train.n_averaged == 1
    assert len(study.val) == 2 * 10 and study.val.n_averaged == 3
    assert study.subjects == dict.fromkeys(study.preprocessors, ["sim-01", "sim-02"])
    assert set(study.train.subject) == {0, 1}
    assert study.targets.shape == study.train_embeds.shape == (30, study.space.embed_dim)


def test_validation_pictures_are_none_of_the_training_ones(study):
    assert not {row.tobytes() for row in study.train_embeds} & {row.tobytes() for row in study.val_embeds}


def test_the_preprocessor_is_fitted_on_training_epochs(study):
    spread = study.train.data["eeg"].astype("f").std(axis=(0, 2))
    assert study.preprocessors["eeg"].fitted and 0.3 < np.median(spread) < 3


def test_pictures_are_spread_over_concepts():
    split = TargetSplit(np.arange(12, dtype="f")[:, None], np.repeat([5, 6, 7], [8, 2, 2]))
    assert _spread_over_concepts(split, 6).ravel().tolist() == [0, 1, 8, 9, 10, 11]
    assert len(_spread_over_concepts(split, 100)) == 12
