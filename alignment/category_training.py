"""Train a `CategoryModel` on evoked responses of a public data set, and measure it on people left out.

Everything is measured on what serving computes: channels matched by name, low-passed, baseline-corrected and referenced
by a `Preprocessor`. The figures are those of nested folds of people; the model that is kept is then fitted on everybody
who was not left out by name, with the setting and the temperature that folds of these people choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.calibration_scores import N_BINS, expected_calibration_error
from alignment.category_model import CategoryModel
from alignment.classification_scores import balanced_accuracy
from alignment.erp_study import ERPS_AVERAGED, ErpStudyConfig, StudyData, StudyResult, fit_on, score_study
from alignment.nested_validation import choose_setting, group_folds
from alignment.temperature import fit_temperature
from encoders.datasets.things_eeg1_erps import read_category_epochs
from encoders.epochs import SignalEpochs
from encoders.erp_decoder import fit_erp_decoder
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import electrode_layout

MODALITY = "eeg"
BAND = 0.4  # upper edge of the pass band as a share of the sampling rate: the published responses reach 100 of 250 Hz


@dataclass(frozen=True)
class TrainedCategories:
    """A trained model and everything that is known about it.

    Attributes
    ----------
    model : CategoryModel
    result : StudyResult
        Nested scores of the people it was trained on, each decoded without them.
    recordings, left_out : tuple of SignalEpochs
        One per person: trained on, and neither trained nor measured on.
    """

    model: CategoryModel
    result: StudyResult
    recordings: tuple[SignalEpochs, ...]
    left_out: tuple[SignalEpochs, ...]

    def calibration(self) -> dict[str, Any]:
        """Say how far the probability of the decoded category can be trusted, on people left out."""
        answers, labels = self.result.answers, self.result.data.labels
        classes, target = np.unique(labels, return_inverse=True)
        sure, correct = answers.probabilities.max(axis=1), answers.probabilities.argmax(axis=1) == target
        return {
            "expected_calibration_error": round(float(expected_calibration_error(sure, correct, N_BINS)), 4),
            "mean_probability": round(float(sure.mean()), 4),
            "accuracy": round(float(correct.mean()), 4),
            "chance": 1 / len(classes),
            "n": len(labels),
            "calibrated_on": "people left out of the training, among the others",
            "measured_on": "people left out of both",
        }


def read_recordings(dataset: str, folder: Path) -> tuple[SignalEpochs, ...]:
    """Read one recording per person; each epoch's stimulus is its category.

    Raises
    ------
    ValueError
        If the data set has no categories that a gallery could show.
    """
    if dataset != "things_eeg1":
        raise ValueError(f"data set {dataset!r} cannot become a bundle of categories, expected 'things_eeg1'")
    erps = read_category_epochs(folder)
    layout = electrode_layout("recorded", erps.ch_names)
    found = []
    for person in sorted(set(erps.subject.tolist())):
        mine = erps.subject == person
        found.append(
            SignalEpochs(
                data=erps.data[mine], sfreq=erps.sfreq, tmin=erps.tmin, ch_names=layout.ch_names,
                ch_types=layout.ch_types, positions=layout.positions, subject=person,
                stimulus=tuple(erps.category[mine].tolist()), n_averaged=(ERPS_AVERAGED,) * int(mine.sum()),
            )
        )  # fmt: skip
    return tuple(found)


def train_categories(config: ErpStudyConfig, folder: Path, leave_out: Sequence[str] = ()) -> TrainedCategories:
    """Train on everybody but the people of ``leave_out``, who are not read for anything else either.

    Parameters
    ----------
    config : ErpStudyConfig
        Of data set "things_eeg1"; settings without xDAWN filters.
    folder : Path
        Of shared data.
    leave_out : sequence of str
        "sub-02" and so on.

    Returns
    -------
    TrainedCategories

    Raises
    ------
    ValueError
        If a person is unknown, or a setting has xDAWN filters.
    """
    if any(one.n_filters for one in config.settings):
        raise ValueError("a setting has xDAWN filters, which a bundle cannot hold; set n_filters to 0 in all of them")
    everybody = read_recordings(config.dataset, folder)
    unknown = sorted(set(leave_out) - {one.subject for one in everybody})
    if unknown:
        raise ValueError(f"no people {unknown} in {config.dataset}; it has {[one.subject for one in everybody]}")
    kept = tuple(one for one in everybody if one.subject not in leave_out)
    preprocessor = preprocessor_of(kept[0])
    study = _study(kept, preprocessor)
    result = score_study(config, study)
    fit, (classes, target) = fit_on(study), np.unique(study.labels, return_inverse=True)
    rows = np.arange(len(target))
    folds = group_folds(study.groups, config.n_folds or len(kept), np.random.default_rng(config.seed))
    setting, held_out = choose_setting(
        fit, config.settings, study.data, target, study.groups, rows, folds,
        lambda index, scores: balanced_accuracy(index, scores.argmax(axis=1)),
    )  # fmt: skip
    decoder = fit_erp_decoder(
        study.data, study.labels, study.groups, setting, sfreq=study.sfreq, tmin=study.tmin
    )  # fmt: skip
    decoder = replace(decoder, temperature=fit_temperature(held_out, target))
    model = CategoryModel(decoder, preprocessor, MODALITY, ERPS_AVERAGED)
    assert model.classes == tuple(classes.tolist())
    return TrainedCategories(model, result, kept, tuple(one for one in everybody if one.subject in leave_out))


def preprocessor_of(epochs: SignalEpochs) -> Preprocessor:
    """Keep channels and time axis of a recording; its window needs no statistics."""
    config = default_preprocess(
        MODALITY, sfreq=epochs.sfreq, tmin=round(epochs.tmin, 6), n_times=epochs.n_times, h_freq=BAND * epochs.sfreq,
        baseline=(round(epochs.tmin, 6), 0.0),
    )  # fmt: skip
    return Preprocessor(config, electrode_layout("recorded", epochs.ch_names))


def _study(recordings: Sequence[SignalEpochs], preprocessor: Preprocessor) -> StudyData:
    data = np.concatenate([preprocessor.window(one)[0] for one in recordings])
    labels = np.array([name for one in recordings for name in one.stimulus])
    groups = np.array([one.subject for one in recordings for _ in one.stimulus])
    config = preprocessor.config
    return StudyData(data, labels, groups, "person", ERPS_AVERAGED, config.sfreq, config.tmin, "")
