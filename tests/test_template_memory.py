"""Template memory: sound epochs move the template, artefacts do not, and the gate is worth its second stage."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from alignment.confidence_training import train_confidence
from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from encoders.build import SignalShape
from encoders.networks.query_decoder import QueryDecoderConfig
from encoders.template_memory import ConfidenceHead, TemplateMemory

C, T, N_CLASSES = 8, 32, 8
PLACES = torch.zeros(C, 2)
SMALL = QueryDecoderConfig(width=32, n_heads=8, feedforward=32, dropout=0.1)


def _smooth(generator, *shape):
    """Return slow random courses of unit strength, (*shape, T)."""
    kernel = torch.hann_window(9)[None, None]
    white = torch.randn(*shape, T + 8, generator=generator)
    slow = functional.conv1d(white.reshape(-1, 1, T + 8), kernel).reshape(*shape, T)
    return slow / slow.std()


class _Stream:
    """Pictures of eight classes; a common response that drifts; blink-like artefacts of one sign."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.patterns = 0.7 * _smooth(generator, N_CLASSES, C)
        self.patterns -= self.patterns.mean(0)
        self.usual = 2 * _smooth(generator, C)
        self.drift = 2 * _smooth(generator, C) + 3 * (self.patterns[0] - self.patterns[1])
        self.blink = torch.linspace(1, 0.2, C)[:, None] * torch.hann_window(T)

    def epochs(self, n, seed, drift=0.0, share=0.2):
        """Return data, class and whether the epoch is sound; ``drift`` is what is reached at the end."""
        generator = torch.Generator().manual_seed(seed)
        kind = torch.randint(N_CLASSES, (n,), generator=generator)
        progress = drift * torch.linspace(0, 1, n)[:, None, None]
        data = self.patterns[kind] + self.usual + progress * self.drift + _smooth(generator, n, C)
        is_sound = torch.rand(n, generator=generator) >= share
        strength = (15 + 15 * torch.rand(n, generator=generator))[:, None, None]
        return data + (~is_sound)[:, None, None] * strength * self.blink, kind, is_sound


def _subject(n):
    return torch.zeros(n, dtype=torch.int64)


def _run(runtime, folder, n_steps):
    return {
        "config": FitConfig(max_steps=n_steps, lr=5e-3, schedule="onecycle", checkpoint_every=10**6),
        "runtime": runtime,
        "run_dir": folder,
        "progress": False,
    }


def test_gated_update_beats_always_and_never(tmp_path):
    """Share of right answers of eight classes over 400 epochs, those with artefacts included; chance 0.125."""
    stream, runtime = _Stream(), Runtime(device="cpu", threads=1)
    data, kind, _ = stream.epochs(1000, seed=1, share=0.0)
    template = data.mean(0)
    torch.manual_seed(0)
    encoder = SMALL.build(SignalShape(C, T, 100.0, 1), N_CLASSES)

    def batch_at(step, rank, n_processes):
        rows = torch.randint(len(data), (64,), generator=torch.Generator().manual_seed(step))
        return data[rows] - template, kind[rows]

    def loss_fn(module, batch):
        return functional.cross_entropy(module(batch[0], PLACES, _subject(64)), batch[1])

    fit(encoder, loss_fn, batch_at, **_run(runtime, tmp_path / "first", 150))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    head = ConfidenceHead(encoder, hidden=32)
    labelled, _, is_sound = stream.epochs(1000, seed=2, share=0.5)

    def labelled_at(step, rank, n_processes):
        rows = torch.randint(len(labelled), (64,), generator=torch.Generator().manual_seed(step))
        return labelled[rows], template, PLACES, _subject(64), is_sound[rows].float()

    train_confidence(head, labelled_at, **_run(runtime, tmp_path / "second", 100))
    frozen = head.encoder.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in before.items())

    encoder.eval(), head.eval()
    recorded, kind, is_sound = stream.epochs(400, seed=3, drift=1.0)
    scores, confidences = {}, []
    for policy in ("never", "always", "gated"):
        memory, hits = TemplateMemory(template, rate=0.1), 0
        for epoch, right in zip(recorded.split(1), kind, strict=True):
            with torch.no_grad():
                hits += int(encoder(memory(epoch), PLACES, _subject(1)).argmax() == right)
                if policy == "gated":
                    confidence = head(epoch, memory.template, PLACES, _subject(1)).sigmoid()
                    confidences.append(float(confidence))
                    memory.update(epoch, confidence)
                elif policy == "always":
                    memory.update(epoch, torch.ones(1))
        scores[policy] = hits / len(recorded)
    auc = roc_auc_score(is_sound, confidences)
    print("\n", scores, "AUC", auc)
    assert scores["gated"] >= max(scores["never"], scores["always"]) + 0.05
    assert auc >= 0.8


def test_template_is_a_running_mean_of_sound_epochs_in_their_order():
    memory = TemplateMemory(torch.zeros(2, 3), rate=0.25)
    data = torch.arange(3.0)[:, None, None].expand(3, 2, 3) + 1
    let_in = memory.update(data, torch.tensor([0.5, 0.1, 0.9]))
    assert let_in.tolist() == [True, False, True]
    torch.testing.assert_close(memory.template, torch.full((2, 3), 0.75 * 0.25 * 1 + 0.25 * 3))
    torch.testing.assert_close(memory(data), data - memory.template)
    again = TemplateMemory(torch.ones(2, 3))
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.template, memory.template)


def test_confidence_of_an_epoch_depends_on_nothing_else_in_the_batch():
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"subject_layers": True})
    encoder = config.build(SignalShape(C, T, 100.0, 2), N_CLASSES)
    with torch.no_grad():
        encoder.people.weight.add_(0.5 * torch.randn_like(encoder.people.weight))
    head = ConfidenceHead(encoder).train()
    assert head.training and not any(part.training for part in head.encoder.modules())
    data, template, subject = torch.randn(3, C, T), torch.randn(C, T), torch.tensor([1, 0, 2])
    whole = head.eval()(data, template, PLACES, subject)
    for i in range(3):
        alone = head(data[i : i + 1], template, PLACES, subject[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    whole.sum().backward()
    assert all(parameter.grad is None for parameter in head.encoder.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rate is 0"):
        TemplateMemory(torch.zeros(2, 3), rate=0)
    with pytest.raises(ValueError, match="cut epochs as in calibration"):
        TemplateMemory(torch.zeros(2, 3)).update(torch.zeros(1, 2, 4), torch.ones(1))
    with pytest.raises(ValueError, match="has no tokens"):
        ConfidenceHead(nn.Linear(2, 2))
