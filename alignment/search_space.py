"""What a search may change in a `TrainConfig`, and how a drawn set of values becomes a config again.

A setting is named by its dotted path (``modalities.eeg.encoder.width``). What decides the data, the split or the length
of a run cannot be searched: scores of different trials would not be comparable.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.study_subset import SubsetConfig
from alignment.train_config import TrainConfig
from encoders.build import PRESETS

SEARCHABLE = ("fit", "loss", "modalities", "fusion", "batch_size")
FIXED = ("max_steps", "max_seconds", "validate_every", "checkpoint_every", "log_every", "layout")
Scalar = str | int | float | bool | None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FloatRange(_Frozen):
    """A number between ``low`` and ``high``; with ``log``, its logarithm is drawn."""

    name: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "FloatRange":
        _check_range(self.low, self.high, self.log)
        return self


class IntRange(_Frozen):
    """An integer between ``low`` and ``high``, both included."""

    name: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "IntRange":
        _check_range(self.low, self.high, self.log)
        return self


class Choice(_Frozen):
    """One of a list: numbers, words, or whole parts of a config."""

    name: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=2)

    @property
    def labels(self) -> dict[Scalar, Any]:
        """The values by what the database keeps of them: themselves, or their JSON."""
        return {one if isinstance(one, Scalar) else json.dumps(one, sort_keys=True): one for one in self.values}


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="name")]


class SearchConfig(_Frozen):
    """One search.

    Attributes
    ----------
    space
        Dotted path in the config -> what to draw.
    subset
        The part of the training data that trials see.
    pruner
        ``successive_halving`` is asynchronous (no trial waits for another); ``hyperband`` runs several of them.
    reduction_factor
        One of so many trials is let past a rung.
    first_rung
        Steps before the first cut; 0: the first validation.
    max_steps, validate_every
        Of each trial; 0: the config's.
    n_startup
        Trials drawn at random before the sampler (TPE) learns from them.
    seed
        Of the draws.
    heartbeat_seconds
        A process that was silent for three of them is taken for dead, and its trial is tried again.
    """

    space: dict[str, Parameter] = Field(min_length=1)
    subset: SubsetConfig = SubsetConfig()
    pruner: Literal["successive_halving", "hyperband"] = "successive_halving"
    reduction_factor: int = Field(default=3, ge=2)
    first_rung: int = Field(default=0, ge=0)
    max_steps: int = Field(default=0, ge=0)
    validate_every: int = Field(default=0, ge=0)
    n_startup: int = Field(default=10, gt=0)
    seed: int = Field(default=0, ge=0)
    heartbeat_seconds: int = Field(default=20, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        for path in self.space:
            keys = path.split(".")
            if keys[0] not in SEARCHABLE or keys[-1] in FIXED:
                raise ValueError(
                    f"{path!r} cannot be searched, expected a path below {list(SEARCHABLE)} that does not end in one "
                    f"of {list(FIXED)}: trials must share data and length"
                )
        return self


class Suggester(Protocol):
    """What draws values: a trial of Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def draw_values(space: Mapping[str, Parameter], trial: Suggester) -> dict[str, Any]:
    """Draw a value for every path."""
    drawn: dict[str, Scalar] = {}
    for path, one in space.items():
        if isinstance(one, FloatRange):
            drawn[path] = trial.suggest_float(path, one.low, one.high, log=one.log)
        elif isinstance(one, IntRange):
            drawn[path] = trial.suggest_int(path, one.low, one.high, log=one.log)
        else:
            drawn[path] = trial.suggest_categorical(path, list(one.labels))
    return values_of(space, drawn)


def values_of(space: Mapping[str, Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what the database keeps of a trial's values back into the values."""
    labels = {path: one.labels for path, one in space.items() if isinstance(one, Choice)}
    return {path: labels[path][value] if path in labels else value for path, value in drawn.items()}


def smallest_values(space: Mapping[str, Parameter]) -> dict[str, Any]:
    """Give one set of values of the space, to check its paths before anything is trained."""
    return {path: one.values[0] if isinstance(one, Choice) else one.low for path, one in space.items()}


def changed_config(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Put values at their paths.

    An encoder that is named by its preset is spelled out where a path leads into it.

    Raises
    ------
    ValueError
        If a path does not exist in the config, or the config refuses a value.
    """
    settings = config.model_dump(mode="json")
    for path, value in values.items():
        _put(settings, path, value)
    return TrainConfig.model_validate(settings)


def trial_config(config: TrainConfig, search: SearchConfig) -> TrainConfig:
    """Give the config the length of a trial."""
    lengths = {"max_steps": search.max_steps, "validate_every": search.validate_every}
    fit = config.fit.model_copy(update={name: n for name, n in lengths.items() if n})
    return config.model_copy(update={"fit": fit})


def search_digest(config: TrainConfig, search: SearchConfig) -> str:
    """Identify a search: trials of another one must not be mixed in."""
    told = [config.model_dump(mode="json", exclude={"threads"}), search.model_dump(mode="json")]
    told[1].pop("heartbeat_seconds")
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _put(settings: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    inner = settings
    for key in parents:
        child = _child(inner, key, path)
        if key == "encoder" and isinstance(child, str) and child in PRESETS:
            child = inner[key] = PRESETS[child].model_dump(mode="json")
        inner = child
    if not (isinstance(inner, dict) and parents and parents[-1] == "preprocess"):  # holds only what differs
        _child(inner, last, path)
    inner[int(last) if isinstance(inner, list) else last] = value


def _child(inner: Any, key: str, path: str) -> Any:
    if isinstance(inner, dict) and key in inner:
        return inner[key]
    if isinstance(inner, list) and key in map(str, range(len(inner))):
        return inner[int(key)]
    known = list(inner) if isinstance(inner, dict) else f"{inner!r}"
    raise ValueError(f"path {path!r} does not exist in the config: at {key!r} there is {known}; correct the path")


def _check_range(low: float, high: float, log: bool) -> None:
    if not low < high or (log and low <= 0):
        above = " above 0" if log else ""
        raise ValueError(f"range {low} to {high} is empty or not{above}; expected low < high{above}")
