import mne_connectivity
import numpy as np
import pytest
import torch

from encoders.connectivity import adjacency, correlation, mutual_information, spectral_connectivity
from encoders.layers.signal_shape import SignalShape
from encoders.networks.stgate import STGATE, STGATEConfig

NAMES = {"coherence": "coh", "imaginary_coherence": "imcoh", "plv": "plv", "pli": "pli", "wpli": "wpli"}
METHODS = ("correlation", "mutual_information", *NAMES, "granger", "transfer_entropy", "pdc", "dtf")


def _data(n_epochs=30, n_channels=5, n_times=100, seed=0):
    """Noise that each channel passes to the next two samples later."""
    data = np.random.default_rng(seed).standard_normal((n_epochs, n_channels, n_times))
    for i in range(1, n_channels):
        data[:, i, 2:] += data[:, i - 1, :-2]
    return torch.from_numpy(data)


def _options(method):
    has_band = method in (*NAMES, "pdc", "dtf")
    return {"band": (8.0, 13.0), "sfreq": 100.0} if has_band else {}


@pytest.mark.parametrize(("n_times", "band"), [(100, (8.0, 13.0)), (101, (0.5, 50.0)), (64, (1.0, 50.0))])
@pytest.mark.parametrize("method", NAMES)
def test_spectral_measures_equal_mne_connectivity(method, n_times, band):
    data = _data(n_times=n_times)
    found = spectral_connectivity(data, method, band, 100.0)
    oracle = mne_connectivity.spectral_connectivity_epochs(
        data.numpy(), method=NAMES[method], mode="fourier", sfreq=100.0, fmin=band[0], fmax=band[1], faverage=True,
        verbose="error",
    )  # fmt: skip
    expected = oracle.get_data("dense")[..., 0]
    below = np.tril_indices(5, -1)
    np.testing.assert_allclose(found.numpy()[below], expected[below], atol=1e-6)


@pytest.mark.parametrize("method", NAMES)
def test_undirected_measures_are_symmetric_and_bounded(method):
    found = spectral_connectivity(_data(), method, (8.0, 13.0), 100.0)
    torch.testing.assert_close(found.mT, -found if method == "imaginary_coherence" else found)
    assert (found.abs() <= 1 + 1e-12).all()


def test_zero_lag_copies_fool_plv_but_not_the_imaginary_measures():
    generator = np.random.default_rng(0)
    source = generator.standard_normal((2000, 1, 100))
    data = torch.from_numpy(np.concatenate([source, 0.7 * source, -source], 1))
    data = data + 0.02 * torch.from_numpy(generator.standard_normal(data.shape))
    pairs = torch.tril_indices(3, 3, -1)
    measures = {name: spectral_connectivity(data, name, (8.0, 13.0), 100.0)[tuple(pairs)].abs() for name in NAMES}
    assert (measures["plv"] > 0.95).all()
    assert (measures["imaginary_coherence"] < 0.05).all() and (measures["wpli"] < 0.05).all()


def test_correlation_and_mutual_information_equal_numpy():
    data = _data()
    centred = (data - data.mean(-1, keepdim=True)).transpose(0, 1).flatten(1).numpy()
    expected = np.corrcoef(centred)
    np.testing.assert_allclose(correlation(data), expected, atol=1e-12)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(mutual_information(data), -0.5 * np.log(1 - expected**2), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_recordings_of_a_batch_do_not_mix(method):
    data = torch.stack([_data(seed=1), _data(seed=2)])
    both = adjacency(data, method, **_options(method))
    assert both.shape == (2, 5, 5) and both.dtype == torch.float32
    for i in range(2):
        torch.testing.assert_close(both[i], adjacency(data[i], method, **_options(method)))


@pytest.mark.parametrize("method", METHODS)
def test_adjacency_keeps_the_strongest_neighbours(method):
    data = _data()
    full = adjacency(data, method, **_options(method))
    kept = adjacency(data, method, top_k=2, **_options(method))
    assert (full >= 0).all() and (full.diagonal() == 0).all()
    assert ((kept > 0).sum(-1) == 2).all()
    for row, (weights, strongest) in enumerate(zip(kept, full, strict=True)):
        assert set(weights.nonzero()[:, 0].tolist()) == set(strongest.topk(2).indices.tolist()), row


@pytest.mark.parametrize("method", ["granger", "transfer_entropy", "pdc", "dtf"])
def test_directed_adjacency_reads_receiver_then_sender(method):
    graph = adjacency(_data(n_epochs=100), method, **_options(method))
    for i in range(1, 5):
        assert graph[i, i - 1] > 3 * graph[i - 1, i]


def test_silent_channels_are_connected_to_nothing():
    data = _data()
    data[:, 2] = 0
    for method in ("correlation", "mutual_information", *NAMES):
        graph = adjacency(data, method, **_options(method))
        assert graph.isfinite().all() and (graph[2] == 0).all() and (graph[:, 2] == 0).all(), method


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "phase"}, "'phase' is unknown"),
        ({"method": "plv"}, "expected both"),
        ({"method": "plv", "band": (8.0, 13.0)}, "expected both"),
        ({"method": "correlation", "band": (8.0, 13.0), "sfreq": 100.0}, "expected neither"),
        ({"method": "correlation", "top_k": 5}, "top_k=5 of 5 channels"),
        ({"method": "plv", "band": (8.1, 8.9), "sfreq": 100.0}, "holds no frequency"),
        ({"method": "pdc", "band": (60.0, 70.0), "sfreq": 100.0}, "holds no frequency"),
        ({"method": "granger", "order": 98}, "unknowns per channel"),
    ],
)
def test_impossible_requests_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        adjacency(_data(n_epochs=10), **options)


def test_a_network_takes_an_estimated_graph():
    data = _data(n_channels=12).float()
    network = STGATE(STGATEConfig(width=16, heads=4, top_k=3), SignalShape(12, 100, 100.0, 1), 8).eval()
    arguments = data, torch.rand(12, 2), torch.zeros(len(data)).long()
    before = network(*arguments)
    network.set_graph(adjacency(data, "coherence", (8.0, 13.0), 100.0))
    assert not torch.allclose(network(*arguments), before)
