"""Evaluation of a trained model on the test pictures of recorded data, which nothing before has read.

Figures are by modality, by person, and by the number of presentations that are averaged. Averages are disjoint: with 80
presentations of a picture there are 80 single rows, 40 averages of 2, and so on to one of 80.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainModel
from alignment.evaluation_report import EvaluationReport, Figure
from alignment.recorded_data import RecordedDataConfig, RecordedSplits, split_rows
from alignment.recorded_sources import RecordedSources, open_sources
from alignment.resampling import MIN_PERMUTATIONS
from alignment.retrieval_figures import RetrievalAnswers, retrieval_figures
from alignment.runtime import Runtime
from alignment.train_config import TrainConfig
from encoders.epochs import SignalEpochs
from encoders.modality import combination
from encoders.preprocess import Preprocessor

N_AVERAGED = (1, 2, 4, 8, 12, 20, 40, 80)
Float = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TestRows:
    """Answers to one person's averaged epochs: ``similarity`` and ``noise`` (n, m), and each row's picture (n,)."""

    similarity: Float
    noise: Float
    target: Ints


def evaluate_recorded(
    config: TrainConfig,
    model_folder: Path,
    *,
    n_averaged: Sequence[int] = N_AVERAGED,
    windows: Sequence[tuple[float, float]] = (),
    n_permutations: int = MIN_PERMUTATIONS,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> EvaluationReport:
    """Score a trained model on test pictures.

    Parameters
    ----------
    config : TrainConfig
        Of the run, with recorded data.
    model_folder : Path
        Holds the exported `BrainModel`.
    n_averaged : sequence of int
        Presentations per average; those that a data set does not have are left out. 1 is always scored.
    windows : sequence of (float, float)
        Seconds after onset; the model answers again with the preprocessed signal set to 0 outside each.
    n_permutations, seed : int
    runtime : Runtime, optional

    Returns
    -------
    EvaluationReport

    Raises
    ------
    ValueError
        If the config is of a simulated study, or model and config do not belong together.
    """
    sources = open_sources(config)
    assert isinstance(config.data, RecordedDataConfig)
    splits = split_rows(config.data, sources.stores, sources.targets)
    model = BrainModel.load(model_folder, runtime)
    if model.modalities != tuple(sources.stores):
        raise ValueError(
            f"the model reads {model.modalities}, the config has {tuple(sources.stores)}; take its own config"
        )
    trained_on = {name: set(one.people) for name, one in splits.modalities.items()}
    if any(set(model.people[name]) != people for name, people in trained_on.items()):
        raise ValueError(f"the model knows {model.people}, the config's people are {trained_on}; take its own config")
    figures: list[Figure] = []
    test = _Test(sources, splits, model, seed)
    for name in model.modalities:
        figures += _modality_figures(test, name, sorted({1, *n_averaged}), windows, n_permutations)
    strangers = {name: sorted(set(test.people(name)) - trained_on[name]) for name in model.modalities}
    notes = [
        f"{name}: people {', '.join(people)} were not trained on and are decoded with the mean person's layers"
        for name, people in strangers.items() if people
    ]  # fmt: skip
    notes.append("inductive: nothing was adapted to test recordings; whitening and scaling are those of training")
    return EvaluationReport(
        title=f"Retrieval of unseen pictures by {combination(model.modalities)}",
        data=f"recorded epochs of {', '.join(sorted({store.info.dataset for store in sources.stores.values()}))}",
        simulated=False,
        figures=tuple(figures),
        confidence=(),
        single_trial_missing="",
        notes=tuple(notes),
    )


class _Test:
    """Test epochs of all people, read person by person."""

    def __init__(self, sources: RecordedSources, splits: RecordedSplits, model: BrainModel, seed: int) -> None:
        self.sources, self.model, self.seed = sources, model, seed
        self.rows = {name: one.rows["test"] for name, one in splits.modalities.items()}
        self.columns = {
            name: {one: np.array(store.metadata[one].take(self.rows[name]).to_pylist())
                   for one in ("subject", "image", "repetition")}
            for name, store in sources.stores.items()
        }  # fmt: skip
        for name, rows in self.rows.items():
            if len(rows) == 0:
                raise ValueError(f"{name}: the store has no test epochs; evaluate data that has some")

    def people(self, name: str) -> list[str]:
        return sorted(set(self.columns[name]["subject"].tolist()))

    def gallery(self, name: str) -> tuple[list[str], Float]:
        images = sorted(set(self.columns[name]["image"].tolist()))
        return images, self.sources.targets.embeds[self.sources.targets.index(images)]

    def epochs(self, name: str, person: str) -> SignalEpochs:
        """Read one person's test epochs, picture by picture in the order of repetition."""
        columns = self.columns[name]
        mine = np.flatnonzero(columns["subject"] == person)
        order = np.lexsort((columns["repetition"][mine], columns["image"][mine]))
        return self.sources.stores[name].epochs(self.rows[name][mine[order]])

    def answers(
        self, name: str, person: str, epochs: SignalEpochs, window: tuple[float, float] | None = None
    ) -> TestRows:
        images, gallery = self.gallery(name)
        noise = replace(epochs, data=white_noise(epochs.data, self.seed))
        found = []
        for one in (epochs, noise):
            data = self.model.preprocessors[name](one).data
            if window is not None:
                data = data * in_window(self.model.preprocessors[name], window)
            embeds = self.model.encode({name: data}, self.model.person_index(person))
            found.append(self.model.similarity(embeds, gallery, (name,)))
        place = {image: column for column, image in enumerate(images)}
        return TestRows(found[0], found[1], np.array([place[image] for image in epochs.stimulus]))


