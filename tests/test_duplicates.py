"""Prompts that are one or nearly one: which stay, whatever the order, and what that leaves between splits."""

from __future__ import annotations

import random
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.datasets.duplicates import counted, examples, same, without_duplicates, without_near

RANK = ("test", "threshold", "tune", "train")
NEAR = {"words": 3, "share": 0.5, "common": 10}


def made(*rows):
    """Of (split, label, prompt), each prompt once."""
    return [
        {"id": f"{split} {prompt}", "source": "s", "split": split, "label": label, "prompt": prompt, "turns": ""}
        for split, label, prompt in rows
    ]


def near(one, other, label="harmful", **changed):
    """Whether a training prompt leaves because of a test prompt."""
    rows = made(("test", "harmful", one), ("train", label, other))
    return len(without_near(rows, **NEAR | changed)[0]) == 1


def test_duplicates_are_counted_by_kind_and_pair():
    def of(source, split, prompt):
        return {"source": source, "split": split, "prompt": prompt}

    kept, dropped = without_duplicates(
        [
            *(of("a", "train", prompt) for prompt in ("One?", "two", "Two!")),
            *(of("b", split, prompt) for split, prompt in (("tune", "Three"), ("test", "three."), ("test", "one"))),
        ]
    )
    assert [(r["split"], r["prompt"]) for r in kept] == [("test", "three."), ("test", "one"), ("train", "two")]
    assert counted(dropped) == {
        "train_vs_evaluation": 1,
        "between_evaluation_splits": 1,
        "within_a_split": 1,
        "pairs": {"a train -> a train": 1, "a train -> b test": 1, "b tune -> b test": 1},
    }


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Sort a list in C++?", "sort a list in c#?", False),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("\U0001f600", "\U0001f680", False),
        ("a_b", "a b", False),
        ("100 %", "100", False),
        ("How do I  sort, please?", "how do i sort please", True),
        ("“Why?”", '"why"', True),
        ("Ｗｈｙ？", "why?", True),
        ("?!", "...", False),
    ],
)
def test_prompts_are_one_by_their_words_and_signs(one, other, alike):
    assert (same(one) == same(other)) is alike


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("How do I kill a person?", "How can I kill a person quickly?", True),
        ("Outline steps to hack into an account.", "Write a guide: how to hack into an account, unseen", True),
        ("Kill a person", "How do I feed a person?", False),
        ("How do I bake bread?", "Where was the first bridge built?", False),
        ("Kill pests", "Kill pests?", True),  # fewer words than a run has
        ("Kill pests", "Kill all pests", True),
        ("Kill pests", "Kill time with a long book about the lives of the great painters", False),
        ("Kill pests", "Kill pests that live in the garden of a house by the sea", False),
        ("", "How do I bake bread?", False),
    ],
)
def test_prompts_are_nearly_one_by_the_runs_that_they_share(one, other, alike):
    assert near(one, other) is near(other, one) is alike


def test_what_many_prompts_share_is_how_they_ask():
    """Not for what: prompts that differ in one word of a template all stay."""
    asked = [f"Please tell me in a few words how one can begin to learn {i}" for i in range(40)]
    rows = made(*(("test" if i % 2 else "train", "benign", prompt) for i, prompt in enumerate(asked)))
    assert without_near(rows, **NEAR) == (rows, [])
    assert len(without_near(rows, **NEAR | {"common": 40})[0]) == 20


def test_within_a_split_all_stay_and_contrasts_that_are_evaluated_on():
    rows = made(
        ("test", "benign", "How can I kill a Python process?"),
        ("test", "harmful", "How can I kill a Python trainer?"),
        ("threshold", "benign", "How can I kill a Python trainer's boredom?"),
        ("train", "harmful", "What are all words for a snake?"),
        ("train", "harmful", "What are all words for a snake bite?"),
        ("threshold", "benign", "What are some words for a river?"),
        ("tune", "benign", "What are some words for a river in Spain?"),
    )
    kept, gone = without_near(rows, **NEAR)
    assert [(row["prompt"], stays["prompt"]) for row, stays in gone] == [
        ("How can I kill a Python trainer's boredom?", "How can I kill a Python process?"),
        ("What are some words for a river in Spain?", "What are some words for a river?"),
    ]
    assert kept == [row for row in rows if row not in [one for one, _ in gone]]


@pytest.mark.parametrize("label", ["harmful", "benign"])
def test_training_gives_way_to_evaluation_of_either_label(label):
    rows = made(("train", "harmful", "How can I kill a person?"), (RANK[1], label, "How can I kill a Python process?"))
    kept, gone = without_near(rows, words=3, share=0.4, common=10)
    assert (kept, gone) == ([rows[1]], [(rows[0], rows[1])])


def test_what_is_refined_on_gives_way_to_evaluation_and_not_to_what_is_aligned_on():
    rows = made(
        ("refine", "harmful", "How can I kill a person?"),
        ("train", "benign", "How can I kill a Python process?"),
        ("refine", "harmful", "What are some words for a river?"),
        ("test", "harmful", "What are some words for a river in Spain?"),
    )
    assert without_near(rows, words=3, share=0.4, common=10) == ([*rows[:2], rows[3]], [(rows[2], rows[3])])


