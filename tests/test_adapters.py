"""The merge of an adapter, and that a wrong one is found."""

from __future__ import annotations

import pytest
import torch
from conftest import random_llama
from peft import get_peft_model

from holdfast.errors import UserError
from holdfast.models.adapters import adapter, merge, snapshot
from holdfast.recipes.gradient import Lora

IDS = torch.arange(5, 37).reshape(2, 16)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def trained(tokenizer):
    def make(dtype=torch.float32, tied=False, rank=4, size=0.1):
        """(base tensors, plain model, PEFT model with an adapter as if it were trained)."""
        plain = random_llama(tokenizer, tied=tied).to(dtype)
        base = snapshot(plain)
        tuned = get_peft_model(plain, adapter(Lora(rank=rank, alpha=2 * rank), seed=1))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        return base, plain, tuned

    return make


@pytest.mark.parametrize("size", [1e-3, 0.1])
@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_leaves_a_plain_model(trained, dtype, tied, rank, size):
    base, plain, tuned = trained(dtype, tied, rank, size)
    merge(tuned, base, IDS)
    found = plain.state_dict()
    assert found.keys() == base.keys()
    moved = {name for name in base if not torch.equal(found[name], base[name])}
    assert moved == {name for name in base if ".layers." in name and base[name].dim() == 2}


def test_the_first_weights_are_the_seeds_own(trained):
    (_, _, one), (_, _, other) = trained(), trained()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_is_float32_whatever_the_weights_are(trained, dtype):
    """Its steps would be lost in half precision, as those of weights would."""
    _, _, tuned = trained(dtype)
    trainable = [p.dtype for p in tuned.parameters() if p.requires_grad]
    assert set(trainable) == {torch.float32}
    assert len(trainable) == 2 * 7 * 2  # two factors of each linear of each layer


def spoiled(monkeypatch, tuned, spoil):
    """The PEFT model, whose merge is followed by `spoil`."""
    right = tuned.merge_and_unload

    def wrong():
        plain = right()
        with torch.no_grad():
            spoil(plain)

    monkeypatch.setattr(tuned, "merge_and_unload", wrong)
    return tuned


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", "is not the base's matrix plus the adapter's product"),
        ("model.norm.weight", "is not adapted and must stay as it was"),
        ("lm_head.weight", "is not adapted and must stay as it was"),
    ],
)
def test_one_element_two_roundings_off_is_found(trained, monkeypatch, dtype, place, message):
    base, _, tuned = trained(dtype)

    def spoil(plain):
        weight = plain.get_parameter(place).view(-1)
        largest = weight.abs().argmax()
        weight[largest] *= 1 + 3 * torch.finfo(dtype).eps

    with pytest.raises(UserError, match=f"align.lora: {place} {message}"):
        merge(spoiled(monkeypatch, tuned, spoil), base, IDS)


def test_an_adapter_that_is_lost_is_found(trained, monkeypatch):
    base, _, tuned = trained()
    with pytest.raises(UserError, match="is not the base's matrix plus the adapter's product"):
        merge(spoiled(monkeypatch, tuned, lambda plain: plain.load_state_dict(base)), base, IDS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_differ_are_found_where_all_tensors_are_right(trained, monkeypatch, dtype):
    base, _, tuned = trained(dtype)

    def spoil(plain):
        plain.model.layers[0].self_attn.scaling *= 3

    with pytest.raises(UserError, match=r"logits differ from the adapter's by .*e-0.* at most .* follows from torch"):
        merge(spoiled(monkeypatch, tuned, spoil), base, IDS)


def test_tensors_of_another_name_are_found(trained):
    base, _, tuned = trained()
    base["strange.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"does not have the base model's tensors: strange\.weight"):
        merge(tuned, base, IDS)