def averages(epochs: SignalEpochs, n: int) -> SignalEpochs | None:
    """Average disjoint groups of ``n`` epochs of each picture, in their order; None if no picture has that many.

    Pictures with fewer than ``n`` epochs, and epochs that fill no group, are left out.
    """
    groups = list(_groups(epochs.stimulus, n))
    if not groups:
        return None
    rows = np.array(groups)
    return replace(
        epochs,
        data=epochs.data[rows].mean(axis=1),
        stimulus=tuple(epochs.stimulus[group[0]] for group in groups),
        n_averaged=tuple(sum(epochs.n_averaged[i] for i in group) for group in groups),
    )


def _groups(stimulus: Sequence[str], n: int) -> Iterator[list[int]]:
    by_picture: dict[str, list[int]] = {}
    for row, image in enumerate(stimulus):
        by_picture.setdefault(image, []).append(row)
    for rows in by_picture.values():
        yield from (rows[first : first + n] for first in range(0, len(rows) - n + 1, n))


def white_noise(data: Float, seed: int) -> Float:
    """Return noise of the same shape in which every channel has the mean and spread of ``data``."""
    draws = np.random.default_rng([seed, 11]).standard_normal(data.shape, dtype=np.float32)
    noise: Float = draws * data.std(axis=(0, 2), keepdims=True) + data.mean(axis=(0, 2), keepdims=True)
    return noise


def in_window(preprocessor: Preprocessor, window: tuple[float, float]) -> Float:
    """Return 1 inside a window of seconds and 0 outside, (n_times,), on the preprocessed time axis."""
    config = preprocessor.config
    times = config.tmin + np.arange(config.n_times) / config.sfreq
    mask: Float = ((times >= window[0] - 1e-9) & (times < window[1] - 1e-9)).astype(np.float32)
    if not mask.any():
        raise ValueError(f"window {window} s holds no sample of {times[0]:g} to {times[-1]:g} s; choose another")
    return mask


def _modality_figures(
    test: _Test, name: str, n_averaged: Sequence[int], windows: Sequence[tuple[float, float]], n_permutations: int
) -> list[Figure]:
    """Score one modality: everybody by number of averages, each person single and with the most averages, windows."""
    rows: dict[int, dict[str, TestRows]] = {}
    occluded: dict[tuple[float, float], dict[int, dict[str, TestRows]]] = {window: {} for window in windows}
    for person in test.people(name):
        epochs = test.epochs(name, person)
        if max(epochs.n_averaged) > 1:
            raise ValueError(f"{name}: test epochs of {person} are averages already; convert single presentations")
        for n in n_averaged:
            averaged = averages(epochs, n)
            if averaged is None:
                continue
            rows.setdefault(n, {})[person] = test.answers(name, person, averaged)
            for window in windows:
                occluded[window].setdefault(n, {})[person] = test.answers(name, person, averaged, window)
    everybody = {n: people for n, people in rows.items() if len(people) == len(rows[1])}
    most = max(everybody)

    def score(parts: list[TestRows], n: int, sizes: Sequence[int], **group: str) -> list[Figure]:
        answers = RetrievalAnswers(
            similarity=np.concatenate([one.similarity for one in parts]),
            noise_similarity=np.concatenate([one.noise for one in parts]),
            target=np.concatenate([one.target for one in parts]),
            n_averaged=n, split="test", selection_split="val", group={"modality": name, **group},
        )  # fmt: skip
        return retrieval_figures(answers, gallery_sizes=sizes, n_permutations=n_permutations, seed=test.seed)

    found = []
    for n, people in everybody.items():
        found += score(list(people.values()), n, (200, 100, 50))
    for n in sorted({1, most}):
        for person, one in rows[n].items():
            found += score([one], n, (), person=person)
        for window, by_n in occluded.items():
            found += score(list(by_n[n].values()), n, (), window=f"{window[0]:g} to {window[1]:g} s")
    return found


def summary_lines(report: EvaluationReport) -> list[str]:
    """Say top-1 and top-5 over everybody, by number of averages."""
    lines = []
    for metric in ("top_1", "top_5"):
        for one in report.figures:
            if (
                one.metric == metric
                and set(one.group) == {"modality"}
                and one.gallery_size == _whole(report, one.group)
            ):
                low, high = one.interval
                lines.append(
                    f"{one.group['modality']:8} {metric} of {one.gallery_size}, {one.n_averaged} averaged: "
                    f"{one.value:.3f} [{low:.3f}, {high:.3f}], chance {one.chance:.4f}, "
                    f"noise {one.noise_baseline:.3f}, p {one.permutation_p:.2g}, n {one.n}"
                )
    return lines


def _whole(report: EvaluationReport, group: Mapping[str, Any]) -> int:
    return max(one.gallery_size for one in report.figures if dict(one.group) == dict(group))
