"""Groups of weights that are perturbed together: each decoder layer, the embeddings, the head."""

from __future__ import annotations

import re

from torch import nn

LAYER = re.compile(r"\.layers\.(\d+)\.")


def layer_of(name: str) -> str | None:
    """`layer.3` for a tensor of decoder layer 3; None for one of none."""
    match = LAYER.search(name)
    return f"layer.{match[1]}" if match else None


def weight_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Group name -> tensor name -> parameter, for all matrices of a Hugging Face decoder.

    Decoder layers are `layer.0` and so on. Gains and biases (1-D) belong to no group: relative noise is
    defined by a matrix's rms. A head that is tied to the embeddings is not listed twice.
    """
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        group = layer_of(name) or ("embeddings" if id(parameter) in embeddings else "head")
        groups.setdefault(group, {})[name] = parameter
    return groups


def decoder_layers(groups: dict[str, dict[str, nn.Parameter]]) -> list[str]:
    """The names of the decoder layers, lowest first."""
    return sorted((g for g in groups if g.startswith("layer.")), key=lambda g: int(g.split(".")[1]))
