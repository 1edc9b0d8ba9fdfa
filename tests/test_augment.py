from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from encoders.augment import AnyAugmentStep, AugmentConfig, augment

SFREQ = 100.0
STEPS = [
    {"name": "noise", "std": 0.5},
    {"name": "drift", "amplitude": 1.0},
    {"name": "channel_dropout", "share": 0.3},
    {"name": "time_mask", "width": 0.2},
    {"name": "shift", "most": 0.03},
    {"name": "channel_smoothing", "kernel": 5},
    {"name": "subject_mixup"},
    {"name": "repetition_average"},
]
NAMES = [str(step["name"]) for step in STEPS]


def batch(n: int = 24, c: int = 6, t: int = 60) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(n)
    return {"data": torch.randn(n, c, t, generator=generator), "subject": row % 3, "target": row // 6}


def run(step: dict[str, object], seed: int = 0, **given: torch.Tensor) -> torch.Tensor:
    rows = batch() | given
    config = AugmentConfig(steps=(step,))
    return augment(
        rows["data"], config, torch.Generator().manual_seed(seed), sfreq=SFREQ,
        subject=rows["subject"], target=rows["target"],
    )  # fmt: skip


def test_every_step_is_tried() -> None:
    kinds = {type(AugmentConfig(steps=(step,)).steps[0]) for step in STEPS}
    assert kinds == set(get_args(AnyAugmentStep))


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_p_zero_is_the_identity_and_draws_nothing(step) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    data = batch()["data"]
    answer = augment(data, AugmentConfig(steps=({**step, "p": 0},)), generator, sfreq=SFREQ)
    assert answer is data and torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_seeded_shapes_kept_input_and_labels_untouched(step) -> None:
    rows = batch()
    kept = {name: value.clone() for name, value in rows.items()}
    answer = run({**step, "p": 0.5}, **rows)
    assert answer.shape == rows["data"].shape and answer.dtype == torch.float32 and answer.isfinite().all()
    assert not torch.equal(answer, rows["data"])
    assert all(torch.equal(rows[name], value) for name, value in kept.items())
    again, other = (run({**step, "p": 0.5}, seed=seed) for seed in (0, 1))
    assert torch.equal(answer, again) and not torch.equal(answer, other)


@pytest.mark.parametrize("step", [s for s in STEPS if s["name"] != "channel_smoothing"], ids=lambda s: s["name"])
def test_p_is_the_share_of_changed_rows(step) -> None:
    changed = [run({**step, "p": 0.25}, seed=seed).ne(batch()["data"]).any(dim=(1, 2)) for seed in range(100)]
    nothing_happens = {"shift": 1 / 7, "channel_dropout": 0.7**6}.get(step["name"], 0)
    expected = 0.25 * (1 - nothing_happens)
    assert float(torch.stack(changed).float().mean()) == pytest.approx(expected, abs=0.03)


def test_smoothing_draws_channels_and_is_a_centred_mean() -> None:
    data = batch(200)["data"]
    config = AugmentConfig(steps=({"name": "channel_smoothing"},))
    answer = augment(data, config, torch.Generator().manual_seed(0), sfreq=SFREQ)
    changed = answer.ne(data).any(dim=2)
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert changed.any(dim=1).float().mean() > 0.8 and not changed.all(dim=1).all()
    row, channel = (int(i) for i in changed.nonzero()[0])
    padded = np.pad(data[row, channel].numpy(), 2, mode="edge")
    expected = np.convolve(padded, np.ones(5) / 5, mode="valid")
    assert np.allclose(answer[row, channel].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_the_latency_of_an_evoked_response_is_preserved(step) -> None:
    """The mean of many augmented copies peaks at the sample where the response does, in the same channel, same sign."""
    times = torch.arange(100) / 100
    peak = 0.37
    response = torch.exp(-0.5 * ((times - peak) / 0.04).square())
    gains = torch.tensor([1.0, -2.0, 0.5])
    data = (gains[:, None] * response).expand(3000, 3, 100).clone()
    rows = {"data": data, "subject": torch.arange(3000) % 3, "target": torch.arange(3000) // 6}
    mean = run({**step, "p": 1}, **rows).mean(dim=0)
    assert (mean.abs().argmax(dim=1) - 37).abs().max() <= (1 if step["name"] == "noise" else 0)
    assert torch.equal(mean[:, 37].sign(), gains.sign())
    if step["name"] == "shift":
        each = run({**step, "p": 1}, **rows).abs().argmax(dim=2)
        assert (each - 37).abs().max() == 3 and float(each.float().mean()) == pytest.approx(37, abs=0.15)


def test_noise_and_drift_statistics() -> None:
    zero = torch.zeros(400, 5, 100)
    noise = run({"name": "noise", "std": 0.3, "p": 1}, data=zero)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.01) and abs(float(noise.mean())) < 0.005
    drift = run({"name": "drift", "amplitude": 0.8, "p": 1}, data=zero)
    assert drift.abs().max() <= 0.8 and abs(float(drift.mean())) < 0.01
    assert drift.diff(dim=2).abs().max() < 0.8 * 2 * torch.pi / 100  # slow


def test_dropout_and_mask_silence_the_stated_amount() -> None:
    ones = torch.ones(400, 20, 100)
    channels = run({"name": "channel_dropout", "share": 0.2, "p": 1}, data=ones)
    assert ((channels == 1).all(dim=2) | (channels == 0).all(dim=2)).all()
    assert float(channels.mean()) == pytest.approx(0.8, abs=0.01)
    masked = run({"name": "time_mask", "width": 0.15, "p": 1}, data=ones)
    assert ((masked == 0).sum(dim=2) == 15).all() and (masked[:, 0] == masked[:, 1]).all()
    assert ((masked[:, 0].diff(dim=1) != 0).sum(dim=1) <= 2).all()


def test_mixup_stays_within_the_picture_and_leaves_the_own_person() -> None:
    """Rows carry their picture as a constant and their person as another: mixing may change the person's only."""
    rows = batch()
    data = torch.stack([rows["target"].float(), rows["subject"].float()], dim=1)[:, :, None].repeat(1, 1, 4)
    mixed = run({"name": "subject_mixup", "p": 1}, data=data)
    assert torch.equal(mixed[:, 0], data[:, 0])
    moved = (mixed[:, 1] - data[:, 1]).abs().max(dim=1).values
    assert (moved > 0).float().mean() > 0.9
    alone = rows | {"target": torch.arange(24)}
    assert torch.equal(run({"name": "subject_mixup", "p": 1}, **alone), alone["data"])


def test_mixup_weights_are_beta() -> None:
    data = torch.zeros(4000, 1, 2)
    data[::2] = 1.0
    rows = {"data": data, "subject": torch.arange(4000) % 2, "target": torch.arange(4000) // 2}
    weight = run({"name": "subject_mixup", "p": 1}, **rows)[::2, 0, 0]
    assert float(weight.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(weight.var()) == pytest.approx(1 / 8, abs=0.01)  # of Beta(0.5, 0.5)


def test_averaging_repetitions_takes_two_of_the_same_person_and_picture() -> None:
    rows = batch()
    averaged = run({"name": "repetition_average", "p": 1})
    for i in range(24):
        same = [j for j in range(24) if j != i and j % 3 == i % 3 and j // 6 == i // 6]
        assert any(torch.allclose(averaged[i], (rows["data"][i] + rows["data"][j]) / 2) for j in same)


def test_steps_follow_each_other_and_none_is_the_default() -> None:
    data = batch()["data"]
    assert augment(data, AugmentConfig(), torch.Generator(), sfreq=SFREQ) is data
    steps = ({"name": "time_mask", "width": 0.2, "p": 1}, {"name": "noise", "p": 1})
    answer = augment(data, AugmentConfig(steps=steps), torch.Generator().manual_seed(0), sfreq=SFREQ)
    assert (answer != 0).all()


def test_refusals() -> None:
    for wrong in ({"name": "reverse"}, {"name": "channel_smoothing", "kernel": 4}, {"name": "shift", "most": 0.2}):
        with pytest.raises(ValidationError):
            AugmentConfig(steps=(wrong,))
    with pytest.raises(ValueError, match="expected 1 to 59"):
        run({"name": "time_mask", "width": 5.0})
    with pytest.raises(ValueError, match="0 samples"):
        run({"name": "shift", "most": 0.001})
    with pytest.raises(ValueError, match="needs subject and target"):
        augment(
            batch()["data"], AugmentConfig(steps=({"name": "subject_mixup"},)), torch.Generator(), sfreq=SFREQ
        )
