"""Losses with reused prefix states are bitwise those of full forwards, on every supported architecture."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

from holdfast.zo import ZeroOrderRefiner
from holdfast.zo.layers import weight_groups
from holdfast.zo.prefix import PrefixReuse

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 4, "head_dim": 8}
ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "Qwen3": {"head_dim": 8},
    "Mistral": SLIDING,
    "Gemma2": SLIDING | {"query_pre_attn_scalar": 8},
    "Gemma3Text": SLIDING | {"query_pre_attn_scalar": 8},
    "Phi3": {"sliding_window": 4},
}


def random_model(name, dtype=torch.float32):
    config = getattr(transformers, f"{name}Config")(**SIZES, **ARCHITECTURES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval()


def padded_batch(side):
    """Three rows of different lengths; (ids, attention)."""
    ids = torch.randint(3, 120, (3, 14), generator=torch.Generator().manual_seed(2))
    attention = torch.ones_like(ids)
    for row, missing in ((1, 5), (2, 9)):
        gone = slice(0, missing) if side == "left" else slice(14 - missing, 14)
        ids[row, gone], attention[row, gone] = 0, 0
    return ids, attention


def losses(model, batch):
    ids, attention = batch
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    wrong = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (wrong * attention[:, 1:]).sum(1)


def tensors_of(model, groups):
    return {name: p for group in groups for name, p in weight_groups(model)[group].items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("refined", [["layer.1"], ["layer.2", "layer.3"], ["head"]])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reused_and_full_forward_agree_bitwise(name, refined, side):
    model, batch = random_model(name), padded_batch(side)
    if not set(refined) <= set(weight_groups(model)):
        pytest.skip("a head that is tied to the embeddings has no group of its own")
    reuse = PrefixReuse(model, tensors_of(model, refined), "step")
    ran = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        full = losses(model, batch)
        found = [reuse.run(batch, lambda: losses(model, batch)) for _ in range(3)]
    assert all(torch.equal(full, f) for f in found)
    assert len(ran) == 2  # the plain pass and the recorded one; the others skipped the layer
    assert reuse.bytes > 0
    reuse.forget()
    assert reuse.bytes == 0
    with torch.inference_mode():
        assert torch.equal(full, losses(model, batch))  # the model is as it was


@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
@pytest.mark.parametrize("scope", ["step", "run"])
def test_refinement_is_the_same_with_and_without_reuse(name, scope):
    found = []
    for prefix in ("off", scope):
        model, batches = random_model(name, torch.bfloat16), [padded_batch("right"), padded_batch("left")]
        refiner = ZeroOrderRefiner(model, losses, layers=["layer.2"], mu=0.1, lr=0.05, queries=2, prefix=prefix)
        reports = [refiner.step(batches[step % 2]) for step in range(4)]
        found.append((reports, model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][k], found[1][1][k]) for k in found[0][1])


def test_an_architecture_that_shows_a_difference_falls_back_and_says_so():
    """Layers that keep a state of their own: each pass through the lowest one changes what follows."""
    model = random_model("Llama")
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.lm_head.register_forward_hook(lambda module, args, out: out * (1 + len(calls)))
    refiner = ZeroOrderRefiner(model, losses, layers=["layer.2"], mu=0.1, lr=0.05)
    model.model.layers[0].forward = model.model.layers[0].forward  # someone else's, to be put back
    with pytest.warns(UserWarning, match="all its layers run"):
        refiner.step(padded_batch("right"))
    assert not refiner.prefix.enabled
    assert "forward" in model.model.layers[0].__dict__


@pytest.mark.parametrize("refined", [["layer.0"], ["embeddings", "layer.3"]])
def test_nothing_is_stored_below_the_lowest_layer(refined):
    model = random_model("Llama")
    assert not PrefixReuse(model, tensors_of(model, refined), "run").enabled
