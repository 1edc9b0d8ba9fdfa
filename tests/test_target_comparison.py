import numpy as np
import pytest
from synth_things import make_world

from alignment.target_comparison import compare_targets, comparison_table, fit_bridge


def worlds() -> tuple[tuple[np.ndarray, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Recordings of one planted space, and three other spaces of the same pictures."""
    world = make_world(n_train=800, n_test=100, noise=2.0)
    planted = (world.train_embeds.numpy() * 9 + 1, world.test_embeds.numpy() * 9 + 1)
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(32, 48)).astype(np.float32)
    near, far = (
        tuple((p @ mix + s * generator.normal(size=(len(p), 48)) * 9).astype(np.float32) for p in planted)
        for s in (0.3, 2.0)
    )
    unrelated = tuple(generator.normal(size=(len(p), 24)).astype(np.float32) for p in planted)
    data = (world.train["eeg"].numpy(), world.test["eeg"].numpy())
    return data, {"unrelated": unrelated, "far": far, "planted": planted, "near": near}


def test_the_planted_space_wins_and_the_unrelated_one_is_at_chance() -> None:
    (train, val), spaces = worlds()
    scores = compare_targets(train, val, spaces, np.arange(800), np.arange(100), n_bootstrap=200)
    assert [one.space for one in scores] == ["planted", "near", "far", "unrelated"]
    best, worst = scores[0], scores[-1]
    assert best.retrieval.top_1 > 0.5 and best.r2 > 0.2 and best.embed_dim == 32
    assert worst.retrieval.two_way == pytest.approx(0.5, abs=0.1) and worst.r2 < 0.02
    table = comparison_table(scores)
    assert table.count("\n") == 5 and "0.010 / 0.050" in table and "100 / 100" in table


def test_several_epochs_per_picture() -> None:
    (train, val), spaces = worlds()
    train_target, val_target = np.arange(800).repeat(2), np.arange(100).repeat(3)
    (score,) = compare_targets(
        train.repeat(2, axis=0), val.repeat(3, axis=0), {"planted": spaces["planted"]}, train_target, val_target,
        n_bootstrap=10,
    )  # fmt: skip
    assert score.retrieval.n == 300 and score.retrieval.n_stimuli == 100 and score.retrieval.top_1 > 0.5


def test_bridges_tell_how_much_of_the_other_space_is_known() -> None:
    _, spaces = worlds()
    r2 = {name: fit_bridge(spaces[name], spaces["planted"]).r2 for name in spaces}
    assert r2["planted"] > 0.999 and r2["near"] > 0.8 and 0.1 < r2["far"] < r2["near"] and abs(r2["unrelated"]) < 0.1
    bridge = fit_bridge(spaces["near"], spaces["planted"])
    assert bridge.decoder.predict(spaces["near"][1]).shape == (100, 32)


def test_refusals() -> None:
    (train, val), spaces = worlds()
    with pytest.raises(ValueError, match="no spaces"):
        compare_targets(train, val, {}, np.arange(800), np.arange(100))
    with pytest.raises(ValueError, match=r"\[800, 100\] and \[799, 100\]"):
        fit_bridge(spaces["near"], (spaces["far"][0][1:], spaces["far"][1]))
