"""What readers import with the first file of a format, imported before it.

MNE and the standard library load these when they are first needed. A process that is forked for one upload would load
them with every upload: most of what reading a small file in isolation cost beyond reading it.
"""

import importlib
from contextlib import suppress

_LATE = (
    "_strptime",
    "encodings.ascii",
    "configparser",
    "lxml.etree",
    "mffpy",
    "mne.channels.montage",
    "mne.io.brainvision",
    "mne.io.bti",
    "mne.io.cnt",
    "mne.io.ctf",
    "mne.io.curry",
    "mne.io.edf",
    "mne.io.eeglab",
    "mne.io.egi",
    "mne.io.fiff",
    "mne.io.kit",
)
# for the metadata of FIF epochs, where it is installed: with pyarrow it takes a gigabyte of addresses, more than an
# upload may have
_OPTIONAL = ("pandas", "pyarrow.pandas_compat", "pyarrow.vendored.version")


def import_readers() -> None:
    """Import everything that reading a file of any format of `encoders.formats` needs."""
    for name in _LATE:
        importlib.import_module(name)
    for name in _OPTIONAL:
        with suppress(ImportError):
            importlib.import_module(name)
