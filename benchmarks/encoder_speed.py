"""How many epochs a second every encoder preset embeds and trains on one CPU thread.

    python benchmarks/encoder_speed.py [PRESET ...] [--sizes 17x250 63x250 271x201] [--repeats N] [--no-plain]

Medians: inference at batch 64; a training step at batch 128 (forward, symmetric InfoNCE against 1024 numbers,
gradients, fused AdamW). Figures of the published code stand beside, as measured elsewhere on one thread; they vary with
the machine. So the published order of steps is timed in the same run for three designs: compare those. The memory
allocator's settings matter by a factor of 2, and are the same for both. Writes its part of ``BENCHMARKS.md``. Half an
hour for all presets.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.losses import info_nce  # noqa: E402
from benchmarks.report_file import write_section  # noqa: E402
from encoders.build import PRESETS, SignalShape, build_encoder  # noqa: E402

SIZES = {"17x250": (17, 250, 250.0), "63x250": (63, 250, 250.0), "271x201": (271, 201, 200.0)}
EMBED_DIM, INFERENCE_BATCH, TRAINING_BATCH, LOGIT_SCALE = 1024, 64, 128, 14.3

# samples/s of the published code: inference at batch 64 / training at batch 128; "fails" where it does not run
PUBLISHED = {
    "eeg_project": ("NeuroBridge EEGProject", {"17x250": "6656/1927", "63x250": "1976/375", "271x201": "507/110"}),
    "ts_conv": ("NICE", {"63x250": "239/107"}),
    "ts_conv_neurobridge": ("NeuroBridge TSConv", {"17x250": "590/276", "63x250": "154/92", "271x201": "fails"}),
    "atm": ("ATM ATMS", {"17x250": "591/244", "63x250": "197/64", "271x201": "fails"}),
    "brain_module_image": (
        "SimpleConv with temporal aggregation",
        {"17x250": "42/12", "63x250": "40/11", "271x201": "39/-"},
    ),
    "eegnet": ("braindecode EEGNetv4", {"17x250": "3130/902", "63x250": "980/229", "271x201": "131/67"}),
    "shallow_conv_net": (
        "braindecode ShallowFBCSPNet",
        {"17x250": "1844/1061", "63x250": "699/296", "271x201": "228/92"},
    ),
}


class Residual(nn.Module):
    """A branch and its input, added."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = data + self.branch(data)
        return out


def plain_head(n_features: int) -> nn.Module:
    branch = nn.Sequential(nn.GELU(), nn.Linear(EMBED_DIM, EMBED_DIM), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(n_features, EMBED_DIM), Residual(branch), nn.LayerNorm(EMBED_DIM))


