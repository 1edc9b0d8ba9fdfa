"""What the layers of a trained network see: Gram matrices of their inputs, statistics of their batch norms."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.weight_parts import EVERYTHING, select

Batch = Sequence[Any]


@torch.no_grad()
def collect_gram(model: nn.Module, batches: Iterable[Batch], parts: Sequence[str] = EVERYTHING) -> dict[str, Tensor]:
    """Sum ``X^T X`` of the inputs of every linear layer, for `regmean`.

    Dense layers, ungrouped convolutions (their inputs are patches) and the joint input projection of self-attention
    are seen; the output projection of `torch.nn.MultiheadAttention` is not called as a module and stays out.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; its mode is put back.
    batches : iterable of sequences
        Positional arguments of ``model``.
    parts : sequence of str
        Paths of the layers of interest, see `select`.

    Returns
    -------
    dict of str to Tensor, (n_in, n_in), float64
        Keys are names of weights, as in the state dict.

    Raises
    ------
    ValueError
        If there is no batch.
    """
    grams: dict[str, Tensor] = {}
    wanted = select(model.state_dict(), parts)

    def add(name: str, rows: Tensor) -> None:
        rows = rows.double()
        grams[name] = grams.get(name, 0) + rows.T @ rows

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(module, nn.MultiheadAttention):
                streams = [*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs)][:3]
                if all(stream is streams[0] for stream in streams):
                    add(f"{name}.in_proj_weight", streams[0].flatten(0, -2))
            else:
                add(f"{name}.weight", _input_rows(module, args[0]))

        return before

    handles = []
    for name, module in model.named_modules():
        key = f"{name}.{'in_proj_weight' if isinstance(module, nn.MultiheadAttention) else 'weight'}".lstrip(".")
        if key in wanted and _is_linear(module):
            handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
    n_batches = 0
    try:
        with _modes_kept(model):
            model.eval()
            for batch in batches:
                model(*batch)
                n_batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if n_batches == 0:
        raise ValueError("collect_gram got no batches, expected at least one; an iterator can be read only once")
    return {name.lstrip("."): gram for name, gram in grams.items()}


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Measure the running statistics of all batch norms anew, in place; needed after any merge.

    Parameters
    ----------
    model : nn.Module
        Dropout stays off; modes and momenta are put back.
    batches : iterable of sequences
        Positional arguments of ``model``, preferably of all modalities; every batch counts the same.

    Returns
    -------
    int
        Number of batch norms; 0 when the network has none.

    Raises
    ------
    ValueError
        If there is no batch, or a batch norm saw none of them.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [part for part in norms if part.track_running_stats]
    momenta = [part.momentum for part in norms]
    batches = list(batches)
    if not batches:
        raise ValueError("reestimate_statistics got no batches, expected at least one; pass training data")
    with _modes_kept(model):
        model.eval()
        for part in norms:
            part.reset_running_stats()
            part.momentum = None
            part.train()
        for batch in batches:
            model(*batch)
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    n_idle = sum(int(part.num_batches_tracked or 0) == 0 for part in norms)
    if n_idle:
        raise ValueError(
            f"{n_idle} of {len(norms)} batch norms saw none of {len(batches)} batches, expected data for each; pass "
            "batches of all modalities"
        )
    return len(norms)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear | nn.MultiheadAttention)


def _input_rows(module: nn.Module, data: Tensor) -> Tensor:
    """Write the input of a layer as rows, so that the layer is ``rows @ weight.flatten(1).T``."""
    if isinstance(module, nn.Linear):
        return data.reshape(-1, data.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    flat = isinstance(module, nn.Conv1d)
    kernel, stride, dilation = (
        ((1, *one) if flat else tuple(one)) for one in (module.kernel_size, module.stride, module.dilation)
    )
    before_after = list(module._reversed_padding_repeated_twice)
    padded = functional.pad(data, before_after).unsqueeze(-2) if flat else functional.pad(data, before_after)
    # (b, c * k, l) -> (b * l, c * k)
    patches = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
