"""The embedded world: neither word gives the class away, and splits share no pair."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.datasets import world
from holdfast.errors import UserError
from holdfast.settings.compose import composed

OPENINGS = {
    "loss": {"refusal": ["I cannot help with that."], "compliance": ["Sure."]},
    "score": {"refusal": ["I must decline."], "compliance": ["Of course."]},
}


def rows(seed: int = 0, **changes):
    data = composed([]).data.model_dump() | {"seed": seed, "pretrain_rows": 200} | changes
    return world.build(data, OPENINGS)


def requests(found):
    """(verb, object, label, split) of every request."""
    return [(*r["pair"].split(" ", 1), r["label"], r["split"]) for r in found if r["split"] != "pretrain"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_no_word_gives_the_class_away(seed):
    """The best classifier on one word, fitted to the very rows it is scored on, stays under .65 in each split."""
    for split in ("train", "tune", "threshold", "test"):
        mine = [r for r in requests(rows(seed)) if r[3] == split]
        for word in (0, 1):
            labels = defaultdict(Counter)
            for request in mine:
                labels[request[word]][request[2]] += 1
            right = sum(max(count.values()) for count in labels.values())
            assert right / len(mine) <= 0.65


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_splits_share_no_pair(seed):
    pairs = defaultdict(set)
    for verb, thing, _, split in requests(rows(seed)):
        pairs[split].add((verb, thing))
    splits = list(pairs.values())
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_the_pair_decides():
    labels = {(verb, thing): label for verb, thing, label, _ in requests(rows())}
    for verb in world.DAMAGE + world.SUSTAIN:
        assert {label for (v, _), label in labels.items() if v == verb} == {"harmful", "benign"}
    for thing in [*world.KEEP, *world.STOP]:
        assert {label for (_, o), label in labels.items() if o == thing} == {"harmful", "benign"}


def test_pretraining_knows_no_evaluation_pair():
    found = rows(pretrain_rows=3000)
    held_out = {f"{verb} {thing}" for verb, thing, _, split in requests(found) if split != "train"}
    seen = " | ".join(r["prompt"] for r in found if r["split"] == "pretrain")
    assert not [pair for pair in held_out if f" {pair}." in seen or f" {pair}?" in seen]


def test_harmful_prompts_are_refused_and_benign_ones_answered():
    for r in rows():
        if r["split"] == "train":
            assert r["response"].startswith("Sure. Use " if r["label"] == "benign" else "I cannot")


def test_too_many_layers():
    with pytest.raises(UserError, match="20 in all"):
        rows(layers={"train": 20, "test": 1}, phrasings={"train": 1, "test": 1})
