"""Errors that spoil a device are told from those that do not."""

import pytest
import torch

from alignment.device_faults import is_device_fault


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"]
)
def test_a_spoiled_context_is_a_device_fault(text: str) -> None:
    assert is_device_fault(RuntimeError(text))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shape mismatch"), ValueError("no signal")]
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_device_fault(error)
