"""Paths of a search space lead into the config, and only where trials stay comparable."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.search_space import (
    SearchConfig,
    changed_config,
    draw_values,
    search_digest,
    smallest_values,
    trial_config,
    values_of,
)
from alignment.train_config import TrainConfig
from encoders.layers.signal_shape import SignalShape

LR = {"fit.lr": {"name": "float", "low": "1e-4", "high": 1e-1, "log": True}}


def config(**changes: Any) -> TrainConfig:
    base = {
        "targets": "targets.safetensors",
        "modalities": {"eeg": {"layout": "things_eeg2_63", "encoder": "brain_module_demo"}},
        "loss": {
            "name": "sum",
            "terms": [{"weight": 1.0, "loss": {"name": "cosine"}}, {"weight": 0.5, "loss": {"name": "mse"}}],
        },
        "fit": {"max_steps": 100},
    }
    return TrainConfig.model_validate(base | changes)


def test_values_land_at_their_paths_and_nothing_else_changes() -> None:
    plain = config()
    values = {
        "fit.lr": 0.02,
        "modalities.eeg.encoder.width": 24,
        "modalities.eeg.preprocess.tmax": 0.5,
        "loss.terms.1.weight": 0.25,
        "batch_size": 32,
    }
    changed = changed_config(plain, values)
    assert changed.fit.lr == 0.02 and changed.batch_size == 32
    assert changed.modalities["eeg"].network().width == 24
    assert changed.modalities["eeg"].preprocess == {"tmax": 0.5}
    assert changed.loss.terms[1].weight == 0.25  # type: ignore[union-attr]
    back = changed_config(
        changed,
        {"fit.lr": plain.fit.lr, "modalities.eeg.encoder": "brain_module_demo", "modalities.eeg.preprocess": {},
         "loss.terms.1.weight": 0.5, "batch_size": plain.batch_size},
    )  # fmt: skip
    assert back == plain


@pytest.mark.parametrize("path", ["fit.learning_rate", "modalities.meg.encoder", "loss.terms.7.weight", "fit.lr.deep"])
def test_a_path_that_does_not_exist_is_named(path: str) -> None:
    with pytest.raises(ValueError, match="does not exist in the config"):
        changed_config(config(), {path: 1})


def test_a_value_that_the_config_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        changed_config(config(), {"fit.lr": -1.0})


@pytest.mark.parametrize(
    "path", ["data.n_val_concepts", "seed", "targets", "fit.max_steps", "modalities.eeg.layout", "threads"]
)
def test_what_makes_trials_incomparable_cannot_be_searched(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be searched"):
        SearchConfig.model_validate({"space": {path: {"name": "int", "low": 1, "high": 2}}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "float", "low": 1.0, "high": 1.0},
        {"name": "float", "low": 0.0, "high": 1.0, "log": True},
        {"name": "int", "low": 5, "high": 2},
        {"name": "choice", "values": [1]},
        {"name": "float", "low": 0.0, "high": 1.0, "step": 0.1},
    ],
)
def test_empty_ranges_and_unknown_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SearchConfig.model_validate({"space": {"fit.lr": wrong}})


class Low:
    """Draws the lowest value, the last choice."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[-1]


def test_choices_may_be_parts_of_a_config() -> None:
    parts = [{"name": "mse"}, {"name": "cosine"}]
    space = {**LR, "batch_size": {"name": "int", "low": 8, "high": 64}, "loss": {"name": "choice", "values": parts}}
    search = SearchConfig.model_validate({"space": space})
    values = draw_values(search.space, Low())
    assert values == {"fit.lr": 1e-4, "batch_size": 8, "loss": {"name": "cosine"}}
    assert smallest_values(search.space)["loss"] == {"name": "mse"}
    assert values_of(search.space, {"loss": '{"name": "mse"}', "batch_size": 9}) == {"loss": parts[0], "batch_size": 9}


def test_trials_have_their_own_length_and_a_search_its_digest() -> None:
    search = SearchConfig.model_validate({"space": LR, "max_steps": 10, "validate_every": 5})
    short = trial_config(config(), search)
    assert (short.fit.max_steps, short.fit.validate_every, config().fit.max_steps) == (10, 5, 100)
    digest = search_digest(config(), search)
    assert digest == search_digest(config(threads=3), search.model_copy(update={"heartbeat_seconds": 5}))
    assert digest != search_digest(config(seed=1), search)
    assert digest != search_digest(config(), search.model_copy(update={"seed": 1}))


def test_the_example_fits_the_demo_config(project_root: Path) -> None:
    folder = project_root / "configs"
    search = SearchConfig.model_validate(yaml.safe_load((folder / "search.yaml").read_text()))
    demo = TrainConfig.model_validate(yaml.safe_load((folder / "demo.yaml").read_text()))
    changed = changed_config(demo, smallest_values(search.space))
    assert changed.modalities["eeg"].network().n_time_weights == 8
    shape = SignalShape(63, 80, 100.0, 2)
    changed.modalities["eeg"].network().build(shape, 16)
