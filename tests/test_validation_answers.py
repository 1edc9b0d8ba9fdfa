"""What a bundle's confidence is fitted on: validation pictures, of one modality or several, in the user's gallery."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from alignment.brain_model import BrainModel
from alignment.recorded_data import RecordedDataConfig, RecordedSplits, split_rows
from alignment.recorded_sources import RecordedSources, open_sources, prepare
from alignment.runtime import Runtime
from alignment.train import train
from alignment.train_config import TrainConfig
from alignment.validation_answers import (
    AnswerGallery,
    Recording,
    answer_calibrations,
    answer_null,
    validation_recordings,
)
from encoders.epochs import SignalEpochs
from tests.toy_lab import build_lab


@dataclass(frozen=True)
class Lab:
    sources: RecordedSources
    splits: RecordedSplits
    model: BrainModel
    recordings: dict[str, list[Recording]]

    def gallery(self, split: str) -> AnswerGallery:
        rows = self.sources.targets.index(self.splits.images[split])
        table = self.sources.targets
        return AnswerGallery(table.embeds[rows], tuple(table.digests[row] for row in rows))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    config = TrainConfig.model_validate({**settings, "fit": {**settings["fit"], "max_steps": 90}})
    prepare(config)
    folder: Path = tmp_path_factory.mktemp("run")
    train(config, folder)
    sources = open_sources(config)
    assert isinstance(config.data, RecordedDataConfig)
    splits = split_rows(config.data, sources.stores, sources.targets)
    model = BrainModel.load(folder / "brain", Runtime(device="cpu", threads=1))
    return Lab(sources, splits, model, validation_recordings(sources.stores, splits))


def test_recordings_are_of_validation_pictures_and_every_combination(lab: Lab) -> None:
    assert set(lab.recordings) == {"eeg", "meg", "eeg+meg"}
    wanted = set(lab.splits.images["val"])
    for key, everybody in lab.recordings.items():
        for parts in everybody:
            assert len(parts) == key.count("+") + 1
            assert {image for part in parts for image in part.stimulus} <= wanted
            assert len({part.stimulus for part in parts}) == 1  # row by row the same pictures
    (person,) = {part.subject for parts in lab.recordings["eeg+meg"][:1] for part in parts}
    assert person == ""  # EEG of one person with MEG of another is nobody's


def noisy(epochs: SignalEpochs, gain: float, seed: int) -> SignalEpochs:
    draws = np.random.default_rng(seed).standard_normal(epochs.data.shape)
    return replace(epochs, data=epochs.data + gain * epochs.data.std() * draws)


def test_calibrations_tell_right_from_wrong_on_test_answers(lab: Lab) -> None:
    gallery = lab.gallery("test")
    worse = {
        key: [tuple(noisy(part, 3.0, index) for part in parts) for index, parts in enumerate(everybody)]
        for key, everybody in lab.recordings.items()
    }
    found = answer_calibrations(lab.model, gallery, worse, lab.sources.targets)
    assert found is not None and all(0 < one.n_right < one.n for one in found.entries)
    assert {(one.modalities, one.n_averaged) for one in found.entries} == {
        ("eeg", 1), ("eeg", 2), ("meg", 1), ("meg", 2), ("eeg+meg", 2),
    }  # fmt: skip
    assert {(one.gallery_size, one.split) for one in found.entries} == {(10, "val")}
    store, images = lab.sources.stores["eeg"], lab.splits.images["test"]
    rows = lab.splits.modalities["eeg"].rows["test"]
    people = np.array(store.metadata["subject"].take(rows).to_pylist())
    epochs = store.epochs(rows[people == sorted(set(people.tolist()))[0]])
    epochs = noisy(epochs, 3.0, 7).average_repetitions()
    embeds = lab.model.embed([epochs]).brain_embeds
    similarity = lab.model.similarity(embeds, gallery.image_embeds, ["eeg"])
    right = np.array([images[column] for column in similarity.argmax(axis=1)]) == np.array(epochs.stimulus)
    chance = found.chance_right(similarity, ["eeg"], epochs.n_averaged)
    assert right.mean() > 0.3 and abs(chance.mean() - right.mean()) < 0.35
    noise = replace(epochs, data=np.random.default_rng(0).standard_normal(epochs.data.shape) * epochs.data.std())
    unlike = lab.model.similarity(lab.model.embed([noise]).brain_embeds, gallery.image_embeds, ["eeg"])
    assert found.chance_right(unlike, ["eeg"], epochs.n_averaged).mean() < chance.mean()


def test_where_all_answers_are_right_no_chance_is_told(lab: Lab) -> None:
    easy = AnswerGallery(100 * np.eye(16, dtype=np.float32)[:2], ("a", "b"))
    recordings = {"eeg": [tuple(part.average_repetitions() for part in lab.recordings["eeg"][0])]}
    assert answer_calibrations(lab.model, easy, recordings, lab.sources.targets) is None


def test_a_shown_picture_that_the_gallery_has_is_not_put_in_twice(lab: Lab) -> None:
    everybody = {"eeg": [(noisy(part, 3.0, 1),) for (part,) in lab.recordings["eeg"]]}
    holds, lacks = (
        answer_calibrations(lab.model, lab.gallery(split), everybody, lab.sources.targets) for split in ("val", "test")
    )
    assert holds is not None and lacks is not None
    assert holds.entries[0].gallery_size == len(lab.splits.images["val"])
    assert lacks.entries[0].gallery_size == len(lab.splits.images["test"])
    with pytest.raises(ValueError, match="leaves no choice"):
        one = replace(lab.gallery("val"), digests=("a",))
        answer_calibrations(lab.model, one, everybody, lab.sources.targets)


def test_noise_lies_in_the_middle_of_the_null(lab: Lab) -> None:
    gallery = lab.gallery("test")
    null = answer_null(lab.model, gallery, {"eeg": lab.recordings["eeg"]})
    assert len(null.scores["eeg"]) >= 3000
    epochs = lab.recordings["eeg"][0][0].average_repetitions()
    generator = np.random.default_rng(1)
    noise = replace(epochs, data=generator.standard_normal(epochs.data.shape) * epochs.data.std())
    for one, low, high in ((noise, 0.25, 0.75), (epochs, 0.6, 1.0)):
        shown = lab.gallery("val").image_embeds
        best = lab.model.similarity(lab.model.embed([one]).brain_embeds, shown, ["eeg"]).max(axis=1)
        assert low <= null.percentile(best, ["eeg"]).mean() <= high
