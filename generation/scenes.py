"""Procedural 64x64 pictures with known factors and captions: the demo's visual world.

A *concept* is one combination of shape, colour, background and texture of the main object (768 in all); position,
size and an optional smaller second object vary within a concept. Train, validation and test concepts are disjoint, so
"unseen" means an unseen combination and not only an unseen position.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "crescent", "bar")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
BACKGROUNDS = ("night", "dusk", "grid", "field", "desert", "sea")
TEXTURES = ("plain", "striped")
SIZES = ("small", "medium", "large")
COLUMNS = ("far left", "left", "middle", "right", "far right")
ROWS = ("top", "upper", "centre", "lower", "bottom")
N_CONCEPTS = len(SHAPES) * len(COLOURS) * len(BACKGROUNDS) * len(TEXTURES)

Split = Literal["train", "val", "test"]
SPLIT_SIZES: dict[Split, int] = {"train": 500, "val": 68, "test": 200}

_RADIUS_RANGE = (10.0, 18.0)
_SECOND_RADIUS_RANGE = (5.0, 7.0)
_SECOND_PROBABILITY = 0.4
_RGB = np.array(
    [
        [228, 26, 28],
        [255, 127, 14],
        [250, 228, 40],
        [44, 170, 44],
        [40, 220, 230],
        [40, 70, 235],
        [160, 50, 200],
        [250, 250, 250],
    ],
    dtype=np.float32,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SceneFactors:
    """Factors of ``n`` scenes, one array of length ``n`` each.

    ``x``, ``y``, ``radius`` (and the ``second_*`` twins) are in pixels; ``second_shape`` is -1 where a scene has one
    object only. ``background_phase`` in [0, 1) shifts the background's pattern and is not named in captions.
    """

    shape: Ints
    colour: Ints
    background: Ints
    texture: Ints
    x: Floats
    y: Floats
    radius: Floats
    second_shape: Ints
    second_colour: Ints
    second_x: Floats
    second_y: Floats
    second_radius: Floats
    background_phase: Floats

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def concept(self) -> Ints:
        """Concept number of each scene, 0..767."""
        return concept_of(self.shape, self.colour, self.background, self.texture)

    def take(self, indices: npt.ArrayLike) -> SceneFactors:
        """Return the scenes at ``indices``."""
        rows = np.asarray(indices)
        return SceneFactors(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def concept_of(shape: Ints, colour: Ints, background: Ints, texture: Ints) -> Ints:
    """Number the concept of four factor arrays, row-major in the order of the arguments."""
    number = ((shape * len(COLOURS) + colour) * len(BACKGROUNDS) + background) * len(TEXTURES) + texture
    return np.asarray(number, dtype=np.int64)


@cache
def _shuffled_concepts() -> Ints:
    return np.random.default_rng(20_240_601).permutation(N_CONCEPTS).astype(np.int64)


def split_concepts(split: Split) -> Ints:
    """Return the concept numbers of a split; the three splits are disjoint and cover all concepts."""
    if split not in SPLIT_SIZES:
        raise ValueError(f"split must be one of {list(SPLIT_SIZES)}, got {split!r}")
    order = _shuffled_concepts()
    bounds = np.cumsum([0, *SPLIT_SIZES.values()])
    place = list(SPLIT_SIZES).index(split)
    return np.sort(order[bounds[place] : bounds[place + 1]])


def sample_factors(concepts: Ints, rng: np.random.Generator) -> SceneFactors:
    """Draw the free factors of one scene per entry of ``concepts``.

    The second object never overlaps the main one, so the main object's shape is always fully visible.
    """
    concepts = np.asarray(concepts, dtype=np.int64)
    n = len(concepts)
    rest, texture = np.divmod(concepts, len(TEXTURES))
    rest, background = np.divmod(rest, len(BACKGROUNDS))
    shape, colour = np.divmod(rest, len(COLOURS))
    radius = rng.uniform(*_RADIUS_RANGE, n).astype(np.float32)
    x, y = (rng.uniform(radius + 1, IMAGE_SIZE - 2 - radius).astype(np.float32) for _ in range(2))
    second_radius = rng.uniform(*_SECOND_RADIUS_RANGE, n).astype(np.float32)
    low, high = second_radius + 1, IMAGE_SIZE - 2 - second_radius
    wanted = rng.random(n) < _SECOND_PROBABILITY
    placed = np.zeros(n, dtype=bool)
    second_x, second_y = np.zeros((2, n), dtype=np.float32)
    for _ in range(12):
        try_x, try_y = rng.uniform(low, high), rng.uniform(low, high)
        clear = np.hypot(try_x - x, try_y - y) > radius * 1.1 + second_radius + 2
        new = clear & ~placed
        second_x[new], second_y[new] = try_x[new], try_y[new]
        placed |= new
    second_colour = (colour + rng.integers(1, len(COLOURS), n)) % len(COLOURS)
    second_shape = np.where(wanted & placed, rng.integers(0, len(SHAPES), n), -1)
    phase = rng.random(n).astype(np.float32)
    return SceneFactors(
        shape, colour, background, texture, x, y, radius,
        second_shape, second_colour, second_x, second_y, second_radius, phase,
    )  # fmt: skip


def sample_scenes(split: Split, n: int, seed: int) -> SceneFactors:
    """Draw ``n`` scenes of a split; every concept is used before one repeats.

    The same ``(split, n, seed)`` gives the same scenes. With ``split="test"`` and ``n=200`` each concept occurs once.
    """
    rng = np.random.default_rng([seed, list(SPLIT_SIZES).index(split)])
    pool = split_concepts(split)
    rounds = [rng.permutation(pool) for _ in range(-(-n // len(pool)))]
    return sample_factors(np.concatenate(rounds)[:n], rng)


def sample_siblings(split: Split, n: int, seed: int, n_siblings: int = 4) -> tuple[SceneFactors, Ints]:
    """Draw ``n`` scenes in families that differ in shape or texture of the main object and in nothing else.

    Such scenes can only be told apart by what their main object is, so they make the hardest negatives.

    Returns
    -------
    factors : SceneFactors, (n,)
        In shuffled order.
    family : ndarray, (n,), int64
        Number of the family of each scene; up to ``n_siblings`` share one, each of another concept.
    """
    rng = np.random.default_rng([seed, list(SPLIT_SIZES).index(split), n_siblings])
    pool = split_concepts(split)
    per_shape = len(COLOURS) * len(BACKGROUNDS) * len(TEXTURES)
    look = pool % per_shape // len(TEXTURES)
    chosen: list[Ints] = []
    while sum(map(len, chosen)) < n:
        first = rng.choice(len(pool))
        others = rng.permutation(np.flatnonzero((look == look[first]) & (np.arange(len(pool)) != first)))
        chosen.append(pool[np.concatenate([[first], others[: n_siblings - 1]])])
    family = np.repeat(np.arange(len(chosen)), [len(members) for members in chosen])[:n]
    order = rng.permutation(n)
    heads = sample_factors(np.array([members[0] for members in chosen]), rng).take(family)
    own = sample_factors(np.concatenate(chosen)[:n], rng)
    return replace(heads, shape=own.shape, texture=own.texture).take(order), family[order].astype(np.int64)


def _signed_distance(shape: int, u: Floats, v: Floats) -> Floats:
    """Approximate signed distance to the outline in units of the radius; negative inside; ``v`` points down."""
    radial = np.hypot(u, v)
    match SHAPES[shape]:
        case "circle":
            distance = radial - 0.88
        case "square":
            distance = np.maximum(np.abs(u), np.abs(v)) - 0.8
        case "triangle":
            distance = np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.55
        case "cross":
            upright = np.maximum(np.abs(u) - 0.3, np.abs(v) - 0.98)
            distance = np.minimum(upright, np.maximum(np.abs(u) - 0.98, np.abs(v) - 0.3))
        case "ring":
            distance = np.abs(radial - 0.72) - 0.24
        case "star":
            sector = np.abs(np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5)
            from_tip = np.pi / 5 - sector
            inner = 0.4
            edge = inner * np.sin(np.pi / 5) / (np.sin(from_tip) * 1.05 + inner * np.sin(np.pi / 5 - from_tip))
            distance = (radial - 1.05 * edge) * 0.6
        case "crescent":
            distance = np.maximum(radial - 0.95, 0.8 - np.hypot(u - 0.5, v))
        case _:
            distance = np.maximum(np.abs(u) - 1.02, np.abs(v) - 0.34)
    return np.asarray(distance, dtype=np.float32)


def _grid() -> tuple[Floats, Floats]:
    axis = np.arange(IMAGE_SIZE, dtype=np.float32)
    return axis[None, None, :], axis[None, :, None]


def _background(kind: int, phase: Floats) -> Floats:
    """Paint backgrounds of one kind, (n, 64, 64, 3) in 0..255, muted so that objects stand out."""
    px, py = _grid()
    shift = phase[:, None, None]
    ones = np.ones((len(phase), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)

    def blend(first: tuple[int, int, int], second: tuple[int, int, int], weight: Floats) -> Floats:
        weight = (weight * ones)[..., None]
        one, other = (np.asarray(colour, dtype=np.float32) for colour in (first, second))
        return np.asarray(one * (1 - weight) + other * weight, dtype=np.float32)

    match BACKGROUNDS[kind]:
        case "night":
            return blend((18, 20, 36), (34, 38, 62), shift)
        case "dusk":
            return blend((84, 66, 98), (176, 128, 132), py / IMAGE_SIZE * (0.8 + 0.2 * shift))
        case "grid":
            period = 16.0
            cell = np.floor((px + shift * period) / 8) + np.floor((py + shift * period) / 8)
            return blend((92, 92, 92), (150, 150, 150), np.mod(cell, 2).astype(np.float32))
        case "field":
            return blend((66, 92, 52), (108, 134, 84), 0.5 + 0.5 * np.sin((px / 10.0 + shift) * 2 * np.pi))
        case "desert":
            wave_x, wave_y = (np.sin((axis / 12.0 + shift) * 2 * np.pi) for axis in (px, py))
            return blend((186, 158, 116), (128, 100, 66), np.clip(2.5 * wave_x * wave_y - 0.6, 0, 1))
        case _:
            return blend((58, 98, 120), (112, 158, 172), 0.5 + 0.5 * np.sin((py / 9.0 + shift) * 2 * np.pi))


def _paint_object(
    canvas: Floats, shape: Ints, colour: Ints, striped: npt.NDArray[np.bool_], x: Floats, y: Floats, radius: Floats
) -> None:
    px, py = _grid()
    for kind in np.unique(shape[shape >= 0]):
        rows = np.flatnonzero(shape == kind)
        r = radius[rows, None, None]
        u, v = (px - x[rows, None, None]) / r, (py - y[rows, None, None]) / r
        distance = _signed_distance(int(kind), u, v) * r
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        border = np.clip(distance + 1.8, 0, 1)[..., None] * 0.55
        stripe = (np.sin((px - py - x[rows, None, None] + y[rows, None, None]) * (2 * np.pi / 12.0)) > 0.1)[..., None]
        shade = 1 - np.maximum(border, 0.5 * (stripe & striped[rows, None, None, None]))
        paint = _RGB[colour[rows]][:, None, None, :] * shade
        canvas[rows] = canvas[rows] * (1 - cover) + paint * cover


def render(factors: SceneFactors) -> npt.NDArray[np.uint8]:
    """Draw scenes, (n, 64, 64, 3) uint8 RGB, anti-aliased; a pure function of the factors."""
    canvas = np.empty((len(factors), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    for kind in np.unique(factors.background):
        rows = np.flatnonzero(factors.background == kind)
        canvas[rows] = _background(int(kind), factors.background_phase[rows])
    f = factors
    _paint_object(
        canvas, f.second_shape, f.second_colour, np.zeros(len(f), bool), f.second_x, f.second_y, f.second_radius
    )
    _paint_object(canvas, f.shape, f.colour, f.texture == 1, f.x, f.y, f.radius)
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)


def size_class(radius: Floats) -> Ints:
    """Name the size of an object: index into ``SIZES`` by thirds of the radius range."""
    low, high = _RADIUS_RANGE
    sizes: Ints = np.clip((radius - low) / (high - low) * len(SIZES), 0, len(SIZES) - 1).astype(np.int64)
    return sizes


def place_words(x: float, y: float) -> str:
    """Say where a point of the picture lies, on a 5 x 5 grid of words."""
    column = min(int(x / IMAGE_SIZE * len(COLUMNS)), len(COLUMNS) - 1)
    row = min(int(y / IMAGE_SIZE * len(ROWS)), len(ROWS) - 1)
    return f"{ROWS[row]} {COLUMNS[column]}"


def captions(factors: SceneFactors) -> list[str]:
    """Describe each scene in one sentence that names every captioned factor."""
    sentences = []
    sizes = size_class(factors.radius)
    for i in range(len(factors)):
        parts = (SIZES[sizes[i]], TEXTURES[factors.texture[i]], COLOURS[factors.colour[i]], SHAPES[factors.shape[i]])
        sentence = f"a {' '.join(parts)} at the {place_words(factors.x[i], factors.y[i])}"
        if factors.second_shape[i] >= 0:
            second = f"{COLOURS[factors.second_colour[i]]} {SHAPES[factors.second_shape[i]]}"
            sentence += f" and a {second} at the {place_words(factors.second_x[i], factors.second_y[i])}"
        sentences.append(f"{sentence} on a {BACKGROUNDS[factors.background[i]]} background")
    return sentences
