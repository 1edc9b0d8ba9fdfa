"""Held-out people have no part in what is chosen, fitted or calibrated."""

import numpy as np
import pytest

from alignment.classification_scores import balanced_accuracy
from alignment.nested_validation import NestedScores, Scorer, group_folds, nested_scores

LABELS, GROUPS = np.tile([0, 1], 30), np.repeat(np.arange(12), 5)


def run(data: np.ndarray, seen: list[np.ndarray] | None = None, **options: object) -> NestedScores[int]:
    """Nearest class mean on one column; the setting is the column."""

    def fit(column: int, rows: np.ndarray) -> Scorer:
        if seen is not None:
            seen.append(rows)
        means = np.array([data[rows][LABELS[rows] == label, column].mean() for label in (0, 1)])
        return lambda given, groups: -np.abs(given[:, [column]] - means)

    noise = np.random.default_rng(9).standard_normal(data.shape)
    return nested_scores(
        fit, (0, 1, 2), data, noise, LABELS, GROUPS, lambda target, s: balanced_accuracy(target, s.argmax(axis=1)),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def columns(seed: int = 0) -> np.ndarray:
    data = np.random.default_rng(seed).standard_normal((60, 3))
    data[:, 2] += 3 * LABELS
    return data


def test_the_useful_setting_is_chosen_in_every_fold() -> None:
    found = run(columns())
    assert found.settings == (2,) * 12 and len(found.temperatures) == 12
    assert balanced_accuracy(LABELS, found.scores.argmax(axis=1)) > 0.85
    assert abs(balanced_accuracy(LABELS, found.noise_scores.argmax(axis=1)) - 0.5) < 0.2
    assert np.allclose(found.probabilities.sum(axis=1), 1.0)


def test_no_fit_for_a_fold_sees_its_group() -> None:
    seen: list[np.ndarray] = []
    run(columns(), seen, n_inner=3)
    per_fold = len(seen) // 12
    assert per_fold == 3 * 3 + 1
    for fold in range(12):
        for rows in seen[fold * per_fold : (fold + 1) * per_fold]:
            assert fold not in GROUPS[rows]
        assert len(seen[(fold + 1) * per_fold - 1]) == 55


def test_the_held_out_labels_cannot_change_a_choice() -> None:
    data = columns()
    other = data.copy()
    other[GROUPS == 4] = 100.0
    assert run(data).settings[4] == run(other).settings[4]
    assert run(data).temperatures[4] == run(other).temperatures[4]


def test_nested_choice_among_noise_stays_at_chance() -> None:
    found = [balanced_accuracy(LABELS, run(np.random.default_rng(seed).standard_normal((60, 3))).scores.argmax(axis=1))
             for seed in range(12)]  # fmt: skip
    assert np.mean(found) < 0.56


def test_folds_hold_whole_groups() -> None:
    folds = group_folds(GROUPS, 5, np.random.default_rng(0))
    assert len(np.unique(folds)) == 5 and all(len(np.unique(folds[GROUPS == name])) == 1 for name in range(12))
    assert len(run(columns(), folds=folds).settings) == 5
    with pytest.raises(ValueError, match="whole groups"):
        run(columns(), folds=np.arange(60) % 4)
