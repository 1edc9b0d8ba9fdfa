"""A small world of concepts, images and two montages that share sources, for tests that need a retrieval score."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignment.losses import info_nce

D, N_TIMES = 32, 40
CHANNELS = {"eeg": 16, "meg": 24}


@dataclass(frozen=True)
class World:
    """Unit embeddings and one recording of each image per modality, (n, c, t), standardised."""

    train_embeds: Tensor
    test_embeds: Tensor
    train: dict[str, Tensor]
    test: dict[str, Tensor]


def make_world(n_train: int = 2000, n_test: int = 200, n_sources: int = 20, noise: float = 1.0, seed: int = 0) -> World:
    """Latent sources with own latencies read the embedding; each modality sees them through its own random field."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    embeds = functional.normalize(draw(n_train + n_test, D), dim=1)
    amplitudes = torch.tanh(embeds @ draw(D, n_sources))
    times = torch.arange(N_TIMES)
    lags = (times - (4 + 32 * torch.rand(n_sources, 1, generator=generator))) / 3
    courses = torch.exp(-0.5 * lags.square()) * torch.cos(1.5 * lags)
    data = {}
    for name, n_channels in CHANNELS.items():
        field = draw(n_channels, n_sources) / n_sources**0.5
        signal = torch.einsum("ns,cs,st->nct", amplitudes, field, courses)
        repeats = torch.cat([torch.ones(n_train), torch.full((n_test,), 4.0)])
        white = draw(*signal.shape) / repeats.sqrt()[:, None, None]
        data[name] = signal / signal.std() + noise * white
    cut = slice(n_train), slice(n_train, None)
    return World(
        embeds[cut[0]],
        embeds[cut[1]],
        {name: one[cut[0]] for name, one in data.items()},
        {name: one[cut[1]] for name, one in data.items()},
    )


def contrastive(embeds: Tensor, targets: Tensor) -> Tensor:
    return info_nce(embeds, targets, torch.tensor(14.0))


@torch.no_grad()
def top_1(network: nn.Module, data: Tensor, embeds: Tensor, *rest: object) -> float:
    """Share of recordings whose own image is the nearest of all by cosine."""
    found = functional.normalize(network.eval()(data, *rest), dim=1) @ embeds.T
    return float((found.argmax(dim=1) == torch.arange(len(embeds))).float().mean())
