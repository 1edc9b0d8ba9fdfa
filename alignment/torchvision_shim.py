"""Make torchvision importable where its compiled extension does not fit the installed torch.

The public Linux wheels of torchvision are built for CUDA; beside a CPU torch their extension does not load and
``import torchvision`` fails, which takes open_clip, transformers' CLIP classes, diffusers and ``accelerate launch``
down with it. Declaring the two operators that torchvision looks up by name is enough. torch itself calls
`prepare_torchvision` while it is imported: ``pyproject.toml`` names it among the entry points ``torch.backends``.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def prepare_torchvision() -> None:
    """Load torchvision's compiled operators, or declare those that its import needs when they do not load.

    Afterwards ``import torchvision`` works, with transforms and models; where the extension does not fit, ``nms``
    raises when called. Does nothing without torchvision, or when called again.
    """
    found = importlib.util.find_spec("torchvision")
    if _declared or found is None or found.origin is None:
        return
    extensions = sorted(Path(found.origin).parent.glob("_C*.so"))
    try:
        for extension in extensions:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}{_SCHEMA}")  # type: ignore[no-untyped-call]
        _declared.append(library)  # the declaration lives as long as this object
