"""Layers whose rows depend on their number are found and filled; then pictures are byte-equal in every batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bundle import make_tiny_image_variation, make_tiny_unclip
from torch import Tensor, nn

from alignment.runtime import Runtime
from generation.image_decoder import ImageDecoder, ImageVariationConfig, StableUnCLIPConfig, build_decoder
from generation.steady_batches import FixedRows, settle_layers, steady_from

D = 12
MAX_BATCH = 4


class Unsteady(nn.Module):
    """A layer that adds a little to its rows when there are few of them, as a kernel for few rows may."""

    def __init__(self, n_few: int) -> None:
        super().__init__()
        self.n_few = n_few

    def forward(self, rows: Tensor) -> Tensor:
        return rows + 1e-6 * (len(rows) <= self.n_few)


def network(*few: int) -> nn.Sequential:
    return nn.Sequential(*(Unsteady(n) for n in few)).eval()


def sampled(net: nn.Sequential, rows_per_picture: int = 1) -> Callable[[int], np.ndarray]:
    """Return what samples the first n of some pictures with the network."""
    data = torch.from_numpy(np.random.default_rng(0).random((MAX_BATCH * rows_per_picture, 3))).float()
    return lambda n: net(data[: n * rows_per_picture]).numpy()[::rows_per_picture]


@pytest.mark.parametrize(("few", "rows", "filled", "before"), [
    ((0, 0), 1, 0, 1), ((2, 0), 1, 1, 3), ((2, 1), 1, 2, 3), ((9, 0), 1, 0, 1), ((3, 0), 2, 1, 2), ((1, 0), 2, 0, 1),
])  # fmt: skip
def test_what_depends_on_the_number_of_rows_is_found_and_filled(
    few: tuple[int, int], rows: int, filled: int, before: int
) -> None:
    net = network(*few)
    pixels = sampled(net, rows)
    whole = pixels(MAX_BATCH)
    assert steady_from(pixels, MAX_BATCH) == before
    assert settle_layers([net], pixels, MAX_BATCH) == filled
    assert steady_from(pixels, MAX_BATCH) == 1
    assert np.array_equal(pixels(MAX_BATCH), whole), "full batches stay what they were"
    assert all(len(pixels(n)) == n for n in range(1, MAX_BATCH + 1))


def test_rows_of_zeros_as_guidance_puts_first_hide_no_layer() -> None:
    class Unscaled(Unsteady):
        def forward(self, rows: Tensor) -> Tensor:
            return rows * (1.0 + 1e-6 * (len(rows) <= self.n_few))

    net = nn.Sequential(Unscaled(2)).eval()
    data = torch.from_numpy(np.random.default_rng(0).random((MAX_BATCH, 3))).float()

    def pixels(n: int) -> np.ndarray:
        return net(torch.cat([torch.zeros(n, 3), data[:n]])).numpy()[n:]

    assert steady_from(pixels, MAX_BATCH) == 2
    assert settle_layers([net], pixels, MAX_BATCH) == 1
    assert steady_from(pixels, MAX_BATCH) == 1


def test_what_is_no_layer_is_told_by_the_size_to_fill_batches_up_to() -> None:
    net = network(2)
    pixels = sampled(net)
    settle_layers([net], pixels, MAX_BATCH)
    assert steady_from(lambda n: pixels(n) + 1e-6 * (n < 3), MAX_BATCH) == 3


def test_filled_rows_are_dropped_and_more_are_let_through() -> None:
    seen: list[int] = []
    layer = nn.Linear(3, 2)
    layer.register_forward_pre_hook(lambda layer, arguments: seen.append(len(arguments[0])))
    plain = layer(torch.ones(7, 3))
    FixedRows(layer, 4)
    assert torch.equal(layer(torch.ones(7, 3)), plain) and layer(torch.ones(1, 3)).shape == (1, 2)
    layer(torch.ones(4, 3))
    assert seen == [7, 7, 1, 4]


@pytest.fixture(params=["unclip", "variation"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> ImageDecoder:
    runtime = Runtime(device="cpu")
    if request.param == "unclip":
        folder = make_tiny_unclip(tmp_path / "model", embed_dim=D)
        return build_decoder(StableUnCLIPConfig(match="none"), folder, runtime)
    return build_decoder(ImageVariationConfig(), make_tiny_image_variation(tmp_path / "model", embed_dim=D), runtime)


def test_pictures_of_a_settled_decoder_are_byte_equal_in_every_batch(decoder: ImageDecoder) -> None:
    embeds = np.random.default_rng(1).normal(scale=3.0, size=(MAX_BATCH, D)).astype(np.float32)
    for scale, least in zip((2.0, 1.0), decoder.settle(MAX_BATCH, (2.0, 1.0)), strict=True):
        assert 1 <= least <= MAX_BATCH
        order = {"num_inference_steps": 3, "guidance_scale": scale}
        whole = decoder.generate(embeds, seeds=range(MAX_BATCH), **order)
        for n in range(least, MAX_BATCH):
            for first in {0, MAX_BATCH - n}:
                rows = slice(first, first + n)
                part = decoder.generate(embeds[rows], seeds=range(MAX_BATCH)[rows], **order)
                assert np.array_equal(part, whole[rows]), (scale, n, first)
