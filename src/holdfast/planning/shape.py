"""The sizes of a model, from its configuration: its parameters are counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from holdfast.errors import UserError, first_line
from holdfast.models.checkpoints import check
from holdfast.models.gguf import local
from holdfast.settings.schema import Model

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """All counts are of elements. `layers` holds the matrices of each decoder layer, lowest first; `groups` what the
    probe perturbs one at a time; `vectors` the gains and the biases of all layers; `inputs` and `outputs` the widths
    of all decoder linears together; `norms` the normalizations in a layer; `kv` the keys of one token in one layer;
    `eager`: attention keeps its scores."""

    width: int  # bytes of a weight
    parameters: int
    layers: tuple[int, ...]
    groups: tuple[int, ...]
    vectors: Mapping[str, int]
    largest: int  # matrix
    matrix: int  # the largest of a decoder layer
    inputs: int
    outputs: int
    norms: int
    hidden: int
    intermediate: int
    heads: int
    kv: int
    vocabulary: int
    eager: bool

    @property
    def matrices(self) -> int:
        """Of all decoder layers."""
        return sum(self.layers)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return self.width * self.parameters

    def chosen(self, count: int) -> int:
        """Elements in the matrices of that many layers, the largest ones."""
        return sum(sorted(self.layers)[-count:])


def shape_of(model: Model, vocabulary: int) -> Shape:
    """The shape of the section `model`; `vocabulary` is that of a model made in the run.

    Raises `UserError` where neither its folder, its YAML nor the Hub's cache on this machine has the configuration,
    and for an architecture that is not supported.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from holdfast.zo import decoder_layers, vector_groups, weight_groups
    from holdfast.zo.layers import Vectors

    config = config_of(model, vocabulary)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    try:
        config, groups = empty.config, weight_groups(empty)
    except ValueError as error:
        raise UserError(f"model={model.name}: {error}") from None
    layers = [groups[layer] for layer in decoder_layers(groups)]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    norms = [name for name, p in empty.named_parameters() if ".layers.0." in name and name.endswith("norm.weight")]
    return Shape(
        width=WIDTHS[dtype_of(model, vocabulary)],
        parameters=sum(p.numel() for p in empty.parameters()),
        layers=tuple(sum(p.numel() for p in layer.values()) for layer in layers),
        groups=tuple(sum(p.numel() for p in group.values()) for group in groups.values()),
        vectors={kind: _elements(vector_groups(empty, kind)) for kind in get_args(Vectors)},
        largest=max(p.numel() for group in groups.values() for p in group.values()),
        matrix=max(p.numel() for layer in layers for p in layer.values()),
        inputs=sum(p.shape[1] for layer in layers for p in layer.values()),
        outputs=sum(p.shape[0] for layer in layers for p in layer.values()),
        norms=len(norms),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv=config.num_key_value_heads * head,
        vocabulary=config.vocab_size,
        eager=config._attn_implementation == "eager",
    )


def _elements(groups: dict[str, dict[str, Any]]) -> int:
    return sum(p.numel() for group in groups.values() for p in group.values())


def dtype_of(model: Model, vocabulary: int) -> str:
    """The type of the weights as they are loaded."""
    if model.dtype != "auto":
        return str(model.dtype)
    return str(config_of(model, vocabulary).dtype or "float32").removeprefix("torch.")


def config_of(model: Model, vocabulary: int) -> Any:
    """What transformers makes the model of. Raises `UserError` as `shape_of` does."""
    from transformers import AutoConfig

    path = local(model.source)
    if path is None:
        s = model.shape
        assert s is not None
        return AutoConfig.for_model(
            "llama",
            hidden_size=s.hidden_size,
            intermediate_size=s.intermediate_size,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            vocab_size=vocabulary,
        )
    if model.architecture and not Path(path).is_dir():
        given = dict(model.architecture)
        kind = given.pop("model_type", None)
        try:
            return AutoConfig.for_model(kind, **given)
        except (ValueError, TypeError, KeyError) as error:
            told = f"transformers makes no model of it ({first_line(error)})"
            raise UserError(f"model.architecture: {told}") from None
    if Path(path).is_dir():
        check(path, Path(path))
    try:
        return AutoConfig.from_pretrained(
            path, revision=model.revision, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model={model.name}: no configuration of {path} is on this machine ({first_line(error)}); give its sizes "
            "as model.architecture, or a folder with a config.json as model.path"
        ) from None
