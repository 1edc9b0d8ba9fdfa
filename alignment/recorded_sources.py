"""Stores and targets that a config of recorded data names, opened; and their preparation for training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignment.prepared_epochs import prepare_epochs
from alignment.recorded_data import RecordedDataConfig, RecordedSplits, data_digest, split_rows
from alignment.target_table import TargetTable, read_target_table
from alignment.train_config import ModalityConfig, TrainConfig
from encoders.modality import MODALITIES
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import SensorLayout, standard_layout
from encoders.store import EpochStore


@dataclass(frozen=True)
class RecordedSources:
    """What a config of recorded data names, opened, and the digest of the prepared epochs that belong to it."""

    stores: Mapping[str, EpochStore]
    targets: TargetTable
    preprocessors: Mapping[str, Preprocessor]
    digest: str


def open_sources(config: TrainConfig) -> RecordedSources:
    """Open stores and targets of recorded data.

    Raises
    ------
    ValueError
        If the config is of a simulated study.
    """
    if not isinstance(config.data, RecordedDataConfig):
        raise ValueError("the config's data is simulated, expected recorded; set data.name to 'recorded'")
    stores = {name: EpochStore.open(config.data.stores[name]) for name in config.modalities}
    targets = read_target_table(config.targets)
    preprocessors = {
        name: Preprocessor(default_preprocess(name, **one.preprocess), _layout(name, one, stores[name]))
        for name, one in config.modalities.items()
    }
    told = [one.state()[0] for one in preprocessors.values()]
    return RecordedSources(
        stores, targets, preprocessors, data_digest(config.data, stores, targets, json.dumps(told, sort_keys=True))
    )


def _layout(name: str, config: ModalityConfig, store: EpochStore) -> SensorLayout:
    if config.layout != "recorded":
        return standard_layout(config.layout)
    info = store.info
    rows = [i for i, kind in enumerate(info.ch_types) if kind in MODALITIES[name].kinds]
    if config.channels:
        known = {info.ch_names[i]: i for i in rows}
        missing = [one for one in config.channels if one not in known]
        if missing:
            raise ValueError(f"{name}: the store lacks the channels {missing}; it has {sorted(known)}")
        rows = [known[one] for one in config.channels]
    if not rows:
        raise ValueError(
            f"{name}: the store has only channels of types {sorted(set(info.ch_types))}; name its modality"
        )
    names, kinds = (tuple(column[i] for i in rows) for column in (info.ch_names, info.ch_types))
    return SensorLayout("recorded", names, kinds, info.positions[rows])


def prepare(config: TrainConfig, *, n_workers: int = 1, progress: bool = False) -> tuple[Path, RecordedSplits]:
    """Split and preprocess recorded data for training; a stopped run goes on.

    Parameters
    ----------
    config : TrainConfig
        With recorded data.
    n_workers : int
        Processes.
    progress : bool

    Returns
    -------
    folder : Path
        The prepared epochs.
    splits : RecordedSplits

    Raises
    ------
    ValueError
        See `alignment.recorded_data.split_rows`.
    """
    sources = open_sources(config)
    data = config.data
    assert isinstance(data, RecordedDataConfig)
    splits = split_rows(data, sources.stores, sources.targets)
    folder = prepare_epochs(
        data.folder, sources.digest, sources.stores, splits, sources.preprocessors, average_train=data.average_train,
        n_fit_epochs=data.n_fit_epochs, n_workers=n_workers, progress=progress,
    )  # fmt: skip
    return folder, splits
