from itertools import product

import numpy as np
import pytest
import pywt
import torch

from encoders.wavelets import WaveletPacket1d, WaveletPacket2d, packet_matrices

MODES = ("periodization", "symmetric", "reflect", "zero")
WAVELETS = ("haar", "db2", "db4", "sym5", "coif1", "bior2.2")
SIZES = [(63, 100), (17, 250), (271, 201), (64, 64), (5, 7)]


def _pywt_nodes(image, wavelet, mode, levels):
    tree = pywt.WaveletPacket2D(image, wavelet, mode=mode, maxlevel=levels)
    return np.stack([tree["".join(path)].data for path in product("ahvd", repeat=levels)])


def _data(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nodes_equal_pywavelets(size, wavelet, mode):
    data = _data(2, 1, *size)
    expected = np.stack([_pywt_nodes(image.numpy(), wavelet, mode, 2) for image in data[:, 0]])
    found = WaveletPacket2d(wavelet, 2, mode)(data)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    single = WaveletPacket2d(wavelet, 2, mode)(data.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_other_depths_equal_pywavelets(wavelet, levels):
    data = _data(1, 1, 21, 30)
    expected = _pywt_nodes(data[0, 0].numpy(), wavelet, "periodization", levels)
    np.testing.assert_allclose(WaveletPacket2d(wavelet, levels)(data)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("n_times", [100, 63, 9])
def test_nodes_along_time_equal_pywavelets(n_times, wavelet, mode):
    data, packet = _data(2, 3, n_times), WaveletPacket1d(wavelet, 3, mode)
    if n_times == 9:
        packet = WaveletPacket1d(wavelet, 2, mode)
    found = packet(data)
    assert found.shape == (2, 3, 2**packet.levels, packet.node_length(n_times))
    for line, nodes in zip(data.reshape(-1, n_times), found.flatten(0, 1), strict=True):
        tree = pywt.WaveletPacket(line.numpy(), wavelet, mode=mode, maxlevel=packet.levels)
        expected = np.stack([tree["".join(path)].data for path in product("ad", repeat=packet.levels)])
        np.testing.assert_allclose(nodes.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(packet.inverse(found, n_times), data, atol=1e-9, rtol=0)


@pytest.mark.parametrize("wavelet", pywt.wavelist(kind="discrete"))
def test_every_discrete_wavelet_gives_63_by_100_sixteen_maps_and_returns(wavelet):
    data, packet = _data(1, 1, 63, 100), WaveletPacket2d(wavelet)
    nodes = packet(data)
    assert nodes.shape == (1, 16, 16, 25)
    np.testing.assert_allclose(
        nodes[0].numpy(), _pywt_nodes(data[0, 0].numpy(), wavelet, "periodization", 2), atol=1e-10
    )
    assert (packet.inverse(nodes, (63, 100)) - data).abs().max() <= 1e-9
    single = data.float() / data.abs().max()
    assert (packet.inverse(packet(single), (63, 100)) - single).abs().max() <= 1e-6


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym5"])
@pytest.mark.parametrize("mode", MODES)
def test_the_inverse_returns_the_input(wavelet, size, mode):
    data, packet = _data(2, 3, *size), WaveletPacket2d(wavelet, 2, mode)
    tolerance = 1e-12 if wavelet == "haar" else 1e-10
    assert (packet.inverse(packet(data), size) - data).abs().max() <= tolerance
    single = data.float() / data.abs().max()
    assert (packet.inverse(packet(single), size) - single).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("wavelet", "mode", "sizes"),
    [
        ("haar", "symmetric", {(63, 100): (16, 25), (17, 250): (5, 63), (271, 201): (68, 51)}),
        ("db2", "periodization", {(63, 100): (16, 25), (17, 250): (5, 63), (271, 201): (68, 51)}),
        ("db2", "symmetric", {(63, 100): (18, 27)}),
    ],
)
def test_sizes_of_the_maps(wavelet, mode, sizes):
    packet = WaveletPacket2d(wavelet, 2, mode)
    for size, expected in sizes.items():
        assert packet(torch.zeros(1, 1, *size)).shape == (1, 16, *expected)
        assert (packet.node_length(size[0]), packet.node_length(size[1])) == expected


def test_energy_is_kept_with_a_zero_row_and_grows_by_a_repeated_one():
    data = _data(1, 1, 63, 100)
    even = torch.nn.functional.pad(data, (0, 0, 0, 1))
    for wavelet in ("haar", "db2", "sym5"):
        energy = WaveletPacket2d(wavelet)(even).square().sum()
        torch.testing.assert_close(energy, data.square().sum(), rtol=1e-10, atol=0)
    grown = WaveletPacket2d("haar", mode="symmetric")(data).square().sum()
    torch.testing.assert_close(grown, data.square().sum() + data[0, 0, -1].square().sum(), rtol=1e-12, atol=0)


def test_several_maps_are_transformed_each_by_itself():
    data = _data(2, 3, 15, 22)
    for wavelet in ("haar", "db2"):
        packet = WaveletPacket2d(wavelet)
        alone = torch.cat([packet(data[:, k : k + 1]) for k in range(3)], dim=1)
        torch.testing.assert_close(packet(data), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_gradients(wavelet):
    data = _data(1, 2, 7, 10).requires_grad_()
    packet, along_time = WaveletPacket2d(wavelet), WaveletPacket1d(wavelet, 2)
    assert torch.autograd.gradcheck(packet, data)
    nodes = packet(data).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda nodes: packet.inverse(nodes, (7, 10)), nodes)
    assert torch.autograd.gradcheck(along_time, data[0].detach().unsqueeze(0).flatten(1, 2).requires_grad_())


def test_matrices_first_made_for_inference_serve_training():
    packet, data = WaveletPacket2d("db2"), _data(1, 1, 8, 8)
    with torch.inference_mode():
        packet(data)
    data.requires_grad_()
    packet(data).square().sum().backward()
    torch.testing.assert_close(data.grad, 2 * data.detach(), atol=1e-10, rtol=0)


def test_slicing_equals_the_matrix_for_haar():
    analysis, synthesis = packet_matrices("haar", 2, "periodization", 63)
    data = _data(1, 1, 63)
    found = WaveletPacket1d("haar", 2)(data).flatten()
    np.testing.assert_allclose(found.numpy(), analysis @ data.flatten().numpy(), atol=1e-12)
    np.testing.assert_allclose(synthesis @ analysis, np.eye(63), atol=1e-12)


def test_wrong_settings_and_sizes_are_refused():
    with pytest.raises(ValueError, match="discrete wavelet of PyWavelets"):
        WaveletPacket2d("morl")
    with pytest.raises(ValueError, match="expected one of"):
        WaveletPacket2d("haar", 2, "smooth")
    with pytest.raises(ValueError, match="at least 1"):
        WaveletPacket2d("haar", 0)
    packet = WaveletPacket2d("haar", 2)
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        packet(torch.zeros(1, 1, 3, 100))
    with pytest.raises(ValueError, match="at least 4 samples, got 2"):
        WaveletPacket1d("db2", 2)(torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="size of the signal that was transformed"):
        packet.inverse(torch.zeros(1, 16, 16, 25), (63, 120))
    with pytest.raises(ValueError, match="size of the signal that was transformed"):
        WaveletPacket1d("db2", 2).inverse(torch.zeros(1, 1, 4, 25), 120)
