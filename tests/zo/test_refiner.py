"""The engine: exact restoration, an unbiased estimate, steps that equal plain arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.zo import Cosine, PerturbationError, ZeroOrderRefiner, fingerprint, weight_groups
from holdfast.zo.directions import Span
from holdfast.zo.noise import NOISES, Stream, noise
from holdfast.zo.perturb import Masters

drawn = noise  # where `noise` is the name of an option
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Quadratic(nn.Module):
    """½ Σ h_i (w_i − a_i)² with the names of a decoder; its loss is the same for every example."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in range(2))
        for layer in self.model.layers:
            layer.weight.data = torch.randn(1, size, generator=g)
        self.h = torch.rand(size, generator=g)

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(1, 1)

    def loss(self, *_: object) -> torch.Tensor:
        return sum((0.5 * self.h * layer.weight[0] ** 2).sum() for layer in self.model.layers).reshape(1)


def everything(model):
    return {k: p for group in weight_groups(model).values() for k, p in group.items()}


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_drift_in_200_evaluations(llama, dtype, kind):
    llama.to(dtype)
    before = {name: p.clone() for name, p in llama.named_parameters()}
    masters = Masters(everything(llama), seed=0, noise=kind)
    for step in range(100):
        for sign in (+1, -1):
            masters.write(sign * 0.3, step=step, query=0)
    assert masters.drift() > 0
    masters.restore()
    assert masters.drift() == 0
    assert all(torch.equal(before[name], p) for name, p in llama.named_parameters())


@pytest.mark.parametrize("kind", NOISES)
def test_estimate_is_unbiased_on_a_quadratic(kind):
    model = Quadratic()
    weight = model.model.layers[0].weight
    masters = Masters({"w": weight}, seed=0, noise=kind)
    scale, gradient, total, draws = masters.draws.scales["w"], model.h * weight[0].detach(), 0, 4000
    for draw in range(draws):
        sides = []
        for sign in (+1, -1):
            masters.write(sign * 0.1, step=draw, query=0)
            sides.append(model.loss().item())
        z = noise(64, Stream(kind, 0, draw), tensor=masters.draws.names["w"], query=0, device=CPU)
        total = total + (sides[0] - sides[1]) / 0.2 * z
    masters.restore()
    estimate = total / draws / scale
    assert torch.nn.functional.cosine_similarity(estimate, gradient, dim=0) > 0.98
    assert (estimate - gradient).abs().max() < 6 * gradient.norm().item() / draws**0.5


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["none", "rms"]),
    st.integers(1, 4),
    st.sampled_from(NOISES),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_the_update_moves_along_the_perturbation(normalize, queries, kind, dtype, last):
    """Cosine 1 between what was probed and what is applied, for every combination of options."""
    model = Quadratic().to(dtype)
    layer, index = ("layer.1", 1) if last else ("layer.0", 0)
    options = {"queries": queries, "noise": kind, "normalize": normalize, "seed": 4}
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss(), layers=[layer], mu=0.2, lr=0.05, **options)
    (name,) = refiner.masters.tensors
    before = refiner.masters.values[name].clone()
    report = refiner.step(None)
    moved = (refiner.masters.values[name] - before).flatten()
    tensor = refiner.masters.draws.names[name]
    probed = [noise(64, Stream(kind, 4, 0), tensor=tensor, query=query, device=CPU) for query in range(queries)]
    expected = -sum(g * z for g, z in zip(report.projected_gradients, probed, strict=True))
    assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > 0.99999
    assert refiner.drift() == 0
    assert torch.equal(model.model.layers[1 - index].weight, Quadratic().to(dtype).model.layers[1 - index].weight)


def plain_refinement(model, losses, batches, tensors, *, mu, lr, queries, normalize, noise, seed):
    """The method in thirty plain lines that materialise z: what `ZeroOrderRefiner` must equal."""
    weights = dict(model.named_parameters())
    names = Masters(tensors, seed=0).draws.names
    scales = {k: weights[k].square().mean().sqrt().item() for k in tensors}
    trace = []
    for step, batch in enumerate(batches):
        stream, gradients, moves = Stream(noise, seed, step), [], []
        clean = {k: weights[k].detach().clone() for k in tensors}
        for query in range(queries):
            z = {k: drawn(w.numel(), stream, tensor=names[k], query=query, device=CPU) for k, w in clean.items()}
            sides = []
            for sign in (+1, -1):
                for k, w in clean.items():
                    weights[k].data = w + sign * mu * scales[k] * z[k].view_as(w)
                sides.append(losses(model, batch).mean().item())
            gradients.append((sides[0] - sides[1]) / (2 * mu))
            moves.append(z)
            trace += sides
        size = (sum(g * g for g in gradients) / queries) ** 0.5 if normalize == "rms" else 1.0
        for k, w in clean.items():
            total = sum(g * z[k] for g, z in zip(gradients, moves, strict=True))
            weights[k].data = w - lr / queries / size * scales[k] * total.view_as(w)
    return trace


