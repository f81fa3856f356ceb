"""Groups of weights that are perturbed together: each decoder layer, the embeddings, the head."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

Vectors = Literal["gains", "biases"]
LAYER = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.")
SUPPORTED = "supported are decoders of Llama's form: Llama, Qwen2, Qwen3, Mistral, Gemma 2 and 3 (text), Phi-3"


def layer_of(name: str) -> str | None:
    """`layer.3` for a tensor of decoder layer 3; None for a tensor of no layer."""
    match = LAYER.search(name)
    return f"layer.{match[1]}" if match else None


def decoder_stack(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, lowest first.

    Raises `ValueError`, which names the architecture, unless the model has one stack of layers, at `model.layers`, and
    all its weights are vectors and matrices: other stacks (GPT-2, Falcon, OPT), a second one (multimodal models) and
    tensors of experts would be perturbed in part, or not at all.
    """
    name = type(model).__name__
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    stacks = [m for path, m in lists if f".{path}".endswith(".model.layers")]
    if len(stacks) != 1:
        raise ValueError(f"{name}: its decoder layers are not at `model.layers`; {SUPPORTED}")
    inside = {id(m) for m in stacks[0].modules()}
    for path, other in lists:
        if id(other) not in inside and any(p.dim() > 1 for p in other.parameters()):
            raise ValueError(f"{name}: it has layers of its own at `{path}` beside the decoder's; {SUPPORTED}")
    for path, parameter in model.named_parameters():
        if parameter.dim() > 2:
            raise ValueError(f"{name}: {path} has {parameter.dim()} dimensions, as experts have; {SUPPORTED}")
    return stacks[0]


def weight_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Group name -> tensor name -> parameter, for the matrices of a Hugging Face decoder that can be trained: those of
    a floating type that are not frozen.

    Decoder layers are `layer.0` and so on. Gains and biases (1-D) belong to no group: relative noise is
    defined by a matrix's rms. A head that is tied to the embeddings is not listed twice. Raises `ValueError` where
    `decoder_stack` does.
    """
    decoder_stack(model)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not parameter.requires_grad or not parameter.is_floating_point():
            continue
        group = layer_of(name) or ("embeddings" if id(parameter) in embeddings else "head")
        groups.setdefault(group, {})[name] = parameter
    return groups


def vector_groups(model: nn.Module, kind: Vectors) -> dict[str, dict[str, nn.Parameter]]:
    """As `weight_groups`, the vectors of the decoder layers: what normalizations multiply by, or what is added.

    A layer without any is left out.
    """
    decoder_stack(model)
    end = {"gains": ".weight", "biases": ".bias"}[kind]
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = layer_of(name)
        if group and name.endswith(end) and parameter.dim() == 1 and parameter.requires_grad:
            groups.setdefault(group, {})[name] = parameter
    return groups


def decoder_layers(groups: dict[str, dict[str, nn.Parameter]]) -> list[str]:
    """The names of the decoder layers, lowest first."""
    return sorted((g for g in groups if g.startswith("layer.")), key=lambda g: int(g.split(".")[1]))
