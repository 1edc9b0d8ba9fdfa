"""Make torchvision importable where its compiled extension does not fit the installed torch.

The public Linux wheels of torchvision are built for CUDA; beside a CPU torch their extension does not load and
``import torchvision`` fails, which takes open_clip, transformers' CLIP classes and diffusers down with it. Declaring
the two operators that torchvision looks up by name is enough. A proper build is left alone.
"""

import importlib
import sys

import torch

_MISSING_OPERATOR = "torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def ensure_torchvision_ops() -> None:
    """Import torchvision, declaring its missing operators if need be; call before open_clip, transformers, diffusers.

    Afterwards transforms and models work; ``nms`` itself raises when called, and torchvision's image codecs are
    absent. Without torchvision installed this does nothing.

    Raises
    ------
    RuntimeError
        If torchvision fails for another reason than the missing operator.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}{_SCHEMA}")  # type: ignore[no-untyped-call]
        _declared.append(library)  # the declaration lives as long as this object
        importlib.import_module("torchvision")
