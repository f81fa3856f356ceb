"""Quantizers do what their libraries do, to the decoder's matrices alone, and say so."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import point, random_llama, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.errors import UserError
from holdfast.perturbations import Bench, perturbed
from holdfast.perturbations.rounding import AS_SHIPPED, gguf_rounded, offset_of, rotated, rounded
from holdfast.perturbations.snapshot import decoder_linears
from holdfast.planning.evaluation import kept
from holdfast.settings.compose import composed

QUANTIZERS = ("int8", "nf4", "fp4", "gguf", "torchao_int8", "fp8", "w8a8", "w4a8", "rtn", "w4a4", "w4a4_rotated")
COPIES = QUANTIZERS[:3] + QUANTIZERS[4:8]
IDS = torch.arange(5, 17).view(2, 6)
BENCH = Bench(7, 0)
UP = "model.layers.0.mlp.up_proj.weight"


def comparable(one, other):
    """Of the same form: torchao's cannot be compared with others."""
    return type(one.data) is type(other.data) and one.shape == other.shape


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def under(model, *args, **options):
    with perturbed(model, point(*args, **options), BENCH) as arm:
        return logits(arm.model)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_it_reaches_the_decoders_matrices_alone(tokenizer, kind, dtype, name):
    """Qwen's linears have biases, and its head and Gemma's are tied; all is bitwise the same afterwards."""
    model = random_model(tokenizer, kind).to(dtype)
    before, clean = copy.deepcopy(model.state_dict()), logits(model)
    with perturbed(model, point(name), BENCH) as arm:
        noisy = logits(arm.model)
        after = dict(arm.model.named_parameters())
        same = {k for k, p in after.items() if comparable(before[k], p) and torch.equal(before[k], p)}
    assert same == {k for k, p in model.named_parameters() if ".layers." not in k or p.dim() < 2}
    assert noisy.dtype == dtype
    assert torch.isfinite(noisy).all()
    assert not torch.equal(noisy, clean)
    assert all(torch.equal(before[k], p) for k, p in model.state_dict().items())
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("name", COPIES)
def test_a_quantized_copy_shares_what_is_not_quantized(llama, name):
    with perturbed(llama, point(name), BENCH) as arm:
        quantized = {id(p) for p in arm.model.parameters()}
        shared = {k for k, p in llama.named_parameters() if id(p) in quantized}
    assert shared == {k for k, p in llama.named_parameters() if ".layers." not in k or p.dim() < 2}


@pytest.mark.parametrize("name", COPIES)
def test_a_plan_counts_what_a_copy_takes(tokenizer, name):
    from torchao.utils import TorchAOBaseTensor

    model = random_model(tokenizer, "llama", hidden_size=256, intermediate_size=512)
    matrices = sum(linear.weight.numel() for linear in decoder_linears(model).values())
    case = SimpleNamespace(shape=SimpleNamespace(matrices=matrices, matrix=0), cuda=True)
    with perturbed(model, point(name), BENCH) as arm:
        taken = 0
        for key in decoder_linears(model):
            w = arm.model.get_submodule(key.removesuffix(".weight")).weight
            scale = {"int8": "SCB", "nf4": "quant_state", "fp4": "quant_state"}.get(name)
            parts = [w, getattr(w, scale)] if scale else [getattr(w, part) for part in w.tensor_data_names]
            parts = [p.absmax if scale == "quant_state" and p is not w else p for p in parts]
            taken += sum(p.numel() * p.element_size() for p in parts)
            assert scale or isinstance(w, TorchAOBaseTensor)
    assert kept(case, point(name).perturbation)[1] == pytest.approx(taken, rel=0.03)


def test_4_bits_are_those_of_transformers_configuration(llama):
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True)
    for name in ("nf4", "fp4"):
        with perturbed(llama, point(name), BENCH) as arm:
            layer = arm.model.model.layers[0].mlp.up_proj
            state = layer.weight.quant_state
        assert isinstance(layer, bnb.nn.Linear4bit)
        assert layer.compute_dtype == config.bnb_4bit_compute_dtype
        assert state.nested == config.bnb_4bit_use_double_quant
        assert (state.blocksize, state.quant_type) == (64, name)
    with perturbed(llama, point("nf4", double_quantization=True), BENCH) as arm:
        assert arm.model.model.layers[0].mlp.up_proj.weight.quant_state.nested
        assert torch.isfinite(logits(arm.model)).all()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bits_multiply_by_what_they_dequantize_to(llama, name):
    """In the same way on every CPU, also on one that has a kernel in bfloat16."""
    import bitsandbytes as bnb

    x = drawn(3, 64)
    with perturbed(llama, point(name), BENCH) as arm, torch.inference_mode():
        layer = arm.model.model.layers[0].mlp.up_proj
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.allclose(layer(x), x @ weight.T, atol=1e-5)


