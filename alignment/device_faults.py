"""Which errors mean that an accelerator's context is spoiled for the rest of the process."""

import torch

# What cuBLAS and cuDNN report comes as a plain RuntimeError.
_MARKS = ("CUDA error", "HIP error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "device-side assert")


def is_device_fault(error: BaseException) -> bool:
    """Tell whether every later call on the device would fail too, so that the process has to be replaced.

    Running out of device memory is none: the context survives it.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in _MARKS)