def traces(model, losses, batches, layers, **options):
    """The losses of every evaluation, by the plain reference and by the engine."""
    plain, seen = copy.deepcopy(model), []
    tensors = {k: p for layer in layers for k, p in weight_groups(plain)[layer].items()}
    with torch.no_grad():
        expected = plain_refinement(plain, losses, batches, tensors, **options)

    def noted(m, batch):
        found = losses(m, batch)
        seen.append(found.mean().item())
        return found

    refiner = ZeroOrderRefiner(model, noted, layers=layers, prefix="off", **options)
    for batch in batches:
        refiner.step(batch)
    return seen, expected


OPTIONS = {"mu": 0.05, "lr": 0.01, "queries": 2, "seed": 9}


@pytest.mark.parametrize("normalize", ["none", "rms"])
@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("layers", [["layer.0", "layer.1"], ["layer.1"]])
def test_loss_trace_equals_the_plain_reference(llama, token_losses, token_batches, normalize, kind, layers):
    options = OPTIONS | {"normalize": normalize, "noise": kind}
    seen, expected = traces(llama, token_losses, token_batches(6), layers, **options)
    assert seen == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("loss", ["nll", "margin"])
def test_loss_trace_on_batches_of_the_tiny_study(loss):
    """Its prompts, openings, batch size and settings of refinement, on a random model."""
    import pandas as pd
    from conftest import random_llama

    from holdfast.datasets import world
    from holdfast.datasets.tokens import train_tokenizer
    from holdfast.methods import LOSSES
    from holdfast.methods.batches import Batches
    from holdfast.settings.compose import composed

    cfg = composed(["study=tiny"])
    rows = pd.DataFrame(world.build(*(getattr(cfg, part).model_dump() for part in ("data", "openings"))))
    rows = rows[rows["split"] == "train"]
    tokenizer = train_tokenizer(rows["prompt"] + " " + rows["response"], 500)
    model = random_llama(tokenizer, layers=3)
    batches = Batches(rows, tokenizer, cfg.openings.loss, LOSSES[loss], model.device)
    stream = batches.stream(cfg.refine.batch_size, seed=0)
    options = {key: getattr(cfg.refine, key) for key in ("mu", "lr", "queries", "normalize", "noise")}
    layers = ["layer.0", "layer.2"]
    seen, expected = traces(model, LOSSES[loss], [next(stream) for _ in range(5)], layers, seed=0, **options)
    assert seen == pytest.approx(expected, rel=5e-5)


def test_micro_batches_are_one_batch(llama, token_losses, token_batches):
    whole, parts = copy.deepcopy(llama), llama
    (batch,) = token_batches(1)
    options = {"layers": ["layer.0"], "mu": 0.1, "lr": 0.05, "queries": 2}
    a = ZeroOrderRefiner(whole, token_losses, **options).step(batch)
    b = ZeroOrderRefiner(parts, token_losses, **options).step(batch[:1], batch[1:])
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert a.projected_gradients == pytest.approx(b.projected_gradients, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_restores_and_says_where(broken):
    model = Quadratic()
    before = model.model.layers[0].weight.clone()
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss() * broken, layers=["layer.0"], mu=0.1, lr=0.1)
    with pytest.raises(FloatingPointError, match="step 0"):
        refiner.step(None)
    assert torch.equal(model.model.layers[0].weight, before)


def test_an_interrupted_evaluation_restores_the_weights():
    model = Quadratic()
    before = model.model.layers[0].weight.clone()

    def interrupted(m, _):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ZeroOrderRefiner(model, interrupted, layers=["layer.0"], mu=0.1, lr=0.1).step(None)
    assert torch.equal(model.model.layers[0].weight, before)


def test_a_wrong_layer_is_named_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"layer\.7.*choose among layer\.0, layer\.1"):
        ZeroOrderRefiner(Quadratic(), lambda m, _: m.loss(), layers=["layer.7"], mu=0.1, lr=0.1)


def test_groups_hold_what_can_be_trained(tokenizer):
    """Neither frozen matrices nor packed integers; of a model with LoRA the adapters alone."""
    from conftest import random_llama
    from peft import LoraConfig, get_peft_model

    model = random_llama(tokenizer)
    model.model.embed_tokens.weight.requires_grad_(False)
    packed = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = packed
    groups = weight_groups(model)
    assert list(groups) == ["layer.0", "layer.1", "head"]
    assert len(groups["layer.0"]) == 6
    tuned = get_peft_model(random_llama(tokenizer), LoraConfig(target_modules=["q_proj"]))
    groups = weight_groups(tuned)
    assert [name.split(".")[-3] for name in groups["layer.1"]] == ["lora_A", "lora_B"]
    with pytest.raises(PerturbationError, match=r"lora_B\.default\.weight: all its weights are zero"):
        ZeroOrderRefiner(tuned, lambda m, _: m, layers=["layer.1"], mu=0.1, lr=0.1)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(4, 4), "all its weights are zero"),
        (torch.full((4, 4), float("nan")), "a NaN or an infinity"),
        (torch.full((4, 4), float("inf")), "a NaN or an infinity"),
        (torch.empty(4, 4, device="meta"), "has no values here"),
    ],
)
def test_weights_that_noise_cannot_move_are_named(weight, words):
    with pytest.raises(PerturbationError, match=f"^w: .*{words}") as raised:
        Masters({"w": nn.Parameter(weight)}, seed=0)
    assert "\n" not in str(raised.value)


