"""Every layout of a data set on disk that can be converted, by name.

A new one is a file in `encoders.datasets` and a line here.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from encoders.datasets.alljoined import Alljoined
from encoders.datasets.alljoined1 import Alljoined1
from encoders.datasets.bids_recordings import BidsRecordings
from encoders.datasets.neurobridge import NeurobridgeEpochs
from encoders.datasets.own_lab import OwnLab
from encoders.datasets.things_eeg1 import ThingsEeg1
from encoders.datasets.things_eeg2_epochs import ThingsEeg2Epochs
from encoders.datasets.things_eeg2_raw import ThingsEeg2Raw
from encoders.datasets.things_eeg2_sessions import ThingsEeg2Sessions
from encoders.datasets.things_meg_epochs import ThingsMegEpochs
from encoders.datasets.things_meg_pickles import ThingsMegPickles
from encoders.datasets.things_meg_raw import ThingsMegRaw
from encoders.datasets.ubp import UbpEpochs
from encoders.epoch_source import EpochSource

SourceConfig = (
    ThingsEeg2Raw
    | ThingsEeg2Epochs
    | ThingsEeg2Sessions
    | UbpEpochs
    | NeurobridgeEpochs
    | ThingsEeg1
    | ThingsMegRaw
    | ThingsMegEpochs
    | ThingsMegPickles
    | Alljoined
    | Alljoined1
    | BidsRecordings
    | OwnLab
)

SOURCES: Mapping[str, type[SourceConfig]] = MappingProxyType(
    {
        "things_eeg2_raw": ThingsEeg2Raw,
        "things_eeg2_epochs": ThingsEeg2Epochs,
        "things_eeg2_sessions": ThingsEeg2Sessions,
        "ubp": UbpEpochs,
        "neurobridge": NeurobridgeEpochs,
        "things_eeg1": ThingsEeg1,
        "things_meg_raw": ThingsMegRaw,
        "things_meg_epochs": ThingsMegEpochs,
        "things_meg_pickles": ThingsMegPickles,
        "alljoined": Alljoined,
        "alljoined1": Alljoined1,
        "bids": BidsRecordings,
        "own_lab": OwnLab,
    }
)


def open_source(name: str, root: Path | str, **options: Any) -> EpochSource:
    """Return a data set on disk by the name of its layout.

    Parameters
    ----------
    name : str
        Key of `SOURCES`.
    root : Path or str
        Its folder.
    **options
        Other fields of the layout's configuration; their docstrings say what there is.

    Raises
    ------
    ValueError
        If the name or an option is unknown.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown layout {name!r} of a data set; known are {list(SOURCES)}")
    return SOURCES[name](root=Path(root), **options).source()
