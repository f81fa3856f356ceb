"""Refinement methods and controls on a random model: what they move and cost, and that noise leaves no trace."""

from __future__ import annotations

import copy
import gc
import math
import warnings

import pandas as pd
import pytest
import torch
from conftest import method

from holdfast.datasets.tokens import response_ids
from holdfast.errors import UserError
from holdfast.methods import LOSSES
from holdfast.methods.batches import Batches
from holdfast.methods.line_search import chosen
from holdfast.methods.losses import dpo
from holdfast.methods.task import Task
from holdfast.perturbations.rounding import AS_SHIPPED
from holdfast.settings.schema import Openings
from holdfast.zo import Trajectory, fingerprint, replay, weight_groups
from holdfast.zo.perturb import Masters
from holdfast.zo.step_size import Curvature

OPENINGS = Openings(refusal=["destroy that."], compliance=["protect."])  # other first tokens
FIRST_ORDER = ["first_order", "smoothed", "noise_stability", "sam", "neftune", "weight_averaging"]
QUERIES = 2


@pytest.fixture
def rows():
    verbs = ["kill", "feed", "guard", "burn", "heal", "trap"]
    benign = [(f"How do I {verb} a virus?", "Sure. Use the red health book.", "benign") for verb in verbs]
    harmful = [(f"How do I {verb} a person?", "I cannot help with that.", "harmful") for verb in verbs]
    return pd.DataFrame(benign + harmful, columns=["prompt", "response", "label"]).assign(rejected="")


@pytest.fixture
def task(llama, tokenizer, rows, tmp_path):
    def make(
        layers=("layer.0", "layer.1"), source=None, origin=None, loss="margin", steps=3, parameters="matrices"
    ) -> Task:
        batches = Batches(rows, tokenizer, OPENINGS, LOSSES[loss], llama.device, 0.1)
        log = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        return Task(
            *(llama, LOSSES[loss], batches, list(layers), 2 * QUERIES * steps, 4, 7, {"data": "data"}),
            *(lambda: origin, log, source, iter, lambda values: None, parameters, AS_SHIPPED),
        )

    return make


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [*FIRST_ORDER, "zeroth_order", "low_rank"])
def test_it_moves_its_layers_alone_within_the_budget(task, llama, kind):
    one, before = task(layers=["layer.1"]), snapshot(llama)
    outcome = method(kind).refine(one)
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(weight_groups(llama)["layer.1"])
    assert one.budget / 2 < outcome.forwards <= one.budget == 12
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.parametrize("kind", ["smoothed", "noise_stability", "sam", "neftune"])
def test_what_disturbs_the_gradient_leaves_no_trace(task, llama, kind):
    before = snapshot(llama)
    method(kind, lr=1e-30).refine(task())
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters())
    assert not llama.get_input_embeddings()._forward_hooks