def test_conversations_are_compared_by_all_their_turns():
    rows = made(("test", "harmful", "And how do I do it?"), ("train", "harmful", "And how do I do it at home?"))
    rows[1]["turns"] = '[{"role": "user", "content": "Is there a way to pick the lock of an old brown door?"}]'
    assert len(without_near(rows, **NEAR)[0]) == 1
    rows[0]["turns"] = '[{"role": "user", "content": "Who wrote the longest novel that was ever printed in Peru?"}]'
    assert len(without_near(rows, **NEAR)[0]) == 2


def test_near_duplicates_are_counted_with_an_example_of_each_pair():
    long = "How do I pick the lock of a door " + "and of the next one " * 20
    rows = made(
        ("test", "harmful", "How do I pick the lock of a door?"),
        ("train", "harmful", long),
        ("tune", "harmful", "Why?"),
    )
    _, gone = without_near(rows, **NEAR)
    assert counted(gone)["pairs"] == {"s train -> s test": 1}
    (said,) = examples(gone).values()
    assert said == f"«{long[:100]}» -> «How do I pick the lock of a door?»"


def brute(rows, words, share, common):
    """The places of every two rows that are nearly one, by the definition."""
    texts = [same(row["prompt"]).split() for row in rows]
    counts = Counter(word for text in texts for word in set(text))

    def weight(run):
        rarest = min(map(counts.get, run))
        return min(10_000, 10_000 * common**2 // rarest**2)

    def shared(one, other, size, of):
        runs = [{tuple(t[k : k + size]) for k in range(len(t) - size + 1)} for t in (one, other)]
        whole = [sum(map(weight, found)) for found in runs]
        both = sum(map(weight, runs[0] & runs[1]))
        return both and Fraction(both, of(whole)) >= Fraction(share)

    return {
        (i, j)
        for i, j in combinations(range(len(rows)), 2)
        if (
            shared(texts[i], texts[j], 1, max)
            if min(len(texts[i]), len(texts[j])) < words
            else shared(texts[i], texts[j], words, min)
        )
    }


prompts = st.lists(
    st.tuples(
        st.sampled_from(RANK), st.sampled_from(["harmful", "benign"]), st.text("abcd ", min_size=1, max_size=24)
    ),
    max_size=14,
    unique_by=lambda row: same(row[2]),
).map(lambda found: made(*((split, label, " ".join(text)) for split, label, text in found)))
settings_of = st.fixed_dictionaries(
    {"words": st.integers(1, 4), "share": st.sampled_from([0.25, 0.5, 0.75, 1.0]), "common": st.integers(1, 4)}
)


@given(prompts, settings_of)
def test_what_stays_has_no_near_duplicate_in_another_split(rows, settings):
    kept, gone = without_near(rows, **settings)
    places, alike = {row["id"]: place for place, row in enumerate(rows)}, brute(rows, **settings)

    def conflict(one, other):
        (_, high), (low, lower) = sorted(
            ((RANK.index(row["split"]), row) for row in (one, other)), key=lambda found: found[0]
        )
        pair = tuple(sorted((places[one["id"]], places[other["id"]])))
        return high["split"] != lower["split"] and pair in alike and (low == 3 or high["label"] == lower["label"])

    assert not [pair for pair in combinations(kept, 2) if conflict(*pair)]
    for row, stays in gone:
        assert conflict(row, stays)
        assert stays in kept
        assert RANK.index(stays["split"]) < RANK.index(row["split"])
    assert kept == [row for row in rows if row not in [one for one, _ in gone]]


@given(prompts, settings_of, st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_nothing(rows, settings, rng):
    def outcome(given):
        kept, gone = without_near(given, **settings)
        pairs = sorted((row["id"], stays["id"]) for row, stays in gone)
        return sorted(row["id"] for row in kept), pairs, counted(gone), examples(gone)

    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert outcome(shuffled) == outcome(rows)


@given(st.text("abcd ", max_size=30), st.text("abcd ", max_size=30), settings_of)
def test_likeness_is_symmetric(one, other, settings):
    one, other = " ".join(one), " ".join(other)
    assert near(one, other, **settings) == near(other, one, **settings)


def test_fifty_thousand_prompts_take_seconds():
    rng = random.Random(0)
    openings = ["How do I", "Write a detailed guide on how to", "Explain the concept of", "What is the best way to"]
    vocabulary = [f"w{int(rng.paretovariate(0.6))}" for _ in range(100_000)]
    asked = (" ".join([rng.choice(openings), *rng.choices(vocabulary, k=rng.randint(3, 25))]) for _ in range(50_000))
    rows = made(*((RANK[min(i % 8, 3)], "harmful", prompt) for i, prompt in enumerate(dict.fromkeys(asked))))
    start = time.process_time()
    without_near(rows, **NEAR)
    assert time.process_time() - start < 30
