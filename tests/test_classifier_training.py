"""Pretraining by concept labels: it learns, the head is dropped, and what is left embeds the same."""

import json

import numpy as np
import pytest
import torch

from alignment.classifier_training import LabelledEpochs, encoder_state, predict_labels, pretrain_classifier
from alignment.fit import FitConfig
from alignment.runtime import Runtime
from encoders.build import SignalShape, build_encoder
from encoders.heads import BrainClassifier
from encoders.networks.lf_cnn import LFCNNConfig

SHAPE = SignalShape(8, 40, 100.0, 2)
CONFIG = LFCNNConfig(n_latents=8, l1=1e-5, dropout=0.2)
PLACES = np.zeros((8, 2), dtype=np.float32)


def epochs(n, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=n)
    templates = np.random.default_rng(5).standard_normal((4, 8, 40))
    data = templates[labels] + 2 * generator.standard_normal((n, 8, 40))
    return LabelledEpochs(data.astype(np.float32), labels, generator.integers(2, size=n))


def classifier():
    torch.manual_seed(0)
    return BrainClassifier(build_encoder(CONFIG, SHAPE, 16), 16, 4)


def test_learns_and_returns_the_encoder_without_the_head(tmp_path):
    model, runtime = classifier(), Runtime(device="cpu")
    config = FitConfig(max_steps=60, lr=3e-3, validate_every=20)
    state = pretrain_classifier(model, epochs(300, 1), PLACES, config, runtime, tmp_path, progress=False)
    held_out = epochs(200, 2)
    answers = predict_labels(model.eval(), held_out, PLACES, runtime)
    assert answers.dtype == np.int64 and (answers == held_out.labels).mean() >= 0.9
    bare = build_encoder(CONFIG, SHAPE, 16)
    bare.load_state_dict(state)
    inputs = torch.from_numpy(held_out.data), torch.from_numpy(PLACES), torch.from_numpy(held_out.subject)
    with torch.no_grad():
        assert torch.equal(bare.eval()(*inputs), model.embed(*inputs))


def test_validation_chooses_the_state(tmp_path):
    model = classifier()
    config = FitConfig(max_steps=30, lr=3e-3, validate_every=5)
    state = pretrain_classifier(
        model, epochs(300, 1), PLACES, config, Runtime(device="cpu"), tmp_path, epochs(100, 3), progress=False
    )
    assert set(state) == set(build_encoder(CONFIG, SHAPE, 16).state_dict())
    assert (tmp_path / "log.jsonl").read_text().count("val_score") == 6


def test_the_networks_own_penalty_is_in_the_loss(tmp_path):
    lines = {}
    for l1 in (0.0, 1.0):
        torch.manual_seed(0)
        model = BrainClassifier(build_encoder(CONFIG.model_copy(update={"l1": l1}), SHAPE, 16), 16, 4)
        folder = tmp_path / str(l1)
        config = FitConfig(max_steps=1, log_every=1)
        pretrain_classifier(model, epochs(64, 1), PLACES, config, Runtime(device="cpu"), folder, progress=False)
        lines[l1] = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert lines[0.0]["penalty"] == 0 and lines[1.0]["penalty"] > 10
    assert lines[1.0]["loss"] == pytest.approx(lines[0.0]["loss"] + lines[1.0]["penalty"], rel=1e-4)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="3 epochs, 3 labels and 2 subjects"):
        LabelledEpochs(np.zeros((3, 8, 40), np.float32), np.zeros(3, int), np.zeros(2, int))
    wrong = epochs(20, 1)
    wrong.labels[3] = 4
    with pytest.raises(ValueError, match=r"from 0 to 4, expected some in 0 \.\. 3"):
        pretrain_classifier(classifier(), wrong, PLACES, FitConfig(max_steps=1), Runtime(device="cpu"), tmp_path)
    with pytest.raises(ValueError, match="no tensor under 'encoder.'"):
        encoder_state({"head.weight": torch.zeros(1)})