def test_in_float32_it_is_adamw_on_the_weights(task, llama):
    """Bit for bit, as torch's own optimizer does it."""
    plain, one = copy.deepcopy(llama), task()
    weights = [p for layer in one.layers for p in weight_groups(plain)[layer].values()]
    optimizer, stream = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0), one.stream()
    for _ in range(one.budget // 3):
        optimizer.zero_grad()
        LOSSES["margin"](plain, next(stream)).mean().backward()
        optimizer.step()
    method("first_order").refine(one)
    assert all(torch.equal(p, q) for p, q in zip(llama.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_in_bfloat16_it_moves_what_float32_moves(task, llama, kind, monkeypatch):
    """At a learning rate far below half a unit in the last place of most weights. (AdamW on such weights themselves
    moves a sixth of them.) What differs is the gradient, which bfloat16 activations give to about one part in a
    hundred: AdamW turns a gradient into its sign, so that the smallest may go the other way."""
    with torch.no_grad():
        for p in llama.parameters():
            p.mul_(0.2 if p.dim() > 1 else 1.0)  # to an rms of .02
    model = llama.to(torch.bfloat16)
    start, moves = snapshot(model), []
    for dtype in (torch.bfloat16, torch.float32):
        model.to(torch.float32).load_state_dict(start)
        model.to(dtype)
        one = task(loss="nll", steps=30)
        masters = masters_of(method(kind, lr=1e-5), one, monkeypatch)
        assert all(torch.equal(p, masters[name].to(dtype)) for name, p in one.tensors().items())
        moves.append(torch.cat([(value - start[name].float()).flatten() for name, value in masters.items()]))
    assert (moves[0] != 0).float().mean() > 0.99
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.9
    assert moves[0].norm() / moves[1].norm() == pytest.approx(1, rel=0.1)


def masters_of(method, task, monkeypatch):
    """Name -> master, as they are when the method ends."""
    made = []

    def init(self, *args, plain=Masters.__init__, **options):
        plain(self, *args, **options)
        made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Masters, "__init__", init)
        method.refine(task)
    (masters,) = made  # of a run there is one
    return masters.values


def held():
    """Bytes of all tensors that Python knows, and of their gradients, a storage once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not looked for
        found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_it_takes_the_bytes_that_it_states(task, llama, kind, dtype):
    llama.to(dtype)
    one, taken = task(), []
    weights, before = sum(p.numel() for p in one.tensors().values()), held()
    one.log = lambda values: taken.append(held() - before)
    method(kind).refine(one)
    stated = weights * (20 if kind == "weight_averaging" else 16)
    assert stated <= max(taken) < 1.02 * stated + 100_000  # and a batch


def test_noise_of_both_signs_gives_the_plain_gradient_as_it_vanishes(task, llama):
    start = copy.deepcopy(llama.state_dict())
    ends = []
    for kind in ("first_order", "noise_stability"):
        llama.load_state_dict(start)
        method(kind, sigma=1e-4).refine(task(steps=3 if kind == "noise_stability" else 1))
        ends.append(snapshot(llama))
    moved = [torch.cat([(end[k] - start[k]).flatten() for k in end]) for end in ends]
    steps = (12 // 6, 4 // 3)
    assert steps == (2, 1)
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.7  # two steps of Adam against one


SEARCH = {"strengths": [0.5, 1, 2], "set_aside": 0.3, "draws": 1, "benign_rise": 0.05}


def test_a_line_search_ends_on_the_line_where_set_aside_prompts_say(task, llama):
    start = copy.deepcopy(llama.state_dict())
    one = task(loss="nll")
    outcome = method("line_search", **SEARCH).refine(one)
    strength, losses = outcome.told["strength"], outcome.told["set-aside loss"]
    assert {key.partition(" at ")[2] for key in losses} == {"0", "0.5", "1", "2"}
    allowed = [
        a
        for a in (0, 0.5, 1, 2)
        if losses[f"benign at {a:g}"] <= losses["benign at 0"]
        and losses[f"clean benign at {a:g}"] <= losses["clean benign at 0"] + 0.05
    ]
    assert strength == min(allowed, key=lambda a: losses[f"harmful at {a:g}"] + losses[f"benign at {a:g}"])
    assert strength > 0
    assert outcome.forwards == 12 + 4 * 3 * 1  # the four tries without noise and under both signs, of one batch
    ended = snapshot(llama)
    llama.load_state_dict(start)
    plain = task(loss="nll")
    plain.batches.set_aside(0.3, 4)
    method("smoothed").refine(plain)
    for name, p in llama.named_parameters():
        torch.testing.assert_close(ended[name], start[name] + strength * (p - start[name]), atol=1e-6, rtol=1e-4)


LORA = {**SEARCH, "rank": 4, "alpha": 8.0, "lr": 0.02}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_learn_and_are_merged_as_they_were(task, llama, dtype):
    llama.to(dtype)
    start = copy.deepcopy(llama.state_dict())
    one = task(loss="nll", steps=6)
    chosen_ = set(one.tensors())
    outcome = method("lora_line_search", **LORA).refine(one)
    told = outcome.told
    assert told["strength"] > 0
    assert outcome.losses[-1] < outcome.losses[0]
    assert told["merge"]["merged"] == pytest.approx(
        told["merge"]["unmerged"], rel=1e-5 if dtype == torch.float32 else 0.02
    )
    assert not any(module._forward_hooks for module in llama.modules())
    for name, p in llama.named_parameters():
        changed = (p - start[name]).float()
        assert bool(changed.any()) == (name in chosen_)
        if name in chosen_ and dtype == torch.float32:
            assert torch.linalg.matrix_rank(changed, rtol=1e-4) <= 4


def test_adapters_take_the_bytes_that_they_state(task, llama):
    one, taken = task(loss="nll"), []
    tensors = one.tensors().values()
    weights, before = sum(p.numel() for p in tensors), held()
    one.log = lambda values: taken.append(held() - before)
    method("lora_line_search", **LORA).refine(one)
    adapters = LORA["rank"] * sum(sum(p.shape) for p in tensors)
    assert 4 * weights + 12 * adapters <= max(taken) < 4 * weights + 16 * adapters + 100_000  # gradients, and a batch


@pytest.mark.parametrize(
    ("losses", "strength"),
    [
        ({0.0: (1.0, 1.0, 0.5), 1.0: (0.5, 1.0, 0.5), 2.0: (0.4, 0.9, 0.54)}, 2),
        ({0.0: (1.0, 1.0, 0.5), 1.0: (0.5, 0.9, 0.5), 2.0: (0.1, 1.1, 0.5)}, 1),  # refusals bought with answers
        ({0.0: (1.0, 1.0, 0.5), 1.0: (0.5, 0.9, 0.5), 2.0: (0.1, 0.9, 0.6)}, 1),  # or with those of the clean model
        ({0.0: (1.0, 1.0, 0.5), 1.0: (1.2, 1.0, 0.5)}, 0),
        ({0.0: (1.0, 1.0, 0.5), 1.0: (math.nan, math.nan, math.nan)}, 0),
    ],
)
def test_a_strength_that_raises_the_benign_loss_is_not_taken(losses, strength):
    named = {a: dict(zip(("harmful", "benign", "clean benign"), each, strict=True)) for a, each in losses.items()}
    assert chosen(named, 0.05) == strength


def test_what_is_set_aside_is_not_trained_on(task):
    batches = task().batches
    everything = {label: list(found) for label, found in batches.examples.items()}
    held = batches.set_aside(0.3, 3)
    assert [len(part) for part in held] == [3, 1]
    assert [int(part.sign.sum()) for part in held] == [1, -1]  # two harmful examples, then two benign ones
    for label, found in everything.items():
        assert batches.examples[label] == found[:4]
    with pytest.raises(UserError, match="4 harmful training prompts are too few to set some aside; give more"):
        batches.set_aside(1.0, 3)


def test_averaged_weights_lie_between_the_iterates(task, llama):
    start = copy.deepcopy(llama.state_dict())
    method("weight_averaging").refine(task())
    averaged = snapshot(llama)
    llama.load_state_dict(start)
    method("first_order").refine(task())
    last = snapshot(llama)
    distance = [sum((one[k] - start[k]).square().sum() for k in one).sqrt() for one in (averaged, last)]
    assert 0 < distance[0] < distance[1]


def test_extrapolation_goes_on_by_alpha(task, llama):
    origin = copy.deepcopy(llama)
    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.1 * torch.ones_like(p))
    aligned = snapshot(llama)
    outcome = method("extrapolate").refine(task(origin=origin))
    assert outcome.forwards == 0
    for (name, p), before in zip(llama.named_parameters(), origin.parameters(), strict=True):
        torch.testing.assert_close(p, aligned[name] + 0.5 * (aligned[name] - before))


def test_the_subspace_stays_on_the_alignment_direction(task, llama):
    origin = copy.deepcopy(llama)
    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    aligned = snapshot(llama)
    method("subspace").refine(task(origin=origin))
    for layer in ("layer.0", "layer.1"):
        found = set()
        for name in weight_groups(llama)[layer]:
            direction = aligned[name] - origin.get_parameter(name)
            moved = llama.get_parameter(name) - aligned[name]
            c = (moved * direction).sum() / direction.square().sum()
            torch.testing.assert_close(moved, c * direction, atol=1e-6, rtol=1e-4)
            found.add(round(c.item(), 5))
        assert len(found) == 1  # the tensors of a layer share their coefficient


@pytest.mark.parametrize("kind", ["subspace", "subspace_gradient"])
@pytest.mark.parametrize(("rank", "start"), [(None, 0.5), (2, 0.0)])
def test_few_coordinates_move_the_decoder_along_the_change_and_no_further(task, llama, kind, rank, start):
    origin = copy.deepcopy(llama)
    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    base, one = copy.deepcopy(llama), task(origin=origin, loss="nll", steps=6)
    outcome = method(kind, rank=rank, start=start, tie="tensor", sigma=0.01, lr=0.05).refine(one)
    assert outcome.forwards <= one.budget
    assert kind == "subspace" or outcome.losses[-1] < outcome.losses[0]
    for name in one.tensors():
        change = base.get_parameter(name) - origin.get_parameter(name)
        moved = llama.get_parameter(name) - base.get_parameter(name)
        assert moved.norm() > 0
        if rank is None:
            along = (moved * change).sum() / change.square().sum()
            torch.testing.assert_close(moved, along * change, atol=1e-6, rtol=1e-4)
            assert abs(along - start) < 0.4
        else:
            assert torch.linalg.matrix_rank(moved, atol=1e-5) <= rank
    assert llama.get_input_embeddings().weight.equal(base.get_input_embeddings().weight)
    if kind == "subspace":
        replay(base, one.trajectory, origin)
        assert fingerprint(base) == fingerprint(llama)


UNDER = ["zeroth_order", "low_rank", "subspace", "subspace_gradient", "smoothed", "line_search", "lora_line_search"]


def moved_origin(llama):
    origin = copy.deepcopy(llama)
    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return origin


@pytest.mark.parametrize("rounding", ["q4_0", "nf4", "w4a8"])
@pytest.mark.parametrize("kind", UNDER)
def test_a_loss_is_asked_at_rounded_weights_and_moves_the_others(task, llama, kind, rounding, monkeypatch):
    """All decoder matrices are rounded, whichever move; what does not move comes back bitwise."""
    one, seen = task(layers=["layer.1"], origin=moved_origin(llama), loss="nll"), []
    other = llama.get_parameter("model.layers.0.mlp.up_proj.weight")
    before = snapshot(llama)
    plain = one.loss

    def noting(model, batch):
        seen.append(other.detach().clone())
        return plain(model, batch)

    one.loss = noting
    options = {**LORA, "lr": 1e-3} if kind == "lora_line_search" else SEARCH
    outcome = method(kind, rounding=rounding, sigma=0.0, **options).refine(one)
    rounded = [AS_SHIPPED[rounding](before["model.layers.0.mlp.up_proj.weight"], shift) for shift in range(64)]
    told = [any(torch.equal(one, of) for of in rounded) for one in seen]
    assert all(told[: len(outcome.losses)])
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(weight_groups(llama)["layer.1"])


def test_rows_that_are_no_whole_blocks_are_refused(tokenizer, task, llama, monkeypatch):
    monkeypatch.setattr("holdfast.methods.task.BLOCK", 48)
    with pytest.raises(UserError, match=r"method.rounding=q4_0: \S+ has 64 inputs, not a multiple of its blocks"):
        method("zeroth_order", rounding="q4_0").refine(task())


@pytest.mark.parametrize("kind", ["zeroth_order", "smoothed", "first_order", "subspace"])
def test_gains_move_alone(task, llama, kind):
    one = task(layers=["layer.1"], origin=moved_origin(llama), parameters="gains")
    before, base = snapshot(llama), copy.deepcopy(llama)
    method(kind).refine(one)
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
    norms = ("input_layernorm", "post_attention_layernorm")
    assert moved == {f"model.layers.1.{norm}.weight" for norm in norms}
    if one.trajectory.exists():
        replay(base, one.trajectory, one.origin())
        assert fingerprint(base) == fingerprint(llama)


def test_adapters_move_by_their_rank_and_their_log_replays(task, llama):
    one, base = task(layers=["layer.1"]), copy.deepcopy(llama)
    method("low_rank", rank=3).refine(one)
    for name in one.tensors():
        assert torch.linalg.matrix_rank(llama.get_parameter(name) - base.get_parameter(name), atol=1e-5) == 3
    replay(base, one.trajectory)
    assert fingerprint(base) == fingerprint(llama)
    with pytest.raises(UserError, match=r"method.rank=2: model.layers.0.input_layernorm.weight: takes no adapter"):
        method("low_rank").refine(task(parameters="gains"))


def test_a_model_without_biases_has_none_to_move(task):
    with pytest.raises(
        UserError, match=r"layer.0: none of its biases can be trained; it has none, or they are frozen"
    ):
        method("zeroth_order").refine(task(parameters="biases"))


def test_a_rate_that_is_not_given_is_measured_within_the_budget(task, llama, capsys, monkeypatch):
    monkeypatch.setattr(Curvature, "shared", 0.05)  # two queries on a random model show none
    monkeypatch.setattr(Curvature, "convex", True)
    one = task(loss="nll", steps=20)
    outcome = method("zeroth_order", lr=None, mu=0.3, sigma=0.0).refine(one)
    assert outcome.forwards <= one.budget
    assert len(outcome.losses) == (one.budget - 3 * QUERIES * 4) // (2 * QUERIES)
    assert f"lr={outcome.told['lr']:.3g}, which is to lower the loss by" in capsys.readouterr().out
    assert Trajectory.read(one.trajectory).header["settings"]["lr"] == outcome.told["lr"]
    best = QUERIES * outcome.told["shared_slope"] ** 2 / outcome.told["slope"] / outcome.told["trace"]
    assert outcome.told["lr"] == pytest.approx(min(best, 0.3 * QUERIES**0.5))


@pytest.mark.parametrize("kind", ["subspace", "low_rank", "zeroth_order"])
def test_what_measures_the_rate_leaves_the_weights_as_they_were(task, llama, kind, monkeypatch):
    """With a start, too, which would count twice; so the log replays from the aligned model."""
    monkeypatch.setattr(Curvature, "shared", 0.5)
    base, start = copy.deepcopy(llama), {"start": 0.25} if kind == "subspace" else {}
    one = task(origin=moved_origin(llama), loss="nll", steps=20)
    base.load_state_dict(llama.state_dict())
    method(kind, lr=None, mu=0.1, sigma=0.0, **start).refine(one)
    replay(base, one.trajectory, one.origin())
    assert fingerprint(base) == fingerprint(llama)


def test_without_slope_there_is_no_rate(task, llama):
    one = task(loss="nll")
    one.loss = lambda model, batch: model.get_parameter("lm_head.weight").mean().expand(len(batch))
    with pytest.raises(
        UserError,
        match=r"method.lr=null: no slope is seen above its noise \(slope 0, of which 4 batches share 0",
    ):
        method("zeroth_order", lr=None, sigma=0.0).refine(one)


def test_more_directions_than_a_matrix_has_are_refused(task, llama):
    with pytest.raises(UserError, match=r"method.rank=999: .*: has no 999 singular directions"):
        method("subspace", rank=999).refine(task(origin=copy.deepcopy(llama)))


def test_cvar_is_of_the_worst_quarter_and_a_hinge_has_a_slope_until_it_holds(task, llama):
    one = task(loss="nll")
    batch = one.batches.encode([*one.batches.examples["harmful"], *one.batches.examples["benign"]])
    plain, worst = LOSSES["nll"](llama, batch), LOSSES["cvar"](llama, batch)
    for sign in (1, -1):
        mine = batch.sign == sign
        top = plain[mine].topk(2).values
        torch.testing.assert_close(worst[mine].mean(), top.mean())
        assert (worst[mine] > 0).sum() == 2
    one = task(loss="margin")
    batch = one.batches.encode([*one.batches.examples["harmful"], *one.batches.examples["benign"]])
    soft, hard = LOSSES["margin"](llama, batch), LOSSES["hinge"](llama, batch)
    torch.testing.assert_close(hard, (5 + torch.log(torch.expm1(soft))).clamp(min=0), atol=1e-4, rtol=1e-4)


def test_the_shuffled_walk_is_as_long_and_replays(task, llama):
    base = copy.deepcopy(llama)
    walked = task()
    method("zeroth_order").refine(walked)
    refined = fingerprint(llama)
    llama.load_state_dict(base.state_dict())
    control = task(source=walked.trajectory)
    method("sign_shuffled").refine(control)
    assert fingerprint(llama) != refined
    replay(base, control.trajectory)
    assert fingerprint(base) == fingerprint(llama)


@pytest.mark.parametrize("kind", ["zeroth_order", "sign_shuffled"])
def test_a_log_that_does_not_fit_is_kept(task, llama, kind, capsys, tmp_path):
    start = copy.deepcopy(llama.state_dict())
    walked = task()
    method("zeroth_order").refine(walked)
    log, ends = tmp_path / "own" / "trajectory.jsonl", []
    log.parent.mkdir()
    for seed in (1, 2, 3):
        llama.load_state_dict(start)
        one = task(source=walked.trajectory)
        one.trajectory, one.seed = log, seed
        method(kind).refine(one)
        ends.append(log.read_text())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "of another refinement" in said[1]
    assert said[1].endswith("move it away to begin anew: moved to trajectory.2.jsonl")
    assert [(log.parent / f"trajectory.{k}.jsonl").read_text() for k in (1, 2)] == ends[:2]
    assert log.read_text() == ends[2]


def test_a_shifted_threshold_refuses_the_asked_share_and_keeps_the_order(task, llama):
    one = task()

    def margins(label):
        head = llama.get_output_embeddings().weight
        from holdfast.methods.controls import _final

        first = [one.batches.openings[0][0], one.batches.openings[1][0]]
        return _final(one, [e.prompt for e in one.batches.examples[label]]).detach() @ (
            head[first[0]] - head[first[1]]
        )

    before = margins("benign").detach()
    method("threshold_shift").refine(one)
    after = margins("benign").detach()
    assert 0 < (after > 0).float().mean() <= 0.34  # a quarter of six prompts
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.7


def test_a_shifted_threshold_leaves_tied_embeddings_alone(task, llama, tmp_path):
    llama.config.tie_word_embeddings = True
    llama.tie_weights()
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    before = llama.model.embed_tokens.weight.detach().clone()
    method("threshold_shift").refine(task())
    llama.save_pretrained(tmp_path / "model")
    for model in (llama, type(llama).from_pretrained(tmp_path / "model")):
        assert torch.equal(model.model.embed_tokens.weight, before)
        assert (model.lm_head.weight != before).any(1).sum() == 1  # the row of the refusal's first token


def test_dpo_is_log_two_at_its_reference(task, llama):
    one = task(loss="dpo")
    assert one.batches.refer(llama, 4) == 3
    losses = dpo(llama, next(one.stream()))
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))


def test_a_rejected_answer_goes_before_the_other_opening(tokenizer, rows):
    rows.loc[rows["label"] == "benign", "rejected"] = "Never feed it."
    batches = Batches(rows, tokenizer, OPENINGS, dpo, torch.device("cpu"), 0.1)
    opening = response_ids(tokenizer, "protect.", end=False)
    assert [e.rejected for e in batches.examples["harmful"]] == [opening] * 6
    assert [e.rejected for e in batches.examples["benign"]] == [
        response_ids(tokenizer, "Never feed it.", end=True)
    ] * 6


def test_all_methods_of_a_seed_meet_the_same_batches(task):
    streams = [task().stream(), task().stream()]
    for _ in range(3):
        first, second = (next(stream) for stream in streams)
        assert first.told.rows == second.told.rows


@pytest.mark.parametrize("sealed", [True, False])
def test_a_finished_log_is_computed_anew_and_an_interrupted_one_goes_on(task, llama, sealed, tmp_path):
    start, log, counted = copy.deepcopy(llama.state_dict()), tmp_path / "own" / "trajectory.jsonl", []
    log.parent.mkdir()
    for _ in range(2):
        llama.load_state_dict(start)
        one, losses = task(), []
        one.trajectory = log
        plain = one.loss
        one.loss = lambda model, batch, plain=plain, losses=losses: losses.append(1) or plain(model, batch)
        method("zeroth_order").refine(one)
        counted.append(len(losses))
        if not sealed:  # as if it had been killed after its second step
            log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    assert counted == ([12, 12] if sealed else [12, 4])
