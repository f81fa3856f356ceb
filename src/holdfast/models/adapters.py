"""Low-rank adapters: trained beside the weights, then merged into them, so that later stages see a plain model."""

from __future__ import annotations

import math
from typing import Any

from holdfast.errors import UserError


def adapter(settings: Any, seed: int) -> Any:
    """PEFT's settings for all linear layers of the decoder, the head left out. Its first weights are drawn from
    torch's generator, which is seeded here."""
    import torch
    from peft import LoraConfig

    torch.manual_seed(seed)
    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    )


def snapshot(model: Any) -> dict[str, Any]:
    """A copy of every tensor, in main memory: what a merge is checked against."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def merge(tuned: Any, base: dict[str, Any], ids: Any) -> None:
    """Merge the adapter of a PEFT model into the model that it wraps, which is a plain one afterwards.

    `base` holds the tensors from before training, `ids`, (n, t), the tokens on which the models from before and after
    the merge are compared. Raises `UserError` where a tensor or the logits are not what the merge should make of them.
    """
    import torch

    plain = tuned.get_base_model().eval()
    with torch.inference_mode():
        before = _centred(plain(input_ids=ids).logits)
    factors = _factors(tuned)
    tuned.merge_and_unload()
    _check_tensors(plain.state_dict(), base, factors)
    with torch.inference_mode():
        error = _centred(plain(input_ids=ids).logits) - before
    # Each merged matrix is rounded once more, and so are its outputs; independent errors add up as the root of their
    # number. Sums in float32 have errors of their own, whatever the type.
    tolerance = math.sqrt(len(factors)) * (2 * torch.finfo(plain.dtype).eps + 16 * torch.finfo(torch.float32).eps)
    relative = (error.norm() / before.norm()).item()
    if not relative <= tolerance:
        raise UserError(
            f"align.lora: the merged model's logits differ from the adapter's by {relative:.1e} of their size; "
            f"at most {tolerance:.1e} follows from {plain.dtype}"
        )


def _centred(logits: Any) -> Any:
    """Logits minus their mean over the vocabulary, because a constant does not change probabilities."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _factors(tuned: Any) -> dict[str, tuple[Any, Any, float]]:
    """Name of each adapted matrix in the plain model -> copies of A (r, in) and B (out, r), and their scale."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}.weight": (
            *(half["default"].weight.detach().clone() for half in (layer.lora_A, layer.lora_B)),
            layer.scaling["default"],
        )
        for name, layer in tuned.get_base_model().named_modules()
        if isinstance(layer, LoraLayer)
    }


def _check_tensors(merged: dict[str, Any], base: dict[str, Any], factors: dict[str, tuple[Any, Any, float]]) -> None:
    """Every adapted matrix must be W + scale B A to within rounding, and every other tensor bitwise the base's."""
    import torch

    if merged.keys() != base.keys() or not factors.keys() <= base.keys():
        strange = sorted((merged.keys() ^ base.keys()) | (factors.keys() - base.keys()))
        raise UserError(
            f"align.lora: the merged model does not have the base model's tensors: {', '.join(strange[:3])}"
        )
    for name, tensor in merged.items():
        before = base[name].to(tensor.device)
        if name not in factors:
            if not torch.equal(tensor, before):
                raise UserError(f"align.lora: {name} is not adapted and must stay as it was, but it changed")
            continue
        a, b, scale = factors[name]
        a, b, before = a.double(), scale * b.double(), before.double()
        # The product is summed over the rank in float32 and rounded to the weights' type, and so is the sum with W;
        # near zero that type has no finer step than its smallest number.
        of, summed = torch.finfo(tensor.dtype), len(a) * torch.finfo(torch.float32).eps
        bound = of.eps * (before.abs() + of.smallest_normal) + (of.eps + summed) * (b.abs() @ a.abs())
        if not ((tensor.double() - before - b @ a).abs() <= bound).all():
            raise UserError(f"align.lora: {name} is not the base's matrix plus the adapter's product, as it must be")
