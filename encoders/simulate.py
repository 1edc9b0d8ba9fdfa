"""Simulated EEG and MEG of people who look at images: embeddings in, recordings out, and the ideal observer.

``python -m encoders.simulate --targets FILE`` prints how well ridge and the ideal observer identify images.
Sources read the embedding linearly, so the ideal observer is exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from encoders.brain_noise import BrainNoise, build_noise
from encoders.epochs import SignalEpochs
from encoders.lead_fields import brain_grid, lead_field
from encoders.observer import IdealObserver, build_observer
from encoders.readouts import draw_readouts
from encoders.sensors import SensorLayout, standard_layout
from encoders.sources import draw_person, draw_sources

Array = NDArray[np.float64]

SFREQ = 100.0
TMIN = -0.1
N_TIMES = 80
DEFAULT_LAYOUTS: Mapping[str, str] = {"eeg": "things_eeg2_63", "meg": "ctf275"}
BACKGROUND_MOMENT = 6e-9
ALPHA_MOMENT = 40e-9
N_ALPHA = 12
SENSOR_NOISE_SHARE = 0.3
ALPHA_SEED = 20


class SimulationConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_scale: Mapping[str, float] = {"eeg": 1.0, "meg": 1.0}
    n_subjects: int = Field(default=4, ge=1)
    n_sources: int = Field(default=48, ge=4)
    evoked_moment: float = Field(default=10e-9, gt=0)
    exclusive_share: float = Field(default=0.25, ge=0, lt=0.5)
    whitening: float = Field(default=0.5, ge=0, le=1)
    gain_spread: float = Field(default=0.2, ge=0)
    latency_jitter: float = Field(default=0.010, ge=0)
    source_shift: float = Field(default=0.04, ge=0)
    seed: int = 0


@dataclass(frozen=True)
class Head:
    patterns: Array
    evoked: Array
    noise: BrainNoise
    observer: IdealObserver
    layout: SensorLayout


class BrainSimulator:
    def __init__(self, config, embed_dim, train_embeds=None, train_concepts=None) -> None:
        self.config = config
        self.embed_dim = embed_dim
        self.times = TMIN + np.arange(N_TIMES) / SFREQ
        generator = np.random.default_rng([config.seed, 1])
        self.sources = draw_sources(config.n_sources, config.exclusive_share, generator)
        self.readouts = draw_readouts(
            self.sources.late, embed_dim, generator, whitening=config.whitening,
            train_embeds=train_embeds, train_concepts=train_concepts,
        )
        self.people = [
            draw_person(
                self.sources, self.times, np.random.default_rng([config.seed, 2, subject]),
                gain_spread=config.gain_spread, latency_jitter=config.latency_jitter, source_shift=config.source_shift,
            )
            for subject in range(config.n_subjects)
        ]
        self._heads = {}

    def head(self, modality, layout, subject) -> Head:
        key = (modality, layout, subject)
        if key not in self._heads:
            lay = standard_layout(layout)
            L = lead_field(lay, np.concatenate([p.positions for p in self.people])).reshape(lay.n_channels, len(self.people), -1, 3)
            for i, p in enumerate(self.people):
                vis = self.sources.visible[modality]
                field = np.einsum("cks,ks->ck", L[:, i], p.orientations) * (self.config.evoked_moment * p.gains * vis)
                patterns = np.einsum("ck,kt->kct", field, p.time_courses)
                noise = layout_noise(layout)
                self._heads[modality, layout, i] = Head(patterns, np.tensordot(self.sources.evoked, patterns, 1), noise,
                    build_observer(patterns[vis], noise, self.config.noise_scale[modality]), lay)
        return self._heads[key]

    def record(self, image_embeds, *, modality, layout=None, subject, n_repetitions=1, seed=0, stimulus=()):
        head = self.head(modality, layout or DEFAULT_LAYOUTS[modality], subject)
        a = self.readouts.amplitudes(image_embeds)
        clean = (a @ head.patterns.reshape(len(head.patterns), -1)).reshape(len(a), *head.evoked.shape) + head.evoked
        data = np.repeat(clean.astype(np.float32), n_repetitions, axis=0)
        order = sorted(DEFAULT_LAYOUTS).index(modality)
        head.noise.add_to(data, self.config.noise_scale[modality], np.random.default_rng([self.config.seed, 3, seed, subject, order]))
        return SignalEpochs(data, SFREQ, TMIN, head.layout.ch_names, head.layout.ch_types, head.layout.positions, f"sim-{subject+1:02d}",
            tuple(np.repeat(np.asarray(stimulus), n_repetitions)) if len(stimulus) else ())

    def ideal_observer(self, epochs, candidates, *, modality, layout=None, subject):
        head = self.head(modality, layout or DEFAULT_LAYOUTS[modality], subject)
        a = self.readouts.amplitudes(candidates)[:, self.sources.visible[modality]]
        return head.observer.log_likelihood(epochs.data - head.evoked.astype(np.float32), a, np.asarray(epochs.n_averaged))


@lru_cache(maxsize=4)
def layout_noise(layout_name: str) -> BrainNoise:
    layout = standard_layout(layout_name)
    grid = brain_grid()
    gain = lead_field(layout, grid)
    kinds = np.asarray(layout.ch_types)
    flat = gain.reshape(len(kinds), -1)
    background = BACKGROUND_MOMENT**2 * flat @ flat.T
    power = np.diag(background).copy()
    for kind in set(layout.ch_types):
        power[kinds == kind] = power[kinds == kind].mean()
    background += SENSOR_NOISE_SHARE * np.diag(power)
    generator = np.random.default_rng(ALPHA_SEED)
    posterior = np.flatnonzero((grid[:, 1] < -0.4) & (np.linalg.norm(grid, axis=1) > 0.5))
    chosen = generator.choice(posterior, N_ALPHA, replace=False)
    orientation = generator.standard_normal((N_ALPHA, 3))
    orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
    alpha = ALPHA_MOMENT * np.einsum("cks,ks->ck", gain[:, chosen], orientation)
    return build_noise(background, alpha, N_TIMES, SFREQ)
