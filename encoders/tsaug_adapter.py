"""tsaug's augmenters on epochs, for comparison with `encoders.augment`; needs the extra ``augment``.

tsaug is unmaintained (0.2.1, 2020) and warns once at import that it uses an old name of SciPy's. Reverse, TimeWarp and
Crop move the evoked latency, which is most of what a brain says about a picture, so they have to be allowed by name.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Float = NDArray[np.float32]
Augmenter = Literal[
    "AddNoise", "Convolve", "Crop", "Drift", "Dropout", "Pool", "Quantize", "Resize", "Reverse", "TimeWarp"
]
MOVES_LATENCY = ("Crop", "Reverse", "TimeWarp")


class TsaugStep(BaseModel):
    """One augmenter of tsaug and its settings, as tsaug names them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    augmenter: Augmenter
    p: float = Field(default=0.5, ge=0, le=1, description="share of epochs")
    settings: dict[str, Any] = Field(default={}, description="for example scale of AddNoise; size, in samples, of Crop")

    @model_validator(mode="after")
    def _allowed(self) -> "TsaugStep":
        taken = sorted(set(self.settings) & {"prob", "seed", "repeats", "resize"})
        if taken:
            raise ValueError(f"settings {taken} of {self.augmenter} are decided by the adapter; use p, and a seed")
        if self.augmenter in ("Crop", "Resize") and "size" not in self.settings:
            raise ValueError(f"{self.augmenter} needs settings {{'size': samples}}; the epoch comes back at its length")
        if self.augmenter == "Resize" and self.p not in (0, 1):
            raise ValueError(f"Resize changes all epochs or none, got p={self.p}; set p to 1")
        return self


class TsaugConfig(BaseModel):
    """Steps in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[TsaugStep, ...] = ()
    allow_moved_latency: bool = Field(default=False, description="needed by Crop, Reverse and TimeWarp")

    @model_validator(mode="after")
    def _allowed(self) -> "TsaugConfig":
        moving = [step.augmenter for step in self.steps if step.augmenter in MOVES_LATENCY]
        if bool(moving) != self.allow_moved_latency:
            raise ValueError(
                f"allow_moved_latency is {self.allow_moved_latency}, steps that move it are {moving}; set it to True "
                f"for {', '.join(MOVES_LATENCY)} and to False for all others"
            )
        return self


def tsaug_augment(data: Float, config: TsaugConfig, seed: int) -> Float:
    """Augment epochs with tsaug.

    Parameters
    ----------
    data : ndarray, (n, c, t), float32
        Not changed in place.
    config : TsaugConfig
    seed : int
        Give each batch its own: a seed decides which epochs change and how.

    Returns
    -------
    ndarray, (n, c, t), float32
        Row ``i`` is still epoch ``i``.

    Raises
    ------
    ImportError
        If the extra ``augment`` is not installed.
    """
    try:
        import tsaug
    except ImportError as error:
        message = "tsaug is not installed; install phosphene[augment], or use encoders.augment"
        raise ImportError(message) from error
    n_times = data.shape[2]
    # (n, c, t) -> (n, t, c)
    series = np.ascontiguousarray(np.swapaxes(data, 1, 2))
    known = {
        "AddNoise": tsaug.AddNoise, "Convolve": tsaug.Convolve, "Crop": tsaug.Crop, "Drift": tsaug.Drift,
        "Dropout": tsaug.Dropout, "Pool": tsaug.Pool, "Quantize": tsaug.Quantize, "Resize": tsaug.Resize,
        "Reverse": tsaug.Reverse, "TimeWarp": tsaug.TimeWarp,
    }  # fmt: skip
    seeds = np.random.SeedSequence(seed).generate_state(max(len(config.steps), 1))
    for step, own in zip(config.steps, seeds, strict=False):
        if step.p == 0:
            continue
        kind, settings = known[step.augmenter], {**step.settings, "seed": int(own), "prob": step.p}
        if step.augmenter == "Crop":
            settings["resize"] = n_times
        series = kind(**settings).augment(series)
        if step.augmenter == "Resize":
            series = kind(size=n_times).augment(series)
    if series.shape != (data.shape[0], n_times, data.shape[1]):
        raise ValueError(f"tsaug changed epochs of {data.shape} to {series.shape} (n, t, c); check its settings")
    # (n, t, c) -> (n, c, t), and back from the float64 that Crop and Resize answer in
    return np.ascontiguousarray(np.swapaxes(series, 1, 2), dtype=data.dtype)
