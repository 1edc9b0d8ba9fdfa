"""The table at the end of a training: network, ridge and ideal observer on the same unseen recordings.

Each figure stands with its chance level, n, interval and the number of presentations averaged. Everyone is scored with
the person's own layers (network), weights (ridge) or lead field (observer).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alignment.brain_model import BrainModel
from alignment.pairs import Pairs, Recorder, presentations
from alignment.retrieval import report_similarity
from encoders.baselines import RidgeDecoder, centred_cosine, fit_ridge
from encoders.epochs import SignalEpochs
from encoders.modality import combination

TEST_NOISE = 3
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
Float = NDArray[np.float32]


class Observer(Recorder, Protocol):
    """A simulation that also knows how likely each picture is."""

    def ideal_observer(
        self, epochs: SignalEpochs, candidates: Float, *, modality: str, layout: str, subject: int
    ) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class RidgeTable:
    """A fitted ridge per (modality, person)."""

    decoders: Mapping[tuple[str, int], RidgeDecoder]

    def scores(self, data: Mapping[str, Float], subject: int, image_embeds: Float) -> dict[str, Float]:
        """Give the similarity (n, m) to raw ``image_embeds`` per modality."""
        unit = _unit(image_embeds)
        found = {}
        for modality, epochs in data.items():
            decoder = self.decoders[modality, subject]
            found[modality] = centred_cosine(decoder.predict(epochs), unit, decoder.embed_mean)
        return found


def fit_ridges(train: Pairs, val: Pairs, train_embeds: Float, val_embeds: Float) -> RidgeTable:
    """Fit ridge per modality and person on the trials that the network was trained on; validation picks the penalty."""
    decoders = {}
    keys = [(modality, int(subject)) for modality in train.data for subject in np.unique(train.subject)]
    for modality, subject in tqdm(keys, desc="ridge", mininterval=1.0):
        rows, held = train.subject == subject, val.subject == subject
        decoders[modality, subject] = fit_ridge(
            train.data[modality][rows].astype(np.float32),
            _unit(train_embeds[train.target[rows]]),
            (val.data[modality][held].astype(np.float32), _unit(val_embeds[val.target[held]])),
            PENALTIES,
        )
    return RidgeTable(decoders)


def test_report(
    model: BrainModel,
    simulator: Observer,
    ridges: RidgeTable,
    test_embeds: Float,
    combinations: Sequence[tuple[str, ...]],
    *,
    n_repetitions: int,
) -> dict[str, Any]:
    """Score the unseen pictures, single presentations and averages.

    Returns
    -------
    dict
        ``{combination: {"single" | "averaged_<k>": {"network" | "ridge" | "ideal_observer": scores, "ratio_to_ideal":
        float, "unknown_person": scores}}}``. Fused ridge adds both cosines; the fused observer adds log-likelihoods.
    """
    layouts = {modality: preprocessor.layout.name for modality, preprocessor in model.preprocessors.items()}
    answers: dict[tuple[str, str, str], list[NDArray[Any]]] = {}
    targets: dict[str, list[NDArray[np.int64]]] = {}
    for subject, name in enumerate(tqdm(model.subjects, desc="test recordings", mininterval=1.0)):
        single = {
            modality: presentations(simulator, test_embeds, modality, layout, subject, n_repetitions, TEST_NOISE)
            for modality, layout in layouts.items()
        }
        averaged = {modality: epochs.average_repetitions() for modality, epochs in single.items()}
        for label, recordings in (("single", single), (f"averaged_{n_repetitions}", averaged)):
            stimulus = next(iter(recordings.values())).stimulus
            targets.setdefault(label, []).append(np.array([int(one) for one in stimulus]))
            table = _all_scores(model, simulator, ridges, recordings, subject, test_embeds, combinations)
            for key, who, scores in table:
                answers.setdefault((key, label, who), []).append(scores)
        assert name == model.subjects[subject]
    report: dict[str, Any] = {}
    for (key, label, who), parts in answers.items():
        scored = report_similarity(np.concatenate(parts), np.concatenate(targets[label]))
        report.setdefault(key, {}).setdefault(label, {})[who] = scored.to_json()
    for table in (table for by_label in report.values() for table in by_label.values()):
        table["ratio_to_ideal"] = table["network"]["top_1"] / table["ideal_observer"]["top_1"]
    return report


def summary(scores: Mapping[str, Any]) -> str:
    """Lay out a report's top-1 figures as a table for the terminal."""
    columns = f"{'network':>9}{'ridge':>9}{'ideal':>9}{'ratio':>8}{'unknown':>9}"
    lines = [f"{'input':10}{'epochs':14}{columns}  95 % of network"]
    for key, by_label in scores.items():
        for label, table in by_label.items():
            low, high = table["network"]["interval_top_1"]
            who = [table[name]["top_1"] for name in ("network", "ridge", "ideal_observer")]
            figures = "".join(f"{value:9.3f}" for value in who)
            unknown = table["unknown_person"]["top_1"]
            lines.append(
                f"{key:10}{label:14}{figures}{table['ratio_to_ideal']:8.2f}{unknown:9.3f}  {low:.3f} - {high:.3f}"
            )
    any_table = next(iter(next(iter(scores.values())).values()))["network"]
    lines.append(f"top-1, greedy, of {any_table['n_gallery']} pictures; chance {any_table['chance_top_1']:.4f}")
    return "\n".join(lines)


def _all_scores(
    model: BrainModel,
    simulator: Observer,
    ridges: RidgeTable,
    recordings: Mapping[str, SignalEpochs],
    subject: int,
    test_embeds: Float,
    combinations: Sequence[tuple[str, ...]],
) -> list[tuple[str, str, NDArray[Any]]]:
    """Give (combination, who, similarity) for one person."""
    data = {modality: model.preprocessors[modality](epochs).data for modality, epochs in recordings.items()}
    ridge = ridges.scores(data, subject, test_embeds)
    ideal = {
        modality: simulator.ideal_observer(
            epochs, test_embeds, modality=modality, layout=model.preprocessors[modality].layout.name, subject=subject
        )
        for modality, epochs in recordings.items()
    }
    found: list[tuple[str, str, NDArray[Any]]] = []
    for names in combinations:
        key = combination(names)
        chosen = {name: data[name] for name in names}
        for who, person in (("network", subject), ("unknown_person", model.person_index(""))):
            found.append((key, who, model.similarity(model.encode(chosen, person), test_embeds, names)))
        found.append((key, "ridge", np.sum([ridge[name] for name in names], axis=0)))
        found.append((key, "ideal_observer", np.sum([ideal[name] for name in names], axis=0)))
    return found


def _unit(embeds: Float) -> Float:
    return np.asarray(embeds / np.linalg.norm(embeds, axis=1, keepdims=True), dtype=np.float32)
