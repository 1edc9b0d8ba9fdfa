"""Where device, dtype, seed and process group are decided, on top of Accelerate.

Random numbers are a function of (seed, step, rank) instead of a state that has to be stored, so a resumed run
draws exactly what the uninterrupted run would have drawn.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

Precision = Literal["launcher", "fast", "no", "bf16"]
STORED_SIGNAL = np.float16
"""How preprocessed signals (within +-20) are kept in memory; they are computed with as float32."""


STORED_WEIGHTS = torch.float16
"""How finished weights are written; they are loaded and computed with as float32."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 inside an autocast region, as losses and metrics do."""
    with torch.autocast(device.type, enabled=False):
        yield


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class _GatherWithGrad(torch.autograd.Function):
    """All-gather along dim 0 whose backward sums the gradients of all processes (torch's own helper is deprecated)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        ctx.n_rows = tensor.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].contiguous().clone()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.n_rows
        return grad[first : first + ctx.n_rows]


class Runtime:
    """Device, dtype, seed and processes of one run.

    Parameters
    ----------
    device : "auto" or "cpu"
        "auto" takes the accelerator of this process when there is one.
    mixed_precision : "launcher", "fast", "no" or "bf16"
        "launcher" follows ``accelerate launch --mixed_precision``; "fast" is "bf16" where the processor has
        instructions for it and "no" elsewhere. float16 is refused: the loop has no loss scaler.
    threads : int
        CPU threads of torch; 0 leaves torch's setting alone.
    seed : int
        Root of every random number that the run draws.
    """

    def __init__(
        self, *, device: Literal["auto", "cpu"] = "auto", mixed_precision: Precision = "launcher", threads: int = 0,
        seed: int = 0,
    ) -> None:
        use_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.accelerator = Accelerator(
            cpu=use_cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        chosen = self.accelerator.mixed_precision if mixed_precision == "launcher" else mixed_precision
        if chosen == "fast":
            chosen = "bf16" if _has_bfloat16(self.accelerator.device) else "no"
        if chosen not in ("no", "bf16"):
            raise ValueError(f"mixed_precision is {chosen!r}, expected 'no' or 'bf16'; launch with one of these")
        if threads > 0:
            torch.set_num_threads(threads)
        self.mixed_precision = chosen
        self.seed = seed

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Compute type inside ``autocast``; weights, losses and results stay float32."""
        return torch.bfloat16 if self.mixed_precision == "bf16" else torch.float32

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def fused_optimizer(self) -> bool:
        """Whether torch's fused AdamW kernel exists on this device."""
        return self.device.type in ("cuda", "cpu")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision == "bf16"):
            yield

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and, with several processes, average its gradients over them."""
        if self.world > 1 and self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        if not any(p.requires_grad for p in module.parameters()):
            return module.to(self.device)
        prepared: nn.Module = self.accelerator.prepare(module)
        return prepared

    def unwrap(self, module: nn.Module) -> nn.Module:
        inner: nn.Module = self.accelerator.unwrap_model(module)
        return inner

    def to_device(self, batch: Any) -> Any:
        """Move every tensor of a (nested) batch to the device; other values pass through."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, Mapping):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch)(self.to_device(value) for value in batch)
        return batch

    def gather_with_grad(self, tensor: Tensor) -> Tensor:
        """Stack the rows of all processes, rank by rank, with gradients flowing back to each owner.

        Parameters
        ----------
        tensor : Tensor, (n, ...)
            The same shape on every process.

        Returns
        -------
        Tensor, (world * n, ...)
            ``tensor`` itself when there is one process.
        """
        if self.world == 1:
            return tensor
        gathered: Tensor = _GatherWithGrad.apply(tensor)  # type: ignore[no-untyped-call]
        return gathered

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Tell for each flag whether any process raised it."""
        if self.world == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group; needed once at the end of a program that ran on several processes."""
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()

    def derived_seed(self, *keys: int) -> int:
        """Derive a 63-bit seed from the run's seed and ``keys``."""
        state = np.random.SeedSequence((self.seed, *keys)).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))

    def generator(self, *keys: int) -> torch.Generator:
        """Make a CPU generator that depends on the run's seed and ``keys`` only."""
        return torch.Generator().manual_seed(self.derived_seed(*keys))

    def seed_step(self, step: int) -> None:
        """Set the global generators (dropout, numpy, python) for one step of this process."""
        seed = self.derived_seed(step, self.rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
