"""Training of a gated student: gates half open, the size of one teacher, and a score no worse than the better one's."""

import json

import pytest
import torch
from synth_things import CHANNELS, N_TIMES, D, contrastive, make_world, top_1
from torch import nn

from alignment.fit import FitConfig, fit
from alignment.merge_training import MergeTrainingConfig, train_merged
from alignment.runtime import Runtime
from encoders.build import SignalShape
from encoders.channel_plan import brain_module_plan, chain_plan
from encoders.gated_merging import gated_merge, half_open_weight
from encoders.merging import interpolate, reestimate_statistics
from encoders.networks.brain_module import BrainModule, BrainModuleConfig
from encoders.shared_trunk import BRAIN_MODULE_STEM, SharedTrunk
from encoders.weight_parts import outside, select

BATCH = 128


def _chain(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(CHANNELS["eeg"], 24, 8, stride=4), nn.BatchNorm1d(24), nn.GELU(),
        nn.Conv1d(24, 24, 3), nn.BatchNorm1d(24), nn.GELU(), nn.Flatten(), nn.Linear(24 * 7, D),
    )  # fmt: skip


def _batches(world, name="eeg"):
    def batch_at(step, rank, n_processes):
        rows = torch.randint(len(world.train_embeds), (BATCH,), generator=torch.Generator().manual_seed(step))
        return world.train[name][rows], world.train_embeds[rows]

    return batch_at


def _loss(module, batch):
    return contrastive(module(batch[0]), batch[1])


def _settings(n_steps, **changes):
    return FitConfig(max_steps=n_steps, checkpoint_every=10**6, **({"lr": 3e-3, "schedule": "onecycle"} | changes))


def _score(network, world):
    return top_1(network, world.test["eeg"], world.test_embeds)


def _merge_config(n_steps):
    return MergeTrainingConfig(
        gated=_settings(n_steps, lr=2e-3, schedule="constant"),
        finetune=_settings(n_steps, lr=2e-3, schedule="cosine"),
        steps_per_epoch=2,
        alpha_growth=0.3,
    )


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_merged_network_is_as_good_as_the_better_teacher(tmp_path):
    """Top-1 of 400 unseen images, 4 repetitions averaged, chance 0.0025."""
    world = make_world(noise=2.5, n_test=400)
    runtime = Runtime(device="cpu", threads=1, seed=1)
    teachers = [_chain(seed) for seed in (0, 1)]
    for number, teacher in enumerate(teachers):
        fit(teacher, _loss, _batches(world), _settings(300), runtime, tmp_path / str(number), progress=False)
    alone = [_score(teacher, world) for teacher in teachers]
    student = gated_merge(*teachers, chain_plan(teachers[0]), gate_speed=20.0)
    result = train_merged(
        student, _loss, _batches(world), _merge_config(200), runtime, tmp_path / "merged", progress=False
    )
    merged = _score(result.network, world)
    print("\nteachers", alone, "merged", merged, "student", _score(student, world), result.open_share)
    assert all(0.45 <= share <= 0.55 for share in result.open_share.values()), result.open_share
    assert _count(result.network) == _count(teachers[0])
    assert merged >= max(alone) - 0.005


def test_a_run_that_is_started_again_ends_with_the_same_network(tmp_path):
    world = make_world(n_train=200, n_test=2)
    runtime = Runtime(device="cpu", threads=1, seed=1)
    networks = []
    for folder in ("whole", "parts", "parts"):
        student = gated_merge(_chain(0), _chain(1), chain_plan(_chain(0)), gate_speed=20.0)
        settings = _settings(4, schedule="constant")
        result = train_merged(
            student, _loss, _batches(world), MergeTrainingConfig(gated=settings, finetune=settings, steps_per_epoch=2),
            runtime, tmp_path / folder, progress=False,
        )  # fmt: skip
        networks.append(result.network.state_dict())
        log = [json.loads(line) for line in (tmp_path / folder / "gated" / "log.jsonl").read_text().splitlines()]
        assert log[-1]["alpha"] == pytest.approx(half_open_weight(1)) and 0 < log[-1]["half_open"] < 1
    for other in networks[1:]:
        assert all(torch.equal(value, other[key]) for key, value in networks[0].items())


@pytest.mark.slow
def test_eeg_and_meg_experts_become_one_trunk_without_loss(tmp_path):
    """Two `BrainModule`, one per modality and from unrelated seeds, of which weight averaging makes nothing."""
    world = make_world(noise=1.0)
    runtime = Runtime(device="cpu", threads=1, seed=1)
    config = BrainModuleConfig(n_virtual=16, fourier_width=32, width=20, n_convs=4, head_width=32, spatial_dropout=0)
    generator = torch.Generator().manual_seed(5)
    places = {name: torch.rand(n, 2, generator=generator) for name, n in CHANNELS.items()}
    experts = {}
    for number, (name, n_channels) in enumerate(CHANNELS.items()):
        torch.manual_seed(number)
        experts[name] = BrainModule(config, SignalShape(n_channels, N_TIMES, 100.0, 1), D)

        def loss(module, batch, name=name):
            return contrastive(module(batch[0], places[name], torch.zeros(BATCH).long()), batch[1])

        fit(experts[name], loss, _batches(world, name), _settings(250), runtime, tmp_path / name, progress=False)

    trunk = outside(experts["eeg"].state_dict(), BRAIN_MODULE_STEM)
    both = [SharedTrunk(experts, trunk, select(one.state_dict(), trunk)) for one in experts.values()]
    plan = [one for name in experts for one in brain_module_plan(experts[name], f"networks.{name}.", own_stem=True)]

    def batch_at(step, rank, n_processes):
        rows = torch.randint(len(world.train_embeds), (BATCH,), generator=torch.Generator().manual_seed(step))
        return {name: world.train[name][rows] for name in CHANNELS}, world.train_embeds[rows]

    def joint_loss(module, batch):
        subject = torch.zeros(BATCH).long()
        return sum(contrastive(module(name, batch[0][name], places[name], subject), batch[1]) for name in CHANNELS)

    student = gated_merge(*both, plan, gate_speed=20.0)
    result = train_merged(
        student, joint_loss, batch_at, _merge_config(220), runtime, tmp_path / "merged", progress=False
    )

    def scores(networks):
        rest = torch.zeros(len(world.test_embeds)).long()
        return {
            name: top_1(networks[name], world.test[name], world.test_embeds, places[name], rest) for name in CHANNELS
        }

    alone, merged = scores(experts), scores(result.network.networks)
    averaged = interpolate(experts["eeg"].state_dict(), experts["meg"].state_dict(), parts=trunk)
    shared = SharedTrunk(experts, trunk, averaged)
    reestimate_statistics(
        shared, [(name, world.train[name], places[name], torch.zeros(2000).long()) for name in CHANNELS]
    )
    plain = scores(shared.networks)
    print("\nexperts", alone, "merged", merged, "averaged weights", plain, result.open_share)
    assert all(0.45 <= share <= 0.55 for share in result.open_share.values()), result.open_share
    assert _count(result.network) == _count(both[0])
    for name in CHANNELS:
        assert alone[name] > 0.4 and merged[name] >= alone[name] - 0.005
        assert plain[name] < 0.4 * alone[name]
