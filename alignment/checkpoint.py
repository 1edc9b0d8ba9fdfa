"""Crash-safe checkpoints: safetensors and JSON, written aside, checksummed, then renamed into place.

A checkpoint is a folder ``step-00001000`` with ``state.safetensors``, ``meta.json`` and ``manifest.json`` (sha256 of
the other two). A kill at any moment leaves the checkpoint before it intact; a damaged one is passed over by name.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.runtime import sharded_as, whole
from encoders.durable_files import file_sha256, sync, write_atomic

logger = logging.getLogger(__name__)

STATE, META, MANIFEST, LATEST = "state.safetensors", "meta.json", "manifest.json", "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write one checkpoint and remove all but the newest ``keep``.

    Parameters
    ----------
    folder : Path
        Holds one sub-folder per checkpoint; made when missing.
    step : int
        Number of finished steps; writing a step again replaces it.
    tensors : mapping of str to Tensor
        Any device and dtype; floating tensors must be finite.
    meta : mapping
        JSON values.
    keep : int
        How many checkpoints stay.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    FloatingPointError
        If a tensor holds NaN or infinity: such a state is never stored.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise FloatingPointError(f"state at step {step} has non-finite tensors {bad[:5]}; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    # cloned one by one because safetensors refuses tensors that share memory (tied weights)
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, aside / STATE)
    (aside / META).write_text(json.dumps({"step": step, **meta}, indent=1))
    digests = {name: file_sha256(aside / name) for name in (STATE, META)}
    (aside / MANIFEST).write_text(json.dumps(digests, indent=1))
    for name in (STATE, META, MANIFEST):
        sync(aside / name)
    sync(aside)
    if target.exists():
        shutil.rmtree(target)
    os.rename(aside, target)
    sync(folder)
    write_atomic(folder / LATEST, target.name.encode())
    _prune(folder, keep)
    return target


def load_checkpoint(folder: Path, step: int | None = None) -> Checkpoint | None:
    """Read the newest checkpoint in ``folder`` that verifies, or that of one ``step``; None when there is none.

    Raises
    ------
    ValueError
        If there are checkpoints and none of them verifies: starting over would be worse than asking.
    """
    faults = []
    for path in sorted(folder.glob("step-*" if step is None else f"step-{step:08d}"), reverse=True):
        fault = checkpoint_fault(path)
        if fault is None:
            meta = json.loads((path / META).read_text())
            return Checkpoint(int(meta["step"]), load_file(path / STATE), meta, path)
        logger.warning("checkpoint %s is passed over: %s", path.name, fault)
        faults.append(f"{path.name}: {fault}")
    if faults:
        raise ValueError(
            f"no checkpoint in {folder} is sound, expected at least one ({'; '.join(faults)}); restore the folder from "
            "a copy, or delete it to start over"
        )
    return None


def flatten_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Name every tensor of an optimizer's state ``optimizer.<index among parameters>.<key>``, gathered when sharded.

    Settings such as the learning rate are not part of it: the loop derives them from the step.
    """
    return {
        f"optimizer.{index}.{key}": whole(value)
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> None:
    """Put back what `flatten_optimizer` took out; other names in ``tensors`` are ignored."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    place = {id(parameter): index for index, parameter in enumerate(held)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            owner = parameters[int(index)]
            cut = sharded_as(tensor, owner) if tensor.shape == owner.shape else tensor
            state.setdefault(place[id(owner)], {})[key] = cut
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # the fused kernel walks parameter and state in memory order, so their strides must agree
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if value.shape == parameter.shape:
                slots[key] = torch.empty_like(parameter).copy_(value)


def checkpoint_fault(path: Path) -> str | None:
    """Say what is wrong with a checkpoint folder, None when it verifies."""
    try:
        digests = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"unreadable {MANIFEST} ({type(error).__name__})"
    for name in (STATE, META):
        if not (path / name).is_file() or file_sha256(path / name) != digests.get(name):
            return f"{name} does not match its sha256 in {MANIFEST}"
    return None


def _prune(folder: Path, keep: int) -> None:
    for path in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        shutil.rmtree(path)
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)

