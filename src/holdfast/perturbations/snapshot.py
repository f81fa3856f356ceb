"""The weights that perturbations touch, and their bitwise restoration."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.zo.layers import decoder_stack, layer_of


def decoder_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """All matrices of the decoder layers, trainable or frozen, by name; embeddings and head are left out.

    Raises `UserError` for a decoder that would be perturbed in part: see `decoder_stack`; or one that holds packed
    integers, so is quantized already.
    """
    try:
        decoder_stack(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    found = {name: p for name, p in model.named_parameters() if layer_of(name) and p.dim() > 1}
    for name, parameter in found.items():
        if not parameter.is_floating_point():
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"{name}: holds {dtype}, the model is quantized already; load it in half precision or float32"
            )
    return found


def decoder_linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers whose weights `decoder_matrices` are, by the name of their weight.

    Raises `UserError` for a matrix that is of no linear layer.
    """
    matrices = decoder_matrices(model)
    named = ((f"{name}.weight", module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    linears = {name: module for name, module in named if name in matrices}
    if other := sorted(matrices.keys() - linears.keys()):
        raise UserError(f"{type(model).__name__}: {other[0]} is of no linear layer; it cannot be quantized or pruned")
    return linears


def shallow(model: Any) -> Any:
    """A copy with modules of its own and the same tensors, in which modules may be put in the place of others."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


@contextmanager
def restored(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Keep a copy in main memory, and copy it back at the end. Arithmetic would not restore the bits."""
    copies = {name: _in_main_memory(p.detach()) for name, p in tensors.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in tensors.items():
                p.copy_(copies[name], non_blocking=True)


def _in_main_memory(tensor: Tensor) -> Tensor:
    """A copy; of a tensor on a card in pinned memory, which is several times as fast."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
