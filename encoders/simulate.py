"""Simulated EEG and MEG of people who look at images: embeddings in, recordings out, and the ideal observer.

Dipoles in a spherical head read the embedding linearly (`readouts`, `sources`), MNE's lead fields carry them to the
sensors, and 1/f and alpha noise is added (`brain_noise`). All is linear and Gaussian, so the ideal observer is exact.
``python -m encoders.difficulty --targets FILE`` prints how hard the task is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from encoders.brain_noise import BrainNoise, layout_noise
from encoders.epochs import SignalEpochs
from encoders.lead_fields import lead_field
from encoders.modality import modality_of
from encoders.observer import IdealObserver, build_observer, posterior_mean
from encoders.readouts import draw_readouts
from encoders.sensors import SensorLayout, standard_layout
from encoders.sources import draw_person, draw_sources

Array = NDArray[np.float64]

SFREQ = 100.0
TMIN = -0.1
N_TIMES = 80
DEFAULT_LAYOUTS: Mapping[str, str] = {"eeg": "things_eeg2_63", "meg": "ctf275"}


class SimulationConfig(BaseModel):
    """Settings of a simulated laboratory.

    Attributes
    ----------
    noise_scale
        Per modality, multiple of the noise at scale 1 (about 12 uV; 400 fT on CTF sensors); 0 is noise-free. Set
        once and not moved to make a goal: `encoders.difficulty` has the figures.
    n_subjects, n_sources
        People, and dipoles in each.
    n_axes
        Principal axes of the embedding that the sources read together.
    evoked_moment
        Typical dipole moment in A m for a one-standard-deviation image.
    exclusive_share
        Fraction of the dipoles that only EEG sees, and the same fraction that only MEG sees.
    gain_spread, latency_jitter, source_shift
        How people differ: standard deviation of log gain, of latency in s, of position in head radii.
    seed
        Decides sources, read-outs and people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_scale: Mapping[str, Annotated[float, Field(ge=0)]] = {"eeg": 1.07, "meg": 2.4}
    n_subjects: int = Field(default=4, ge=1)
    n_sources: int = Field(default=64, ge=4)
    n_axes: int = Field(default=20, ge=2)
    evoked_moment: float = Field(default=10e-9, gt=0)
    exclusive_share: float = Field(default=0.25, ge=0, lt=0.5)
    gain_spread: float = Field(default=0.2, ge=0)
    latency_jitter: float = Field(default=0.010, ge=0)
    source_shift: float = Field(default=0.04, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("noise_scale")
    @classmethod
    def _check_modalities(cls, noise_scale: Mapping[str, float]) -> Mapping[str, float]:
        unknown = sorted(set(noise_scale) - set(DEFAULT_LAYOUTS))
        if unknown:
            raise ValueError(f"noise_scale names {unknown}; allowed are {sorted(DEFAULT_LAYOUTS)}")
        return noise_scale


@dataclass(frozen=True)
class Head:
    """One person under one sensor layout, SI units.

    ``patterns`` (n_sources, n_channels, n_times) is the response to unit amplitude of each source, 0 for sources that
    the modality does not see; ``evoked`` (n_channels, n_times) the response to the average image; noise has scale 1.
    """

    layout: SensorLayout
    patterns: Array
    evoked: Array
    noise: BrainNoise
    observer: IdealObserver


class BrainSimulator:
    """Simulated people.

    Parameters
    ----------
    config : SimulationConfig
        Settings.
    embed_dim : int
        Width of the image embeddings.
    train_embeds : ndarray, (n, embed_dim), float32, optional
        Training embeddings, raw or normalised: they fix the axes that sources read, so give the same ones whenever
        the same brains are wanted. Without them axes are random and embeddings count as uniform on the sphere.
    train_concepts : ndarray, (n,), int64, optional
        Their concepts, to tell semantic from low-level axes.
    """

    def __init__(
        self,
        config: SimulationConfig,
        embed_dim: int,
        train_embeds: NDArray[np.float32] | None = None,
        train_concepts: NDArray[np.int64] | None = None,
    ) -> None:
        generator = np.random.default_rng([config.seed, 1])
        self.config = config
        self.sources = draw_sources(config.n_sources, config.exclusive_share, generator)
        self.readouts = draw_readouts(
            self.sources.late, embed_dim, config.n_axes, generator, train_embeds, train_concepts
        )
        times = TMIN + np.arange(N_TIMES) / SFREQ
        self.people = tuple(
            draw_person(
                self.sources,
                times,
                np.random.default_rng([config.seed, 2, subject]),
                gain_spread=config.gain_spread,
                latency_jitter=config.latency_jitter,
                source_shift=config.source_shift,
            )
            for subject in range(config.n_subjects)
        )
        self._fields: dict[str, Array] = {}
        self._heads: dict[tuple[str, int], Head] = {}

    def record(
        self,
        image_embeds: NDArray[np.float32],
        *,
        modality: str,
        layout: str = "",
        subject: int,
        n_repetitions: int = 1,
        seed: int = 0,
        stimulus: Sequence[str] = (),
    ) -> SignalEpochs:
        """Show images to one person and record.

        Parameters
        ----------
        image_embeds : ndarray, (n, embed_dim), float32
            Embeddings; only their direction matters.
        modality : str
            A key of `DEFAULT_LAYOUTS`.
        layout : str
            Sensor layout of that modality; empty for the default one.
        subject : int
            Person, from 0.
        n_repetitions : int
            Presentations of each image; they differ in noise only.
        seed : int
            Decides the noise, which is independent between modalities, people and layouts' modalities.
        stimulus : sequence of str
            One id per image.

        Returns
        -------
        SignalEpochs
            (n * n_repetitions) epochs of 0.8 s from -0.1 s at 100 Hz, image by image. EEG is not referenced.

        Raises
        ------
        ValueError
            If the modality, layout, subject or number of ids is wrong.
        """
        if stimulus and len(stimulus) != len(image_embeds):
            raise ValueError(f"got {len(stimulus)} stimulus ids for {len(image_embeds)} images; give one per image")
        head = self.head(modality, layout, subject)
        flat = self.readouts.amplitudes(image_embeds) @ head.patterns.reshape(len(head.patterns), -1)
        clean = flat.reshape(-1, *head.evoked.shape) + head.evoked
        data = np.repeat(clean.astype(np.float32), n_repetitions, axis=0)
        draw = np.random.default_rng([self.config.seed, 3, seed, subject, list(DEFAULT_LAYOUTS).index(modality)])
        head.noise.add_to(data, self.config.noise_scale[modality], draw)
        return SignalEpochs(
            data=data,
            sfreq=SFREQ,
            tmin=TMIN,
            ch_names=head.layout.ch_names,
            ch_types=head.layout.ch_types,
            positions=head.layout.positions,
            subject=f"sim-{subject + 1:02d}",
            stimulus=tuple(name for name in stimulus for _ in range(n_repetitions)),
        )

    def ideal_observer(
        self,
        epochs: SignalEpochs,
        candidates: NDArray[np.float32],
        *,
        modality: str,
        layout: str = "",
        subject: int,
    ) -> NDArray[np.float64]:
        """Score candidate images by their exact log-likelihood; no decoder identifies better on average.

        Parameters
        ----------
        epochs : SignalEpochs
            What `record` returned for this modality, layout and person, or averages of it.
        candidates : ndarray, (n_candidates, embed_dim), float32
            Embeddings of the images that may have been shown.
        modality, layout, subject
            As in `record`.

        Returns
        -------
        ndarray, (n_epochs, n_candidates), float64
            Nats, up to a constant per epoch; add those of several recordings to fuse them.
        """
        head = self.head(modality, layout, subject)
        data = epochs.data - head.evoked.astype(np.float32)
        counts = np.asarray(epochs.n_averaged, dtype=np.int64)
        return head.observer.log_likelihood(data, self.readouts.amplitudes(candidates), counts)

    def ideal_embeds(
        self, recordings: Mapping[str, SignalEpochs], *, layouts: Mapping[str, str] = DEFAULT_LAYOUTS, subject: int
    ) -> NDArray[np.float64]:
        """Return the posterior mean of the normalised embedding, fused over the recordings of the same stimuli.

        The least-squares estimate, with all known and a Gaussian prior of the training moments. Ranked by cosine it
        identifies somewhat worse than `ideal_observer`, as one embedding says less than a likelihood per candidate.

        Parameters
        ----------
        recordings : mapping of str to SignalEpochs
            Per modality; all epochs of one recording average equally many presentations.
        layouts : mapping of str to str
            Layout of each modality.
        subject : int
            Person.

        Returns
        -------
        ndarray, (n_epochs, embed_dim), float64
            The training mean is included.
        """
        seen, design, variance = [], [], []
        for modality, epochs in recordings.items():
            if len(set(epochs.n_averaged)) != 1:
                raise ValueError(f"epochs average {sorted(set(epochs.n_averaged))} presentations; select equal ones")
            head = self.head(modality, layouts[modality], subject)
            seen.append(head.observer.project(epochs.data - head.evoked.astype(np.float32)))
            design.append(self.readouts.weights.T @ head.observer.responses)
            scale = max(self.config.noise_scale[modality], 1e-6)
            variance.append(np.full(design[-1].shape[1], scale**2 / epochs.n_averaged[0]))
        covariance = self.readouts.embed_covariance
        mean = posterior_mean(np.hstack(seen), np.hstack(design), covariance, np.hstack(variance))
        return mean + self.readouts.embed_mean

    def head(self, modality: str, layout: str, subject: int) -> Head:
        """Return one person under one layout; computed on first use."""
        if modality not in self.config.noise_scale:
            raise ValueError(f"unknown modality {modality!r}; allowed are {sorted(self.config.noise_scale)}")
        if not 0 <= subject < len(self.people):
            raise ValueError(f"subject {subject} does not exist; give 0 to {len(self.people) - 1}")
        layout = layout or DEFAULT_LAYOUTS[modality]
        sensors = standard_layout(layout)
        if modality_of(sensors.ch_types).name != modality:
            raise ValueError(f"layout {layout!r} does not record {modality}; try {DEFAULT_LAYOUTS[modality]!r}")
        if (layout, subject) not in self._heads:
            gains = self.config.evoked_moment * self._strengths * self.people[subject].gains
            patterns = self._unit_patterns(modality, layout, subject) * gains[:, None, None]
            noise = layout_noise(layout, N_TIMES, SFREQ)
            observer = build_observer(patterns, noise, self.config.noise_scale[modality])
            evoked = np.tensordot(self.sources.evoked, patterns, axes=1)
            self._heads[layout, subject] = Head(sensors, patterns, evoked, noise, observer)
        return self._heads[layout, subject]

    @cached_property
    def _strengths(self) -> Array:
        """Return relative moments, about 1: a source that the sensors see badly is stronger, so that all tell alike."""
        seen = np.zeros((len(DEFAULT_LAYOUTS), self.config.n_sources))
        for row, (modality, layout) in enumerate(DEFAULT_LAYOUTS.items()):
            noise = layout_noise(layout, N_TIMES, SFREQ)
            for subject in range(len(self.people)):
                white = noise.whiten(self._unit_patterns(modality, layout, subject))
                seen[row] += np.sqrt((white**2).sum(axis=(1, 2)))
            seen[row] /= seen[row][self.sources.visible[modality]].mean()
        strengths: Array = np.count_nonzero(seen, axis=0) / seen.sum(axis=0)
        return strengths

    def _unit_patterns(self, modality: str, layout: str, subject: int) -> Array:
        """Return the response to one ampere metre of each source, (n_sources, n_channels, n_times)."""
        if layout not in self._fields:
            positions = np.concatenate([person.positions for person in self.people])
            field = lead_field(standard_layout(layout), positions)
            self._fields[layout] = field.reshape(len(field), len(self.people), -1, 3)
        person = self.people[subject]
        topographies = np.einsum("cka,ka->kc", self._fields[layout][:, subject], person.orientations)
        topographies *= self.sources.visible[modality][:, None]
        patterns: Array = topographies[:, :, None] * person.time_courses[:, None, :]
        return patterns