def test_int8_rounds_inputs_but_for_columns_with_outliers(llama):
    """LLM.int8 by hand."""
    from transformers import BitsAndBytesConfig

    weight = llama.get_parameter(UP).detach()
    weight.copy_(weight.half())  # in which weights and inputs are rounded
    x = drawn(5, 64).half().float()
    x[:, 7] = torch.tensor([0.1, 0.2, 20.0, -0.3, 0.0])
    with perturbed(llama, point("int8"), BENCH) as arm, torch.inference_mode():
        layer = arm.model.model.layers[0].mlp.up_proj
        found = layer(x)
    assert layer.state.threshold == BitsAndBytesConfig().llm_int8_threshold == 6.0
    narrow = x.clone()
    narrow[:, 7] = 0
    w = rounded(weight, 8, 64)
    expected = rounded(narrow, 8, 64) @ w.T + x[:, 7:8] * w[:, 7]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, x @ w.T, atol=1e-3)
    assert (found - x @ weight.T).norm() < 0.6 * (rounded(x, 8, 64) @ w.T - x @ weight.T).norm()


@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (5, "Q5_0"), (4, "Q4_0")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gguf_is_the_round_trip_of_its_own_package(llama, bits, kind, dtype):
    import gguf

    llama.to(dtype)
    weight = llama.get_parameter(UP).detach().clone()
    packed = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[kind])
    expected = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])).to(dtype)
    with perturbed(llama, point("gguf", bits), BENCH):
        assert torch.equal(llama.get_parameter(UP), expected)
    assert torch.equal(llama.get_parameter(UP), weight)


@pytest.mark.parametrize(("name", "size"), [("gguf", 32), ("w4a8", 32)])
def test_rows_of_no_whole_blocks_are_refused(tokenizer, name, size):
    model = random_model(tokenizer, "llama", intermediate_size=80)
    words = rf"perturb.{name}: model.*down_proj.weight has 80 inputs, not a multiple of its blocks of {size}"
    with pytest.raises(UserError, match=words), perturbed(model, point(name), BENCH):
        raise AssertionError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("torchao_int8", "Int8Tensor"),
        ("fp8", "Float8Tensor"),
        ("w8a8", "Int8Tensor"),
        ("w4a8", "IntxUnpackedToInt8Tensor"),
    ],
)
def test_torchao_holds_the_weights(llama, name, kind):
    """In a form of its own, whether inputs are rounded or not, and the compiler's settings stay."""
    compiler = torch._inductor.config.save_config_portable()
    with perturbed(llama, point(name), BENCH) as arm:
        weight = arm.model.model.layers[0].mlp.up_proj.weight
        assert type(weight).__name__ == kind
        inputs = getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None)
        assert bool(inputs) == name.startswith("w")
    assert torch._inductor.config.save_config_portable() == compiler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_w8a8_multiplies_integers(llama, dtype):
    llama.to(dtype)
    weight, x = llama.get_parameter(UP).detach(), drawn(5, 64).to(dtype)
    with perturbed(llama, point("w8a8"), BENCH) as arm, torch.inference_mode():
        found = arm.model.model.layers[0].mlp.up_proj(x)
    expected = rounded(x, 8, 64) @ rounded(weight, 8, 64).T
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    assert (found.float() - expected).norm() < 2 * (x.float() @ weight.float().T - expected).norm()


def test_w4a8_is_of_groups(llama):
    with perturbed(llama, point("w4a8", group_size=16), BENCH) as arm:
        weight = arm.model.model.layers[0].mlp.up_proj.weight
    assert weight.block_size == (1, 16)
    assert int(weight.qdata.min()) >= -8
    assert int(weight.qdata.max()) <= 7
    errors = [(under(llama, "w4a8", group_size=size) - logits(llama)).norm() for size in (16, None)]
    assert errors[0] < errors[1]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(1, 33), st.integers(0, 32), st.integers(0, 99))
