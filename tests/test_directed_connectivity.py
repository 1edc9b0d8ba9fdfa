import numpy as np
import pytest
import torch

from encoders.directed_connectivity import (
    directed_transfer,
    fit_var,
    granger,
    partial_directed_coherence,
    transfer_entropy,
)

FREQUENCIES = torch.linspace(0, 50, 26)


def _chain(n_epochs=40, n_times=120, seed=0):
    """Channel 0 drives 1 and 1 drives 2, one sample later each; channel 3 stands alone."""
    noise = np.random.default_rng(seed).standard_normal((n_epochs, 4, n_times))
    data = noise.copy()
    for t in range(2, n_times):
        data[..., t] += 0.5 * data[..., t - 1] - 0.3 * data[..., t - 2]
        data[:, 1, t] += 0.4 * data[:, 0, t - 1]
        data[:, 2, t] += 0.4 * data[:, 1, t - 1]
    return torch.from_numpy(data)


def _residual(data, order, receiver, senders):
    """Residual sum of squares of a regression on the past, and its number of samples, by numpy."""
    data = data.numpy()
    n_times = data.shape[-1]
    past = [data[:, j, order - k : n_times - k].ravel() for k in range(1, order + 1) for j in senders]
    present = data[:, receiver, order:].ravel()
    design = np.stack([*past, np.ones_like(present)], 1)
    return float(np.linalg.lstsq(design, present, rcond=None)[1][0]), len(present)


def test_coefficients_are_recovered():
    model = fit_var(_chain(n_epochs=200), 2)
    expected = torch.zeros(2, 4, 4)
    expected[0].fill_diagonal_(0.5)
    expected[1].fill_diagonal_(-0.3)
    expected[0, 1, 0] = expected[0, 2, 1] = 0.4
    torch.testing.assert_close(model.coefficients, expected.double(), atol=0.03, rtol=0)
    torch.testing.assert_close(model.noise, torch.eye(4).double(), atol=0.03, rtol=0)


def test_granger_finds_the_direction():
    statistic, p_value = granger(fit_var(_chain()[:, :2], 2))
    assert p_value[1, 0] < 1e-3 and p_value[0, 1] > 0.05
    assert (statistic.diagonal() == 0).all() and (p_value.diagonal() == 1).all()


def test_granger_is_blind_to_detours():
    """Channel 0 reaches 2 by way of 1 only; over 20 simulations it must seem direct about as often as by chance."""
    p_value = torch.stack([granger(fit_var(_chain(seed=seed), 2))[1] for seed in range(20)])
    assert (p_value[:, 2, 1] < 1e-3).all()
    for receiver, sender in ((2, 0), (1, 2), (3, 0)):
        assert (p_value[:, receiver, sender] < 0.05).sum() <= 4


def test_p_values_are_uniform_without_coupling():
    data = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 10, 2, 60)))
    _, p_value = granger(fit_var(data, 2))
    wrong = (p_value[:, 0, 1] < 0.05).double().mean()
    assert 0.02 < wrong < 0.09


@pytest.mark.parametrize(("receiver", "sender"), [(1, 0), (0, 1), (3, 2)])
def test_one_fit_gives_what_a_second_fit_without_the_sender_gives(receiver, sender):
    data, order = _chain(), 3
    model = fit_var(data, order)
    full, n = _residual(data, order, receiver, range(4))
    reduced, _ = _residual(data, order, receiver, [j for j in range(4) if j != sender])
    n_free = n - 4 * order - 1
    statistic = ((reduced - full) / order) / (full / n_free)
    np.testing.assert_allclose(granger(model)[0][receiver, sender], statistic, rtol=1e-8)
    np.testing.assert_allclose(transfer_entropy(model)[receiver, sender], 0.5 * np.log(reduced / full), rtol=1e-8)


def test_columns_of_pdc_and_rows_of_dtf_have_unit_length_at_every_frequency():
    model = fit_var(_chain(), 4)
    pdc = partial_directed_coherence(model, 100.0, FREQUENCIES)
    dtf = directed_transfer(model, 100.0, FREQUENCIES)
    assert pdc.shape == dtf.shape == (26, 4, 4)
    ones = torch.ones(26, 4).double()
    torch.testing.assert_close(pdc.square().sum(-2), ones, atol=1e-12, rtol=0)
    torch.testing.assert_close(dtf.square().sum(-1), ones, atol=1e-12, rtol=0)


def test_pdc_is_direct_and_dtf_is_not():
    model = fit_var(_chain(n_epochs=200), 2)
    pdc = partial_directed_coherence(model, 100.0, FREQUENCIES).mean(0)
    dtf = directed_transfer(model, 100.0, FREQUENCIES).mean(0)
    assert pdc[2, 0] < 0.05 and dtf[2, 0] > 0.1  # 0 reaches 2 by way of 1 only
    assert pdc[1, 0] > 0.2 and pdc[0, 1] < 0.05


def test_pdc_equals_the_sum_over_lags():
    model = fit_var(_chain(), 2)
    lag_1, lag_2 = model.coefficients.numpy()
    transform = np.eye(4) - lag_1 * np.exp(-2j * np.pi * 0.12) - lag_2 * np.exp(-4j * np.pi * 0.12)
    expected = np.abs(transform) / np.linalg.norm(transform, axis=0)
    found = partial_directed_coherence(model, 100.0, torch.tensor([12.0]))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="41 unknowns per channel, got 2 epochs of 20 samples, that is 20 to predict"):
        fit_var(torch.randn(2, 4, 20), 10)
