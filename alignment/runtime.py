"""Where device, dtype, seed and process group are decided, on top of Accelerate.

Random numbers are a function of (seed, step, rank) instead of a state that has to be stored, so a resumed run
draws exactly what the uninterrupted run would have drawn.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

Precision = Literal["launcher", "fast", "no", "bf16", "fp16"]
COMPUTE_TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_LOSS_SCALE = 2.0**16
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


def end_program() -> None:
    """End a finished program that ran on several processes, without tearing down what is left of its group.

    gloo's threads live on after `Runtime.close`, and one process in twenty aborts while the interpreter destroys them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):  # spares plain runs the import
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return the rows of a sharded tensor that this process holds, sharing memory; a plain tensor as it is."""
    part: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, on all processes together; a plain tensor is returned as it is."""
    gathered: Tensor = tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return gathered


def sharded_as(value: Tensor, example: Tensor) -> Tensor:
    """Cut a whole tensor, which every process has, like ``example``; returned as it is when that is plain."""
    if not _is_sharded(example):
        return value
    from torch.distributed.tensor import distribute_tensor

    place: Any = example
    cut: Tensor = distribute_tensor(
        value.to(example.device), place.device_mesh, place.placements, src_data_rank=None
    )  # fmt: skip
    return cut


def _each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each_tensor(value, change) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_each_tensor(value, change) for value in batch)
    return batch


def _fsdp_requested() -> bool:
    """Tell whether ``accelerate launch`` asks for FSDP, and refuse what this runtime would not carry out."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    expected = {
        "FSDP_VERSION": ("1", "2"), "FSDP_OFFLOAD_PARAMS": ("false", "false"),
        "FSDP_ACTIVATION_CHECKPOINTING": ("false", "false"), "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "NO_WRAP"),
    }  # fmt: skip
    for name, (absent, wanted) in expected.items():
        got = os.environ.get(name, absent)
        if got.lower() != wanted.lower():
            raise ValueError(f"{name} is {got!r}, expected {wanted!r}; see deploy/accelerate/fsdp.yaml")
    return True


class Runtime:
    """Device, dtype, seed and processes of one run.

    Parameters
    ----------
    device : "auto" or "cpu"
        "auto" takes the accelerator of this process when there is one.
    mixed_precision : "launcher", "fast", "no", "bf16" or "fp16"
        "launcher" follows ``accelerate launch --mixed_precision``; "fast" is "bf16" where the processor has
        instructions for it and "no" elsewhere. With "fp16" the loop scales the loss.
    threads : int
        CPU threads of torch; 0 leaves torch's setting alone.
    seed : int
        Root of every random number that the run draws.
    n_workers : int
        Threads that read batches ahead of the step; 0 reads each when it is wanted. Results do not depend on it.
    """

    def __init__(
        self, *, device: Literal["auto", "cpu"] = "auto", mixed_precision: Precision = "launcher", threads: int = 0,
        seed: int = 0, n_workers: int = 0,
    ) -> None:
        use_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.accelerator = Accelerator(
            cpu=use_cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        chosen = self.accelerator.mixed_precision if mixed_precision == "launcher" else mixed_precision
        if chosen == "fast":
            chosen = "bf16" if _has_bfloat16(self.accelerator.device) else "no"
        if chosen not in COMPUTE_TYPES:
            raise ValueError(f"mixed_precision is {chosen!r}, expected one of {list(COMPUTE_TYPES)}; launch with that")
        if n_workers < 0:
            raise ValueError(f"n_workers is {n_workers}, expected 0 or more; 4 suit one accelerator")
        if threads > 0:
            torch.set_num_threads(threads)
        self.mixed_precision = chosen
        self.seed = seed
        self.n_workers = n_workers
        self.sharded = _fsdp_requested() and self.world > 1

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Compute type inside ``autocast``; weights, losses and results stay float32."""
        return COMPUTE_TYPES[self.mixed_precision]

    @property
    def loss_scale(self) -> float:
        """First factor of the loss before the backward pass: small float16 gradients would become 0."""
        return FIRST_LOSS_SCALE if self.mixed_precision == "fp16" else 1.0

    def summary(self) -> dict[str, Any]:
        """Describe device, dtype and processes for a run's records."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "mixed_precision": self.mixed_precision, "processes": self.world, "sharded": self.sharded,
            "threads": torch.get_num_threads(),
        }  # fmt: skip

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
        enabled = self.mixed_precision != "no"
        with torch.autocast(self.device.type, dtype=self.dtype if enabled else None, enabled=enabled):
            yield

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and, with several processes, average its gradients over them.

        Launched with FSDP, parameters (other than single numbers), gradients and what the optimizer makes of them are
        cut among the processes and are whole only from forward to backward of the module itself.
        """
        if self.world > 1 and self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        if not any(p.requires_grad for p in module.parameters()):
            return module.to(self.device)
        if self.sharded:
            return self._shard(module.to(self.device))
        prepared: nn.Module = self.accelerator.prepare(module)
        return prepared

    def _shard(self, module: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(self.device.type, (self.world,))
        numbers = {p for p in module.parameters() if p.ndim == 0}  # which cannot be cut
        fully_shard(module, mesh=mesh, ignored_params=numbers)  # in place
        return module

    def unwrap(self, module: nn.Module) -> nn.Module:
        inner: nn.Module = self.accelerator.unwrap_model(module)
        return inner

    def full_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather sharded tensors; of plain ones, such as running statistics, everybody gets the first process's."""
        full = {}
        for name, tensor in tensors.items():
            full[name] = whole(tensor.detach())
            if self.sharded and not _is_sharded(tensor):
                full[name] = full[name].clone()
                dist.broadcast(full[name], 0)
        return full

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float, loss_scale: float = 1.0) -> float:
        """Undo the loss scale, then limit the joint length of all gradients; return the length before.

        A length that is not finite leaves non-finite gradients behind.
        """
        if self.sharded:
            for p in parameters:
                if not _is_sharded(p):  # those that FSDP does not average
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                    dist.all_reduce(p.grad.div_(self.world))
        grads = [own_part(p.grad) for p in parameters if p.grad is not None]
        if loss_scale != 1:
            torch._foreach_mul_(grads, 1 / loss_scale)
        if not self.sharded:
            return float(nn.utils.clip_grad_norm_(parameters, limit))
        squares = torch.zeros(2, device=self.device)  # of cut gradients, and of those that all processes hold
        for p in parameters:
            if p.grad is not None:
                squares[0 if _is_sharded(p) else 1] += own_part(p.grad).float().square().sum()
        dist.all_reduce(squares[:1])
        length = squares.sum().sqrt()
        torch._foreach_mul_(grads, (limit / (length + 1e-6)).clamp(max=1.0))  # as torch's clip_grad_norm_
        return float(length)

    def pinned(self, batch: Any) -> Any:
        """Copy a (nested) batch to memory that an accelerator reads by itself; as it is without one."""
        return _each_tensor(batch, Tensor.pin_memory) if self.device.type == "cuda" else batch

    def to_device(self, batch: Any) -> Any:
        """Move every tensor of a (nested) batch to the device; other values pass through."""
        return _each_tensor(batch, lambda tensor: tensor.to(self.device, non_blocking=True))

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
