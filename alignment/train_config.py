"""The config of a training run, and what a command line may change in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignment.fit import FitConfig
from alignment.loss_choice import LossConfig
from alignment.losses import AlignmentLossConfig
from alignment.recorded_data import RecordedDataConfig
from alignment.study import DataConfig
from alignment.target_map import TargetMapConfig
from encoders.augment import AugmentConfig
from encoders.build import PRESETS, EncoderConfig
from encoders.fusion import FusionConfig
from encoders.late_fusion import LateFusionConfig
from encoders.sensors import LayoutName
from encoders.simulate import SimulationConfig


class ModalityConfig(BaseModel):
    """One modality: sensors, changes to the default preprocessing, and the network (a preset's name or a config).

    The layout ``recorded`` takes the channels of the store as they are, or those of them that ``channels`` names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: LayoutName | Literal["recorded"]
    encoder: str | EncoderConfig
    preprocess: dict[str, Any] = {}
    channels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_channels(self) -> "ModalityConfig":
        if self.channels and self.layout != "recorded":
            raise ValueError(f"channels have no effect with layout {self.layout!r}; leave them out or use 'recorded'")
        return self

    def network(self) -> Any:
        if not isinstance(self.encoder, str):
            return self.encoder
        if self.encoder not in PRESETS:
            raise ValueError(f"encoder preset {self.encoder!r} is unknown, allowed are {sorted(PRESETS)}")
        return PRESETS[self.encoder]


def _simulated(value: Any) -> Any:
    """Fill in the name that configs of the time without recorded data did not have."""
    return {"name": "simulated", **value} if isinstance(value, Mapping) else value


class TrainConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Path = Field(description="of pictures: write_targets for simulated data, phosphene features for recorded")
    modalities: dict[str, ModalityConfig]
    simulation: SimulationConfig = SimulationConfig()
    data: Annotated[
        Annotated[DataConfig | RecordedDataConfig, Field(discriminator="name")], BeforeValidator(_simulated)
    ] = DataConfig()
    fusion: FusionConfig = LateFusionConfig(modality_dropout=0.0)
    loss: LossConfig = AlignmentLossConfig()
    target_map: TargetMapConfig = TargetMapConfig()
    fit: FitConfig
    batch_size: int = Field(default=256, gt=1)
    group_size: int = Field(
        default=0, ge=0, description="epochs of one picture side by side in a batch, one per person; 0: shuffled rows"
    )
    augment: AugmentConfig = AugmentConfig()
    seed: int = 0
    threads: int = Field(default=0, ge=0, description="CPU threads of torch, 0: its default")

    @model_validator(mode="after")
    def _check_data(self) -> "TrainConfig":
        if isinstance(self.data, DataConfig):
            recorded = [name for name, one in self.modalities.items() if one.layout == "recorded"]
            if recorded:
                raise ValueError(f"{recorded}: simulated data has no layout 'recorded'; name one, things_eeg2_63 say")
            return self
        if "simulation" in self.model_fields_set and self.simulation != SimulationConfig():
            raise ValueError("simulation has no effect on recorded data; remove it")
        if set(self.data.stores) != set(self.modalities):
            raise ValueError(
                f"stores of {sorted(self.data.stores)} for the modalities {sorted(self.modalities)}; give one per "
                "modality"
            )
        return self


def read_run_config(run_dir: Path) -> TrainConfig:
    """Read the config that a training left in its folder.

    Raises
    ------
    ValueError
        If there is none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"no {path.name} in {run_dir}, expected the folder of a training; check the path")
    settings = yaml.safe_load(path.read_text())
    if settings.get("data", {}).get("name") == "recorded":
        settings.pop("simulation", None)  # written with its defaults, without effect
    return TrainConfig.model_validate(settings)


def choose(
    settings: Mapping[str, Any],
    *,
    encoder: str | None = None,
    modalities: Sequence[str] = (),
    steps: int | None = None,
    seed: int | None = None,
    targets: Path | None = None,
    subjects: Sequence[str] = (),
    held_out: Sequence[str] = (),
) -> TrainConfig:
    """Change what a command line may change in the settings of a config file.

    Parameters
    ----------
    settings : mapping
        As in the file.
    encoder : str, optional
        Preset of `encoders.build.PRESETS` for every modality.
    modalities : sequence of str
        Which of the file's modalities to use; empty for all.
    steps, seed, targets : optional
        Replace the file's values.
    subjects, held_out : sequence of str
        People of recorded data to train on, and to leave out, in place of the file's.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ValueError
        If a modality is not in the file, or the preset is unknown.
    """
    known = settings["modalities"]
    missing = sorted(set(modalities) - set(known))
    if missing:
        raise ValueError(f"the config has the modalities {sorted(known)}, got {missing}; choose among them")
    chosen = {name: known[name] for name in (modalities or known)}
    if encoder is not None:
        chosen = {name: {**one, "encoder": encoder} for name, one in chosen.items()}
    changed: dict[str, Any] = {**settings, "modalities": chosen}
    stores = settings.get("data", {}).get("stores")
    if stores is not None:
        kept = {name: one for name, one in stores.items() if name in chosen}
        changed["data"] = {**settings["data"], "stores": kept}
    people = {"subjects": tuple(subjects), "held_out_subjects": tuple(held_out)}
    if subjects or held_out:
        if stores is None:
            raise ValueError(f"people {[*subjects, *held_out]} have no effect on simulated data; leave them out")
        changed["data"] = {**changed["data"], **{name: one for name, one in people.items() if one}}
    if steps is not None:
        changed["fit"] = {**settings["fit"], "max_steps": steps}
    changed |= {key: value for key, value in (("seed", seed), ("targets", targets)) if value is not None}
    config = TrainConfig.model_validate(changed)
    for one in config.modalities.values():
        one.network()
    return config
