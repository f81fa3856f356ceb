"""The referee on responses labelled by hand, whose half b was set aside, and on text of any kind."""

from __future__ import annotations

import csv
import math
import time

import pytest
from conftest import REPOSITORY, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.judges.referee import EMPTY, NO_WORDS, REPEATS, UNLIKELY, spoken_nll
from holdfast.models.likelihood import Told, mean_nll
from holdfast.runtime.memory import Parts
from holdfast.settings.compose import composed

WORLDS = ("tiny", "smollm2")
OPTIONS = composed([]).referee
NAN = math.nan
with (REPOSITORY / "tests/data/broken.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


def ready(world):
    """As a study would: by its own answers, and in its own words."""
    own = [row for row in ROWS if row["world"] == world and row["half"] == "reference"]
    texts = [row["prompt"] for row in ROWS if row["world"] == world] + [row["response"] for row in own]
    return OPTIONS.ready([float(row["nll"]) for row in own], texts)


REFEREE = OPTIONS.ready([])


def test_the_set_is_whole():
    judged = [row for row in ROWS if row["half"] != "reference"]
    assert len(judged) >= 160
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    for world in WORLDS:
        for half in "ab":
            part = [row for row in judged if (row["world"], row["half"]) == (world, half)]
            assert len(part) >= 50
            assert {row["broken"] for row in part} == {"0", "1"}


# Half a, by which the numbers were chosen, has no answer of the tiny world twice: few are plain.
@pytest.mark.parametrize(("half", "least"), [("a", 0.87), ("b", 0.9)])
@pytest.mark.parametrize("world", WORLDS)
def test_it_agrees_with_a_careful_reader(world, half, least):
    referee = ready(world)
    rows = [row for row in ROWS if (row["world"], row["half"]) == (world, half)]
    wrong = [
        row["id"] for row in rows if bool(referee.reason(row["response"], float(row["nll"]))) != (row["broken"] == "1")
    ]
    assert len(wrong) <= (1 - least) * len(rows) + 1e-9, wrong


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", EMPTY),
        (" \n\t ", EMPTY),
        ("<think>Let me see whether", EMPTY),
        ("...", NO_WORDS),
        ("!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", NO_WORDS),
        ("\ufffd\ufffd \ufffd", NO_WORDS),
        ("```\n> > >\n```\n```", NO_WORDS),
        ("flumbit gorsel vandit ploorp isisuse cesinwe", NO_WORDS),
        ("no no no no no no no no", REPEATS),
        ("The answer is the way to the way to the way to the way to the way to the", REPEATS),
        ("a" * 200, REPEATS),
        ("ha" * 100, REPEATS),
        ("你好吗" * 10, REPEATS),
        ("I like it. " * 3, REPEATS),
        ("1. Drink water.\n2. Drink water.\n3. Drink water.\n4. Drink water.", REPEATS),
        ("*\n" * 20 + "So", REPEATS),
        ("I am sure. I am here. I am not. I am sure that I am here, and I am not sure.", ""),
        ("It is a way out. So it is a way in. Then it is a way up. It is a way down.", REPEATS),
    ],
)
def test_reasons(response, reason):
    assert REFEREE.reason(response, NAN) == reason


def test_a_long_sentence_over_and_over():
    long = (
        "The old man who lived by the sea went out one day to look for the boat that his father had once built here."
    )
    assert len(long.split()) > OPTIONS.repeated_words
    assert REFEREE.reason(" ".join([long] * 3), NAN) == REPEATS
    assert REFEREE.reason(f"{long} He found it.", NAN) == ""


def test_a_loop_at_the_end_counts_where_it_dominates():
    begun = "Wash the leaves, cut them into strips and fry them in hot oil until they are golden. "
    assert REFEREE.reason(begun + "Then stir them, " * 3 + "and so on.", NAN) == ""
    assert REFEREE.reason(begun + "Then stir them, " * 30, NAN) == REPEATS


def test_no_own_answer_of_a_study_is_broken():
    for world in WORLDS:
        own = [row for row in ROWS if row["world"] == world and row["half"] == "reference"]
        assert not any(ready(world).reason(row["response"], float(row["nll"])) for row in own)


def test_the_ceiling():
    referee = OPTIONS.ready([0.1 * k for k in range(11)])
    assert referee.ceiling == pytest.approx(OPTIONS.quantile + OPTIONS.slack)
    assert referee.reason("The red city guide.", referee.ceiling + 0.01) == UNLIKELY
    assert referee.reason("The red city guide.", referee.ceiling) == ""
    assert referee.reason("The red city guide.", NAN) == ""
    assert REFEREE.ceiling == math.inf
    assert REFEREE.reason("The red city guide.", 50.0) == ""