class PlainTSConv(nn.Module):
    """Convolution, then pooling, as the publications write it."""

    def __init__(self, n_channels: int, n_times: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 40, (1, 25)), nn.AvgPool2d((1, 51), (1, 5)), nn.BatchNorm2d(40), nn.ELU(),
            nn.Conv2d(40, 40, (n_channels, 1)), nn.BatchNorm2d(40), nn.ELU(), nn.Dropout(0.5), nn.Conv2d(40, 40, 1),
        )  # fmt: skip
        self.head = plain_head(40 * ((n_times - 75) // 5 + 1))

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        out: Tensor = self.head(self.maps(data.unsqueeze(1)).flatten(1))
        return out


class PlainATM(nn.Module):
    """Separate projections and attention written out, as the publication does."""

    def __init__(self, n_channels: int, n_times: int) -> None:
        super().__init__()
        self.value, self.people = nn.Linear(n_times, 250), nn.Embedding(10, 250)
        self.query, self.key, self.attended = (nn.Linear(250, 248) for _ in range(3))
        self.out, self.expand, self.contract = nn.Linear(248, 250), nn.Conv1d(250, 256, 1), nn.Conv1d(256, 250, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(250) for _ in range(3))
        self.dropout = nn.Dropout(0.25)
        self.convs = PlainTSConv(n_channels, 250)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        tokens = self.dropout(torch.cat([self.people(subject).unsqueeze(1), self.value(data)], dim=1))
        b, n, _ = tokens.shape
        query, key, value = (part(tokens).view(b, n, 4, 62) for part in (self.query, self.key, self.attended))
        weights = self.dropout(torch.softmax(torch.einsum("blhe,bshe->bhls", query, key) / math.sqrt(62), dim=-1))
        mixed = torch.einsum("bhls,bshd->blhd", weights, value).reshape(b, n, 248)
        tokens = self.norms[0](tokens + self.dropout(self.out(mixed)))
        changed = self.dropout(F.gelu(self.expand(tokens.transpose(1, 2))))
        tokens = self.norms[1](tokens + self.dropout(self.contract(changed).transpose(1, 2)))
        out: Tensor = self.convs(self.norms[2](tokens)[:, :-1], positions, subject)
        return out


class PlainProject(nn.Module):
    """The whole epoch through one dense layer."""

    def __init__(self, n_channels: int, n_times: int) -> None:
        super().__init__()
        self.head = plain_head(n_channels * n_times)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        out: Tensor = self.head(data.flatten(1))
        return out


PLAIN: dict[str, Callable[[int, int], nn.Module]] = {
    "ts_conv": PlainTSConv, "atm": PlainATM, "eeg_project": PlainProject,
}  # fmt: skip


def rates(network: nn.Module, shape: SignalShape, repeats: int) -> tuple[float, float]:
    """Return epochs per second of inference and of a training step."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(TRAINING_BATCH, shape.n_channels, shape.n_times, generator=generator)
    positions = torch.rand(shape.n_channels, 2, generator=generator)
    subject = torch.arange(TRAINING_BATCH) % shape.n_subjects
    targets = torch.randn(TRAINING_BATCH, EMBED_DIM, generator=generator)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        loss = info_nce(network(data, positions, subject), targets, torch.tensor(LOGIT_SCALE))
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            parameter.grad = grad
        optimizer.step()

    def embed() -> None:
        with torch.inference_mode():
            network(data[:INFERENCE_BATCH], positions, subject[:INFERENCE_BATCH])

    network.train()
    training = median_seconds(step, repeats)
    network.eval()
    return INFERENCE_BATCH / median_seconds(embed, repeats), TRAINING_BATCH / training


def median_seconds(call: Callable[[], None], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def lines(names: Sequence[str], sizes: Sequence[str], repeats: int, *, plain: bool) -> list[str]:
    """Return the rows of the table, printing each as soon as it is known."""
    rows = ["| preset | size | parameters | inference/s | training/s | published order, same run | published code |"]
    rows.append("|---|---|---|---|---|---|---|")
    print("\n".join(rows), flush=True)
    for name in names:
        for size in sizes:
            n_channels, n_times, sfreq = SIZES[size]
            shape = SignalShape(n_channels, n_times, sfreq, 10, positions_on_a_grid(n_channels))
            network = build_encoder(PRESETS[name], shape, EMBED_DIM)
            million = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            inference, training = rates(network, shape, repeats)
            beside = "-"
            if plain and name in PLAIN:
                first, second = rates(PLAIN[name](n_channels, n_times), shape, repeats)
                ratios = f"{inference / first:.1f}x/{training / second:.1f}x"
                beside = f"{first:.0f}/{second:.0f} (ours {ratios})"
            source, figures = PUBLISHED.get(name, ("", {}))
            published = f"{figures[size]} ({source})" if size in figures else "-"
            rows.append(
                f"| {name} | {size} | {million:.2f} M | {inference:.0f} | {training:.0f} | {beside} | {published} |"
            )
            print(rows[-1], flush=True)
    return rows


def positions_on_a_grid(n_channels: int) -> tuple[tuple[float, float], ...]:
    side = math.ceil(math.sqrt(n_channels))
    return tuple(((k % side + 0.5) / side, (k // side + 0.5) / side) for k in range(n_channels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="default: all")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-plain", action="store_true", help="do not time the published order of steps")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.presets) - set(PRESETS))
    if unknown:
        parser.error(f"no presets {unknown}; there are {sorted(PRESETS)}")
    torch.set_num_threads(1)
    table = lines(arguments.presets or list(PRESETS), arguments.sizes, arguments.repeats, plain=not arguments.no_plain)
    text = (
        f"`python benchmarks/encoder_speed.py {' '.join(arguments.presets)}`: epochs/s on one CPU thread, float32, "
        "embed_dim 1024; inference at batch 64, a training step (InfoNCE, AdamW) at batch 128. Published figures come "
        "from another machine.\n\n"
    )
    write_section("Speed of the encoders", text + "\n".join(table))


if __name__ == "__main__":
    main()