def test_round_to_nearest_errs_by_at_most_half_a_step(bits, width, group, offset, seed):
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    size = min(group, width)
    offset %= size
    error = (rounded(weight, bits, group, offset) - weight).abs()
    cuts = [offset] * (offset > 0) + [size] * ((width - offset) // size)
    cuts += [width - sum(cuts)] * (sum(cuts) < width)
    for chunk, wrong in zip(weight.split(cuts, 1), error.split(cuts, 1), strict=True):
        step = chunk.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert (wrong <= step / 2 + 1e-6).all()


def test_activations_are_rounded_token_by_token(llama):
    """With weights of 16 bits, what is left of W·A4 is the rounding of the inputs, and 16 bits leave nothing."""
    clean = logits(llama)
    errors = {}
    for bits in (4, 8, 16):
        with perturbed(llama, point("w4a4", 16, activation_bits=bits), BENCH) as arm:
            errors[bits] = (logits(arm.model) - clean).abs().max()
            alone = arm.model(input_ids=IDS[:1]).logits
            assert torch.allclose(alone, logits(arm.model)[:1], atol=1e-4)
    assert errors[4] > 4 * errors[8] > 16 * errors[16]


@pytest.mark.parametrize("widest", [2, 16, 64, 100])
@pytest.mark.parametrize("width", [96, 64, 128])
def test_a_rotation_turns_blocks_and_keeps_lengths(width, widest):
    h = rotated(torch.eye(width), widest)
    block = {2: 2, 16: 16, 64: min(width & -width, 64), 100: min(width & -width, 64)}[widest]
    assert torch.allclose(h @ h.T, torch.eye(width), atol=1e-6)
    assert torch.equal(h, h.T)
    assert (h != 0).sum(1).tolist() == [block] * width


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_a_rotation_cancels_where_nothing_is_rounded(tokenizer, kind):
    model = random_model(tokenizer, kind)
    turned = under(model, "w4a4_rotated", 16, activation_bits=16)
    assert torch.allclose(turned, under(model, "w4a4", 16, activation_bits=16), atol=2e-3)
    assert torch.allclose(turned, logits(model), atol=2e-3)


def test_a_rotation_spreads_outliers(llama):
    """Of inputs: where one is twenty times the others, four bits leave little of those."""
    with torch.no_grad():
        for layer in llama.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[3] = 20.0
        for name, linear in decoder_linears(llama).items():
            if "down" not in name and "o_proj" not in name:
                linear.weight[:, 3] /= 20
    clean = logits(llama)
    plain, turned = (
        (under(llama, name, 16, group_size=8) - clean).norm() / clean.norm() for name in ("w4a4", "w4a4_rotated")
    )
    assert turned < 0.6 * plain


def test_two_bits_are_three_levels(llama):
    rtn = point("rtn").perturbation
    assert [rtn.reads(level).format(name="rtn", level=level) for level in (3, 2)] == ["rtn 3 bit", "rtn ternary"]
    with perturbed(llama, point("rtn", 2, group_size=64, draws=1), BENCH):
        assert all(len(row.unique()) <= 3 for row in llama.get_parameter(UP))


def test_the_first_draw_is_the_plain_one_and_others_begin_elsewhere(llama):
    plain = rounded(llama.get_parameter(UP).detach(), 3, 32)
    found = []
    for seed, draw in ((7, 0), (8, 0), (7, 1), (7, 2), (7, 1), (8, 1)):
        with perturbed(llama, point("rtn", 3, draw, draws=4), Bench(seed, 0)):
            found.append(llama.get_parameter(UP).detach().clone())
    assert torch.equal(found[0], plain)
    assert torch.equal(found[1], plain)
    assert torch.equal(found[2], found[4])
    assert not torch.equal(found[2], plain)
    assert not torch.equal(found[2], found[3])
    assert not torch.equal(found[2], found[5])
    assert sorted(offset_of(7, draw, 32) for draw in range(32)) == list(range(32))


def test_rows_that_are_one_group_have_one_draw(llama):
    words = r"perturb.rtn.draws=2: model.layers.0.self_attn.q_proj.weight has 64 inputs, one group of 64"
    with pytest.raises(UserError, match=words), perturbed(llama, point("rtn", group_size=64, draws=2), BENCH):
        raise AssertionError
    assert torch.isfinite(under(llama, "rtn", group_size=64, draws=1)).all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("perturb.rtn.draws=33", "groups of 32 begin at 32 places; give 1 to 30 beside evaluate.tune_draws=2"),
        *((f"perturb.{n}.draws=2", f"perturb.{n}.draws=2: it rounds the same way each time; give 1") for n in COPIES),
        ("perturb.gguf.draws=2", "it rounds the same way each time"),
        ("perturb.gguf.levels=[6,4]", r"perturb.gguf.levels=\[6.0, 4.0\]: bits of a weight, here 8, 5, 4"),
        ("perturb.nf4.levels=[8]", r"bits of a weight, here 4"),
        ("perturb.w4a8.levels=[8]", r"bits of a weight, here 4"),
        ("perturb.int8.double_quantization=true", "int8 has no blocks; set it to false"),
        ("perturb.w4a4.rotation=1", "perturb.w4a4.rotation"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, words):
    name = override.split(".")[1]
    with pytest.raises(UserError, match=words) as raised:
        composed([f"perturb=[{name}]", override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "device", "options", "words"),
    [
        ("rtn", "cpu", {"draws": 1}, "simulated, symmetric, groups of 32 inputs, no clipping"),
        ("rtn", "cpu", {"draws": 3}, "groups of 32 inputs that begin elsewhere at each draw"),
        (
            "w4a4",
            "cpu",
            {},
            "weights in groups of 32 inputs, inputs in 4 bits with a scale for each token",
        ),
        ("w4a4_rotated", "cpu", {}, "each token, rotated by Hadamard blocks of up to 128, no clipping"),
        (
            "int8",
            "cpu",
            {},
            "bitsandbytes CPU fallback, symmetric, a scale for each output and token, input",
        ),
        ("int8", "cuda", {}, "outliers from 6 not rounded"),
        ("nf4", "cuda", {}, "bitsandbytes CUDA kernel, nf4, blocks of 64 weights, scales in float32"),
        ("fp4", "cuda", {"double_quantization": True}, "fp4, blocks of 64 weights, scales in 8 bits"),
        (
            "gguf",
            "cpu",
            {},
            "gguf Q8_0, Q4_0, blocks of 32 inputs scaled by their largest weight, float16",
        ),
        (
            "torchao_int8",
            "cpu",
            {},
            "torchao int8, dequantized as it runs, weights symmetric, a scale for each",
        ),
        ("fp8", "cpu", {}, "inputs as they are, no clipping"),
        (
            "w8a8",
            "cpu",
            {},
            "CPU integer kernel, weights symmetric, a scale for each output, inputs in int8, sym",
        ),
        ("w8a8", "cpu", {"group_size": 32}, "dequantized as it runs, weights symmetric, groups of 32 inputs"),
        (
            "w4a8",
            "cuda",
            {},
            "dequantized as it runs, weights symmetric, groups of 32 inputs, inputs in int8, asymm",
        ),
    ],
)
def test_a_row_tells_the_scheme_and_what_ran(name, device, options, words):
    told = point(name, **options).perturbation.ran(device)
    assert words in told
    assert ";" not in told  # captions list several
    assert ":" not in told


def test_an_unknown_layer_is_left_as_it_is(tokenizer):
    """A head of its own, and a tied one, keep their tensor."""
    for tied in (False, True):
        model = random_llama(tokenizer, tied=tied)
        for name in COPIES:
            with perturbed(model, point(name), BENCH) as arm:
                assert arm.model.lm_head.weight is model.lm_head.weight
                assert (arm.model.lm_head.weight is arm.model.model.embed_tokens.weight) == tied
                assert isinstance(arm.model.lm_head, nn.Linear)


@pytest.mark.parametrize("name", ["q4_0", "nf4", "w4a8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_refinement_rounds_to_is_what_is_shipped(llama, name, dtype):
    """The weights of the evaluation's own quantizer, bit for bit, where groups begin at the first input."""
    llama.to(dtype)
    weight = llama.get_parameter(UP).detach().clone()
    with perturbed(llama, point("gguf" if name == "q4_0" else name, 4), BENCH) as arm:
        shipped = arm.model.model.layers[0].mlp.up_proj.weight
        if name == "nf4":
            from bitsandbytes.functional import dequantize_4bit

            shipped = dequantize_4bit(shipped.data, shipped.quant_state)
        elif name == "w4a8":
            shipped = shipped.dequantize()
        found = AS_SHIPPED[name](weight, 0).to(dtype)
        assert torch.equal(found, shipped.to(dtype).view_as(found))


@given(st.integers(0, 99), st.sampled_from([1e-30, 1e-6, 1.0, 1e4]), st.integers(0, 63))
@settings(max_examples=30, deadline=None)
def test_q4_0_has_the_bits_of_ggufs_own_wherever_groups_begin(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(4, 64, generator=generator) * torch.rand(4, 1, generator=generator)
    weight[0, :32] = 0
    turned = gguf_rounded(weight.roll(-shift, 1), 4).roll(shift, 1)
    assert torch.equal(AS_SHIPPED["q4_0"](weight, shift), turned)
