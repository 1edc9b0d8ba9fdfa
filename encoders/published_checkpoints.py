"""Published encoders by the names and shapes of their tensors: which one a file holds, and whether it was claimed.

The translations themselves stand in `encoders.published_designs`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from encoders.published_designs import (
    DESIGNS,
    NICE_CONVOLUTIONS,
    NICE_PROJECTION,
    Design,
    PublishedEncoder,
    Table,
    UnknownCheckpoint,
    ts_conv,
)

__all__ = ["KINDS", "PublishedEncoder", "UnknownCheckpoint", "recognise"]

KINDS = ("atm", "nice", "ubp", "neurobridge")
# What a wrapper puts in front of each name: DataParallel, and the Lightning module of UBP.
_WRAPPERS = ("module.", "brain.")
_PROJECTORS = {
    "linear": ("linear.weight", "linear.bias"),
    "mlp": ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
}


def recognise(kind: str, arrays: Mapping[str, NDArray[Any]], *, n_times: int | None = None) -> PublishedEncoder:
    """Translate the tensors of a checkpoint.

    Parameters
    ----------
    kind : str
        What the user says it is: "atm", "nice", "ubp" or "neurobridge".
    arrays : mapping of str to ndarray
        All tensors of all files, names as `encoders.foreign_weights` gives them.
    n_times : int, optional
        Samples per epoch, for files that do not store them and whose sizes leave a choice.

    Raises
    ------
    UnknownCheckpoint
        If the tensors are those of another kind, or of none.
    """
    if kind not in KINDS:
        raise UnknownCheckpoint(f"kind {kind!r} is not known, expected one of {list(KINDS)}")
    tables = _tables(arrays)
    found = {design.name: (design, path) for path, table in tables.items() for design in DESIGNS if design.fits(table)}
    wanted = [name for name, (design, _) in found.items() if kind in design.kinds]
    if not wanted:
        raise UnknownCheckpoint(_mismatch(kind, list(found.values()), tables))
    if kind == "nice":
        return _nice(tables, found, n_times)
    if len(wanted) > 1:
        raise UnknownCheckpoint(f"the file holds {len(wanted)} encoders ({wanted}), expected one; give one file")
    design, path = found[wanted[0]]
    encoder = design.translate(tables[path], n_times)
    brain, image = (tables.get(_sibling(path, name), {}) for name in ("eeg_projector", "img_projector"))
    return _with_projectors(encoder, brain, image)


def _nice(tables: dict[str, Table], found: dict[str, tuple[Design, str]], n_times: int | None) -> PublishedEncoder:
    """Join the two files of NICE."""
    for name, file in ((NICE_CONVOLUTIONS, "Enc_eeg_cls.pth"), (NICE_PROJECTION, "Proj_eeg_cls.pth")):
        if name not in found:
            raise UnknownCheckpoint(f"NICE is two files and the one called <index>{file} is missing; give both")
    convolutions, projection = (tables[found[name][1]] for name in (NICE_CONVOLUTIONS, NICE_PROJECTION))
    joined = {**convolutions, **{f"projection.{name}": value for name, value in projection.items()}}
    head = ("projection.0", "projection.1.fn.1", "projection.2")
    return ts_conv("NICE", "0.tsconv", "0.projection.0", head, "position")(joined, n_times)


def _with_projectors(encoder: PublishedEncoder, brain: Table, image: Table) -> PublishedEncoder:
    """Add NeuroBridge's projectors: nothing, ``linear``, or ``mlp.0`` and ``mlp.2`` with a ReLU between them."""
    for name, table in (("eeg_projector", brain), ("img_projector", image)):
        if set(table) not in (set(), *(set(names) for names in _PROJECTORS.values())):
            raise UnknownCheckpoint(f"{name} holds {sorted(table)[:5]}, expected one of {list(_PROJECTORS.values())}")
    width = next((value.shape[1] for value in brain.values() if value.ndim == 2), encoder.embed_dim)
    if width != encoder.embed_dim:
        raise UnknownCheckpoint(f"eeg_projector takes {width} numbers, but the encoder gives {encoder.embed_dim}")
    return replace(encoder, brain_projector=brain, image_projector=image)


def _tables(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Table]:
    """Group tensors by the dictionary they stood in, and take away what wrappers put in front of their names."""
    tables: dict[str, Table] = {}
    for name, value in arrays.items():
        path, _, own = name.rpartition("/")
        tables.setdefault(path, {})[own] = value
    for path, table in tables.items():
        for wrapper in _WRAPPERS:
            if any(name.startswith(wrapper) for name in table):
                table = {n.removeprefix(wrapper): value for n, value in table.items() if n.startswith(wrapper)}
        tables[path] = table
    return tables


def _sibling(path: str, name: str) -> str:
    """Return the path of NeuroBridge's ``<name>_state_dict`` beside the encoder's ``model_state_dict``."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}_state_dict"


def _mismatch(kind: str, found: list[tuple[Design, str]], tables: dict[str, Table]) -> str:
    if found:
        seen = " and ".join(f"{design.name} ({len(tables[path])} tensors)" for design, path in found)
        advice = sorted({name for design, _ in found for name in design.kinds})
        return f"the file was said to be {kind}, but holds {seen}; import it as {' or '.join(advice)}"
    names = [name for table in tables.values() for name in table]
    return (
        f"the file was said to be {kind}, but its {len(names)} tensors are of no published encoder known here "
        f"(first names: {sorted(names)[:5]}); known are {[design.name for design in DESIGNS]}"
    )
