"""The decoder finds responses across people, forgets units, and leaves noise at chance."""

import numpy as np
import pytest

from alignment.classification_scores import balanced_accuracy
from encoders.erp_decoder import ErpDecoderConfig, fit_erp_decoder

BOTH = ErpDecoderConfig(start=0.0, stop=0.4, width=0.05, n_filters=2)


def people(n_people: int = 6, n: int = 20, effect: float = 1.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Epochs (volt) of people with other amplitudes and noise patterns but one pair of responses."""
    generator = np.random.default_rng(seed)
    times = np.arange(40) / 100
    course = np.stack([np.exp(-(((times - centre) / 0.05) ** 2)) for centre in (0.1, 0.25, 0.35)])
    pattern = generator.standard_normal((3, 6))
    labels = np.tile(np.arange(n) % 3, n_people)
    person = np.repeat(np.arange(n_people), n)
    data = generator.standard_normal((len(labels), 6, 40))
    for name in range(n_people):
        mixing = np.eye(6) + 0.2 * generator.standard_normal((6, 6))
        rows = person == name
        data[rows] = np.einsum("cd,ndt->nct", mixing, data[rows])
        data[rows] += effect * pattern[labels[rows]][:, :, None] * course[labels[rows]][:, None]
        data[rows] *= 1e-6 * generator.uniform(0.5, 2.0)
    return data.astype(np.float32), np.array(["a", "b", "c"])[labels], person


def accuracy(config: ErpDecoderConfig, effect: float = 1.0, scale: float = 1.0) -> float:
    data, labels, person = people(effect=effect)
    train = person < 4
    decoder = fit_erp_decoder(data[train] * scale, labels[train], person[train], config, sfreq=100.0, tmin=0.0)
    scores = decoder.scores(data[~train] * scale, person[~train])
    return balanced_accuracy(labels[~train], decoder.classes[scores.argmax(axis=1)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_filters": 0}, {"recentre": True}, *({"alignment": kind} for kind in ("scale", "centre", "whiten"))],
)
def test_new_people_are_decoded(changes: dict[str, object]) -> None:
    config = BOTH.model_copy(update=changes)
    assert accuracy(config) > 0.75
    assert accuracy(config, effect=0.0) < 0.55


def test_units_do_not_matter() -> None:
    assert accuracy(BOTH.model_copy(update={"n_filters": 0}), scale=1e6) == pytest.approx(
        accuracy(BOTH.model_copy(update={"n_filters": 0})), abs=0.03
    )


def test_probabilities_follow_the_scores_and_the_temperature() -> None:
    data, labels, person = people()
    decoder = fit_erp_decoder(data, labels, person, BOTH, sfreq=100.0, tmin=0.0)
    found = decoder.probabilities(data, person)
    assert np.allclose(found.sum(axis=1), 1.0)
    assert np.array_equal(found.argmax(axis=1), decoder.scores(data, person).argmax(axis=1))


def test_an_epoch_alone_is_answered_as_among_others_without_alignment() -> None:
    data, labels, person = people()
    decoder = fit_erp_decoder(data, labels, person, BOTH, sfreq=100.0, tmin=0.0)
    assert np.allclose(decoder.scores(data[:1], person[:1]), decoder.scores(data, person)[:1], atol=1e-6)


def test_a_setting_without_effect_is_refused() -> None:
    data, labels, person = people()
    config = ErpDecoderConfig(stop=0.4, recentre=True)
    with pytest.raises(ValueError, match="recentre has no effect"):
        fit_erp_decoder(data, labels, person, config, sfreq=100.0, tmin=0.0)
