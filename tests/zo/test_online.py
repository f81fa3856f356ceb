"""Random layer subsets: drawn by the counter, in the log, and enough to tell the layers' sensitivity."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
import torch
from test_trajectory import refined, same

from holdfast.zo import TrajectoryError, ZeroOrderRefiner, online_sensitivity, replay, weight_groups
from holdfast.zo.perturb import Masters
from holdfast.zo.trajectory import Trajectory

CURVATURES = [4.0, 1.0, 0.25, 2.0, 0.5]


class Stack(torch.nn.Module):
    """½ Σ_l h_l |w_l|² + Σ_l w_l·w_{l+1}: known curvature of every layer, and terms between neighbours."""

    def __init__(self, coupling: float = 0.3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.model, self.coupling = torch.nn.Module(), coupling
        self.model.layers = torch.nn.ModuleList(torch.nn.Linear(64, 1, bias=False) for _ in CURVATURES)
        for layer in self.model.layers:
            layer.weight.data = torch.randn(1, 64, generator=g)

    def get_input_embeddings(self):
        return torch.nn.Embedding(1, 1)

    def loss(self, *_):
        w = [layer.weight[0] for layer in self.model.layers]
        own = sum(0.5 * h * x.square().sum() for h, x in zip(CURVATURES, w, strict=True))
        return (own + self.coupling * sum((a * b).sum() for a, b in pairwise(w))).reshape(1)


def observed(model, *, steps, **options):
    """(rises, masks) of a refinement of all layers, and what each layer's rise is in theory."""
    layers = [f"layer.{k}" for k in range(len(CURVATURES))]
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss(), layers=layers, mu=0.3, clean=True, **options)
    scales = list(refiner.masters.draws.scales.values())
    reports = [refiner.step(None) for _ in range(steps)]
    rises = torch.tensor([rise for r in reports for rise in r.rises])
    masks = torch.tensor([[layer in mask for layer in layers] for r in reports for mask in r.masks])
    expected = torch.tensor([0.5 * 0.3**2 * h * s**2 * 64 for h, s in zip(CURVATURES, scales, strict=True)])
    return rises, masks, expected.double()


def test_it_is_exact_where_layers_do_not_interact():
    rises, masks, expected = observed(Stack(coupling=0.0), steps=5, lr=0.001, queries=8, subset=0.5)
    assert torch.allclose(online_sensitivity(rises, masks), expected, rtol=1e-3)


def test_terms_between_layers_average_out():
    rises, masks, expected = observed(Stack(), steps=100, lr=0.0002, queries=8, subset=0.5)
    found = online_sensitivity(rises, masks)
    assert found.argsort().tolist() == expected.argsort().tolist()
    assert torch.allclose(found, expected, atol=0.15 * expected.max().item())


def test_too_few_evaluations_are_refused():
    with pytest.raises(ValueError, match="5 evaluations cannot tell 5 groups apart"):
        online_sensitivity(torch.zeros(5), torch.ones(5, 5, dtype=torch.bool))


def test_reports_without_clean_and_subset():
    report = ZeroOrderRefiner(Stack(), lambda m, _: m.loss(), layers=["layer.3", "layer.1"], mu=0.1, lr=0.0).step(None)
    assert report.rises == []
    assert report.masks == [["layer.3", "layer.1"]]


def test_subsets_have_their_share_and_are_never_empty(llama):
    named = {k: p for group in weight_groups(llama).values() for k, p in group.items()}
    masters = Masters(named, seed=1, subset=0.3)
    found = [mask for step in range(200) for mask in masters.draws.subsets(range(4), step=step)]
    groups = {"model.embed_tokens.weight", "layer.0", "layer.1", "lm_head.weight"}
    empty = 0.7 ** len(groups)  # of these, one group is put in
    for group in groups:
        share = sum(group in mask for mask in found) / len(found)
        assert abs(share - (0.3 + empty / len(groups))) < 6 * 0.5 / len(found) ** 0.5
    assert min(map(len, found)) == 1
    assert max(map(len, found)) > 1
    again = Masters(dict(reversed(named.items())), seed=1, subset=0.3).draws.subsets([3], step=7)
    assert set(again[0]) == set(masters.draws.subsets([3], step=7)[0])
    assert found != [
        m for step in range(200) for m in Masters(named, seed=2, subset=0.3).draws.subsets(range(4), step=step)
    ]


def test_tensors_outside_are_their_masters_and_do_not_move(llama):
    named = {k: p for group in weight_groups(llama).values() for k, p in group.items()}
    before = {k: p.clone() for k, p in named.items()}
    masters = Masters(named, seed=1, subset=0.5)
    for step in range(6):
        (inside,) = masters.draws.subsets([0], step=step)
        masters.write(0.1, step=step, query=0)
        assert {masters.draws.groups[k] for k, p in named.items() if not torch.equal(p, before[k])} == set(inside)
    masters.restore()
    (inside,) = masters.draws.subsets([0], step=3)
    masters.move([0.1], step=3)
    assert {masters.draws.groups[k] for k, p in named.items() if not torch.equal(p, before[k])} == set(inside)


@pytest.mark.parametrize("subset", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(subset):
    with pytest.raises(ValueError, match="subset="):
        ZeroOrderRefiner(Stack(), lambda m, _: m.loss(), layers=["layer.1"], mu=0.1, lr=0.0, subset=subset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_and_resumption_are_bitwise(llama, token_losses, token_batches, tmp_path, dtype):
    base, batches, options = llama.to(dtype), token_batches(3), {"subset": 0.4, "clean": True, "queries": 3}
    whole, cut, resumed = (copy.deepcopy(base) for _ in range(3))
    refined(whole, token_losses, batches, tmp_path / "whole", 12, **options)
    refined(cut, token_losses, batches, tmp_path / "cut", 7, finish=False, **options)
    with (tmp_path / "cut").open("ab") as log:
        log.write(b'{"chain": "torn')
    refined(resumed, token_losses, batches, tmp_path / "cut", 12, **options)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(whole, resumed)
    with pytest.raises(TrajectoryError, match="its subset differs"):
        refined(copy.deepcopy(base), token_losses, batches, tmp_path / "cut", 12, queries=3)
    assert not same(whole, base)
    assert replay(base, tmp_path / "whole") == 12
    assert same(whole, base)


def test_a_log_of_before_there_were_subsets(llama, token_losses, token_batches, tmp_path):
    """Its header says neither kind nor subset: it is replayed and resumed as one of all tensors."""
    base, batches, path = copy.deepcopy(llama), token_batches(3), tmp_path / "log"
    refined(llama, token_losses, batches, path, 4)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[0]["kind"], records[0]["subset"]
    log = Trajectory(tmp_path / "old", {})
    for record in records:
        log._write({k: v for k, v in record.items() if k != "chain"})
    again = copy.deepcopy(base)
    assert refined(again, token_losses, batches, tmp_path / "old", 4).steps == 4
    assert same(again, llama)
    assert replay(base, tmp_path / "old") == 4
    assert same(base, llama)
