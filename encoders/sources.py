"""The dipoles of a simulated brain: where they lie and when they answer.

Early sources (80-200 ms, scattered around the occipital poles) read low-level axes of the embedding, late ones
(200-480 ms, scattered around the temporal lobes) semantic axes. A fixed share is seen by EEG alone and by MEG alone,
so that neither replaces the other: radial dipoles are silent for MEG by physics; the MEG-only ones are left out of
the EEG by decree, as physics gives no focal source that MEG sees and EEG does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EARLY_LATENCY = (0.080, 0.200)
LATE_LATENCY = (0.200, 0.480)
EARLY_CENTRE = ((-0.25, -0.95, 0.15), (0.25, -0.95, 0.15))
LATE_CENTRE = ((-0.8, -0.45, 0.05), (0.8, -0.45, 0.05))
ECCENTRICITY = (0.72, 0.83)
SCATTER = 0.7
LOWEST = -0.35

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sources:
    """What all people share.

    Attributes
    ----------
    positions, orientations : ndarray, (n_sources, 3), float64
        In head radii from the head centre, and unit vectors.
    radial : ndarray, (n_sources,), bool
        Whether the dipole points outwards (and stays so when its position shifts).
    latencies, widths, cycles : ndarray, (n_sources,), float64
        Centre of the response in s, half length of its window in s, and cosine cycles in the window.
    evoked : ndarray, (n_sources,), float64
        Response to the average image, in units of the response's standard deviation over images.
    visible : mapping of str to ndarray, (n_sources,), bool
        Which sources reach each modality.
    """

    positions: Array
    orientations: Array
    radial: NDArray[np.bool_]
    latencies: Array
    widths: Array
    cycles: Array
    evoked: Array
    visible: Mapping[str, NDArray[np.bool_]]

    @property
    def late(self) -> NDArray[np.bool_]:
        """Which sources are late, hence semantic."""
        return self.latencies >= LATE_LATENCY[0]


@dataclass(frozen=True)
class Person:
    """The same sources in one person: positions, orientations, time courses (n_sources, n_times) and gains."""

    positions: Array
    orientations: Array
    time_courses: Array
    gains: Array


def draw_sources(n_sources: int, exclusive_share: float, generator: np.random.Generator) -> Sources:
    """Draw the sources that all people share; half are early, half late.

    Parameters
    ----------
    n_sources : int
        Number of dipoles.
    exclusive_share : float
        Fraction of the dipoles that only EEG sees, and the same fraction that only MEG sees.
    generator : numpy.random.Generator
        Random source.

    Returns
    -------
    Sources
    """
    n_early = n_sources // 2
    early = np.arange(n_sources) < n_early
    latencies = np.concatenate(
        [_stratified(n_early, EARLY_LATENCY, generator), _stratified(n_sources - n_early, LATE_LATENCY, generator)]
    )
    positions = np.concatenate(
        [_place(n_early, EARLY_CENTRE, generator), _place(n_sources - n_early, LATE_CENTRE, generator)]
    )
    # every group of sources takes its share, so both halves of the embedding reach both modalities
    rank = np.empty(n_sources)
    for group in (early, ~early):
        rank[group] = (generator.permutation(int(group.sum())) + 0.5) / group.sum()
    radial = rank < exclusive_share
    magnetic_only = rank > 1.0 - exclusive_share
    outwards = _unit(positions)
    tangential = _unit(_tangential(generator.standard_normal((n_sources, 3)), outwards))
    return Sources(
        positions=positions,
        orientations=np.where(radial[:, None], outwards, tangential),
        radial=radial,
        latencies=latencies,
        widths=0.06 + 0.17 * latencies,
        cycles=generator.uniform(0.8, 1.4, n_sources),
        evoked=generator.uniform(-1.0, 1.0, n_sources),
        visible={"eeg": ~magnetic_only, "meg": ~radial},
    )


def draw_person(
    sources: Sources,
    times: Array,
    generator: np.random.Generator,
    *,
    gain_spread: float,
    latency_jitter: float,
    source_shift: float,
) -> Person:
    """Draw one person's version of the sources.

    Parameters
    ----------
    sources : Sources
        What people share.
    times : ndarray, (n_times,), float64
        Sample times in s relative to onset.
    generator : numpy.random.Generator
        Random source.
    gain_spread : float
        Standard deviation of the logarithm of a source's gain.
    latency_jitter : float
        Standard deviation of a source's latency, in s.
    source_shift : float
        Standard deviation of a source's displacement along each axis, in head radii.

    Returns
    -------
    Person
    """
    n_sources = len(sources.latencies)
    moved = sources.positions + source_shift * generator.standard_normal((n_sources, 3))
    distance = np.linalg.norm(moved, axis=1, keepdims=True)
    positions = moved * np.minimum(1.0, ECCENTRICITY[1] / distance)
    outwards = _unit(positions)
    turned = sources.orientations + 2.0 * source_shift * generator.standard_normal((n_sources, 3))
    orientations = np.where(sources.radial[:, None], outwards, _unit(_tangential(turned, outwards)))
    latencies = sources.latencies + latency_jitter * generator.standard_normal(n_sources)
    return Person(
        positions=positions,
        orientations=orientations,
        time_courses=time_courses(latencies, sources.widths, sources.cycles, times),
        gains=np.exp(gain_spread * generator.standard_normal(n_sources)),
    )


def time_courses(latencies: Array, widths: Array, cycles: Array, times: Array) -> Array:
    """Return windowed cosines, (n_sources, n_times): 1 at the latency, 0 further than the width from it."""
    phase = (times - latencies[:, None]) / widths[:, None]
    window = np.where(np.abs(phase) < 1.0, 0.5 + 0.5 * np.cos(np.pi * phase), 0.0)
    courses: Array = window * np.cos(np.pi * cycles[:, None] * phase)
    return courses


def _stratified(n: int, bounds: tuple[float, float], generator: np.random.Generator) -> Array:
    """Draw one value in each of ``n`` equal parts of the interval, in random order."""
    low, high = bounds
    values: Array = low + (high - low) * (generator.permutation(n) + generator.uniform(0.0, 1.0, n)) / n
    return values


def _place(n: int, centres: tuple[tuple[float, float, float], ...], generator: np.random.Generator) -> Array:
    """Scatter ``n`` positions around directions, left and right in turn."""
    towards = _unit(np.asarray(centres)[np.arange(n) % len(centres)] + SCATTER * generator.standard_normal((n, 3)))
    towards[:, 2] = np.maximum(towards[:, 2], LOWEST)
    placed: Array = _unit(towards) * generator.uniform(*ECCENTRICITY, (n, 1))
    return placed


def _tangential(vectors: Array, outwards: Array) -> Array:
    tangential: Array = vectors - (vectors * outwards).sum(axis=1, keepdims=True) * outwards
    return tangential


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