def test_a_shard_is_named(tmp_path):
    """A DTensor of a mesh of one process."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard = nn.Parameter(distribute_tensor(torch.randn(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)]))
        with pytest.raises(PerturbationError, match=r"^w: is a shard \(DTensor"):
            Masters({"w": shard}, seed=0)
    finally:
        dist.destroy_process_group()


def test_the_subspace_takes_the_bytes_that_it_states():
    """An anchor in the weights' own type and four bytes of direction; scratch is not kept."""
    for dtype, width in ((torch.bfloat16, 6), (torch.float32, 8)):
        weight = nn.Parameter(torch.randn(64, 64).to(dtype))
        span = Span({"w": weight}, {"w": torch.randn(64, 64)}, seed=0)
        span.write(0.1, step=0, query=0)
        span.restore()
        kept = [t for found in vars(span).values() if isinstance(found, dict) for t in found.values()]
        tensors = [t for t in kept if isinstance(t, torch.Tensor) and t is not weight]
        assert sum(t.nbytes for t in tensors) == width * weight.numel()


def test_a_refinement_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no tensors are given; name at least one layer"):
        ZeroOrderRefiner(Quadratic(), lambda m, _: m.loss(), layers=[], mu=0.1, lr=0.1)


def test_groups_of_tied_and_untied_models(tokenizer):
    from conftest import random_llama

    assert list(weight_groups(random_llama(tokenizer))) == ["embeddings", "layer.0", "layer.1", "head"]
    assert list(weight_groups(random_llama(tokenizer, tied=True))) == ["embeddings", "layer.0", "layer.1"]


def test_estimating_and_applying_are_a_step(llama, token_losses, token_batches):
    """And estimating alone leaves the weights as they were."""
    other, options = copy.deepcopy(llama), {"layers": ["layer.1"], "mu": 0.1, "lr": 0.05, "queries": 2}
    whole, parts = (ZeroOrderRefiner(model, token_losses, **options) for model in (llama, other))
    for batch in token_batches(3):
        before = fingerprint(other)
        found = parts.estimate(batch)
        assert fingerprint(other) == before
        assert parts.estimate(batch) == found  # the same step draws the same noise
        parts.apply(parts.coefficients(found), found.loss)
        assert whole.step(batch) == found
        assert fingerprint(llama) == fingerprint(other) != before
    assert whole.losses == parts.losses
    assert whole.steps == parts.steps == 3


def test_named_tensors_are_all_that_moves(llama, token_losses, token_batches):
    """Gains, which belong to no group; and a log is a callback."""
    gains = {name: p for name, p in llama.named_parameters() if p.dim() == 1}
    before, seen = {name: p.detach().clone() for name, p in llama.named_parameters()}, []
    log = lambda coefficients, loss: seen.append((coefficients, loss))  # noqa: E731
    refiner = ZeroOrderRefiner(llama, token_losses, tensors=gains, mu=0.1, lr=0.05, queries=2, log=log)
    reports = [refiner.step(batch) for batch in token_batches(2)]
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(gains)
    assert refiner.drift() == 0
    assert [loss for _, loss in seen] == [report.loss for report in reports]
    assert [len(coefficients) for coefficients, _ in seen] == [2, 2]


def test_tensors_of_an_architecture_that_is_not_known(token_batches):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    chosen = {name: p for name, p in model.named_parameters() if name.endswith("attn.c_proj.weight")}

    def losses(model, ids):
        return model(input_ids=ids, labels=ids).loss

    refiner = ZeroOrderRefiner(model, losses, tensors=chosen, mu=0.1, lr=0.05)
    assert not refiner.prefix.enabled
    assert refiner.step(*token_batches(1)).projected_gradients[0] != 0


def test_a_rate_may_be_a_function_of_the_step(llama, token_losses, token_batches, tmp_path):
    options = {"layers": ["layer.1"], "mu": 0.1, "lr": Cosine(0.1, 4), "normalize": "rms"}
    refiner = ZeroOrderRefiner(copy.deepcopy(llama), token_losses, trajectory=tmp_path / "log", **options)
    batches = token_batches(4)
    for batch in batches:
        refiner.step(batch)
    sizes = [abs(coefficients[0]) for coefficients in refiner.trajectory.steps]
    assert sizes == pytest.approx([0.1, 0.085355, 0.05, 0.014645], rel=1e-4)
    again = ZeroOrderRefiner(llama, token_losses, trajectory=tmp_path / "log", **options)
    assert again.steps == 4
    assert fingerprint(again.model) == fingerprint(refiner.model)


@pytest.mark.parametrize("given", [{}, {"layers": ["layer.0"], "tensors": {}}])
def test_one_of_layers_tensors_and_directions_is_given(llama, token_losses, given):
    with pytest.raises(ValueError, match="give one of layers, tensors and directions"):
        ZeroOrderRefiner(llama, token_losses, mu=0.1, lr=0.1, **given)