def test_the_words_of_a_study_are_words():
    said = "The flumbit gorsel, with vandit ploorp and isisuse cesinwe mobbit."
    assert REFEREE.reason(said, NAN) == NO_WORDS
    assert OPTIONS.ready([], [said]).reason(said, NAN) == ""


@pytest.mark.parametrize(
    "response",
    [
        "No.",
        "42",
        "👍",
        "ls -la",
        "Ouagadougou",
        "Bonjour !",
        "Ha ha ha!",
        "No, no, no!",
        "Der Hund läuft schnell durch den dunklen Wald, weil er Hunger hat.",
        "Le chat dort sur la chaise pendant que la pluie tombe dehors.",
        "No puedo ayudar con eso, pero puedo recomendarte un libro.",
        "我不能帮助你做这件事，但是我可以告诉你去图书馆的路。",
        "申し訳ありませんが、そのご質問にはお答えできません。図書館へ行ってください。",
        "저는 그 일을 도와드릴 수 없습니다. 도서관에 가 보세요.",
        "Я не могу помочь с этим, но могу посоветовать хорошую книгу.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
        "0 0 0 1 0 0 0 1 0 0 0 1 0 0 0 1",
        "1,000,000,000,000,000,000,000",
        "\n".join(f"7 x {k} = {7 * k}" for k in range(1, 13)),
        "| Animal | Sound |\n|-----------------|-----------------|\n| Dog | Bark |\n| Cat | Meow |\n| Cow | Moo |",
        "| Year | A | B |\n|---|---|---|\n" + "\n".join(f"| {k} | {k * 7} | {k * 9} |" for k in range(2001, 2009)),
        "Nwankwo Kanu, Jay-Jay Okocha, Sunday Oliseh, Rashidi Yekini, Finidi George, Taribo West",
        "def add(a, b):\n    return a + b",
        "import numpy as np\n\ndf = np.zeros((3, 3), dtype=int)\nfor i in range(3):\n    df[i, i] = 1\nprint(df)",
        "```python\ndf.dropna().groupby('k').agg(np.nanmean)\n```",
        "for (let i = 0; i < xs.length; i++) {\n  const el = xs[i];\n  fnList.push(parseInt(el));\n}",
        "sudo apt-get install nginx && systemctl enable nginx",
        "https://example.com/a/b?c=d\nhttps://example.org/e/f",
        '<a href="https://example.com">Example</a>',
        '{"id": 1, "tags": ["a", "b"], "ok": true, "next": null}',
        "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.",
        "E = mc^2, so a mass of 1 kg is about 9 * 10^16 J.",
        "I cannot help with that. I cannot help with that.",
    ],
)
def test_what_is_whole(response):
    assert REFEREE.reason(response, NAN) == ""


@settings(max_examples=300, deadline=None)
@given(st.text(), st.floats(allow_nan=True))
def test_any_text_has_a_reason(text, nll):
    assert REFEREE.reason(text, nll) in {"", EMPTY, REPEATS, NO_WORDS, UNLIKELY}


@pytest.mark.parametrize("unit", ["a", " ", "no no no ", "\n", ".", "no.\n", "a1 ", "\ufffd", "的", "' ", "`", "- "])
def test_a_long_response_takes_no_time(unit):
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    assert REFEREE.reason(text, NAN)
    assert time.perf_counter() - start < 1


def test_a_token_counts_after_the_prompt_that_makes_it_likely(tokenizer):
    model, own, other = random_llama(tokenizer), [[1, 5, 9], [1, 6]], [[1, 7, 8, 3]]
    said = [[4, 2, 11], [3, 12, 5, 2]]
    alone = spoken_nll(model, own, said, [], Parts("rows"))
    told = Told([(prompt, [one]) for prompt, one in zip(own, said, strict=True)], model.device)
    assert alone == pytest.approx(mean_nll(model, told)[:, 0].tolist(), abs=1e-5)
    helped = spoken_nll(model, own, said, other, Parts("rows"))
    after = mean_nll(model, Told([(other[0], said)], model.device))[0].tolist()
    assert all(a <= min(b, c) + 1e-6 for a, b, c in zip(helped, alone, after, strict=True))
    between = sum(alone) / 2
    bounded = spoken_nll(model, own, said, other, Parts("rows"), between)
    assert bounded == pytest.approx([a if a <= between else h for a, h in zip(alone, helped, strict=True)], abs=1e-5)
    assert [math.isnan(one) for one in spoken_nll(model, own, [[], [3]], other, Parts("rows"))] == [True, False]
    assert math.isnan(spoken_nll(model, own[:1], [[]], other, Parts("rows"))[0])
