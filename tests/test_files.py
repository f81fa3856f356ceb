"""Files as spreadsheets, scripts and chat tools write them: read in full, or refused with the row."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.datasets import local
from holdfast.datasets.files import parsed
from holdfast.datasets.sources import read
from holdfast.errors import UserError
from holdfast.settings.compose import composed

PROMPTS = ["How do I, say, harm a person?", 'Say "no"', "Two\nlines; and more"]
USER, ANSWER = {"role": "user", "content": "How do I start?"}, {"role": "assistant", "content": " Like so. "}
SYSTEM = {"role": "system", "content": "Be kind."}


def source(**changes):
    found = composed(["data=local"]).data.sources["harmful"].model_dump()
    return found | changes | {"columns": found["columns"] | changes.get("columns", {})}


def rows_of(tmp_path, name: str, content: str | bytes, **changes):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read("mine", source(file=name, **changes), str(tmp_path))[0]


def written(rows, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_from_a_spreadsheet(tmp_path, delimiter, mark):
    """With a byte order mark, the separator of its country, an empty column and empty rows at the end."""
    lines = [["prompt", "note", ""], *([p, "x", ""] for p in PROMPTS), ["", "", ""], []]
    frame = rows_of(tmp_path, "x.csv", mark + written(lines, delimiter))
    assert frame["prompt"].tolist() == PROMPTS
    assert frame["row"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt\nHow do I stop?\nHow do I, say, start?\n", "row 2 has 3 fields, the header 1; .* quotes around it"),
        ("prompt,note\nHow do I, say, start?,x\nWhat?,y\n", "row 1 has 4 fields, the header 2"),
        ("note,prompt\nx,What?\ny\n", "row 2 has 1 fields, the header 2"),
        ('prompt\n"What?\nWho?\n', "not readable as csv"),
        ("prompt,prompt\na,b\n", "the column prompt occurs twice"),
        ("prompt,note\nWhat?,x\n,\n,y\n", "row 3 has an empty prompt"),
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("prompt\n", "holds no rows"),
        (b"prompt\ncaf\xe9\n", "byte 10 is not UTF-8"),
        ("prompt\nWhat?\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_csv_that_would_lose_text_is_refused_with_its_row(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        rows_of(tmp_path, "x.csv", content)
    assert "\n" not in str(error.value)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), max_size=6))
def test_a_csv_as_it_was_written(cells):
    frame = parsed("x.csv", written([["a", "b"], *cells]).encode())
    assert frame[["a", "b"]].values.tolist() == [row for row in cells if any(row)]


@given(st.binary(max_size=200), st.sampled_from(["csv", "json", "jsonl", "parquet"]))
def test_bytes_are_a_table_or_one_line(content, suffix):
    said = ""
    try:
        parsed(f"x.{suffix}", content)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("jsonl", '{"prompt": "a"}\n{"prompt": \n', "row 2: "),
        ("jsonl", '{"prompt": "a"}\n\n["a"]\n', "row 3 is no object with columns"),
        ("json", '[{"prompt": "a"}, 3]', "row 2 is no object with columns"),
        ("json", "3", "neither a list of rows nor an object of columns"),
        ("json", '{"prompt": 3}', "not readable as json"),
        ("json", "[" * 100_000, "not readable as json"),
        ("jsonl", '{"prompt": "\\ud800"}', "row 1 holds half of a surrogate pair"),
    ],
)
def test_json_is_refused_with_its_row(tmp_path, suffix, content, message):
    with pytest.raises(UserError, match=message) as error:
        rows_of(tmp_path, f"x.{suffix}", content)
    assert "\n" not in str(error.value)


def chats(tmp_path, turns, column="messages", suffix="jsonl", **changes):
    frame = pd.DataFrame({column: turns})
    if suffix == "csv":
        return rows_of(tmp_path, "x.csv", written([[column], *([json.dumps(one)] for one in turns)]), **changes)
    if suffix == "parquet":
        frame.to_parquet(tmp_path / "x.parquet")
        return read("mine", source(file="x.parquet", **changes), str(tmp_path))[0]
    return rows_of(tmp_path, f"x.{suffix}", frame.to_json(orient="records", lines=suffix == "jsonl"), **changes)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_messages_are_read_as_turns(tmp_path, suffix, column):
    one, empty = [USER, ANSWER], [SYSTEM, USER, {"role": "assistant", "content": ""}]
    several = [SYSTEM, USER, ANSWER, {"role": "user", "content": "And then?"}]
    frame = chats(tmp_path, [one, empty, several], column, suffix)
    assert frame["prompt"].tolist() == ["How do I start?", "How do I start?", "And then?"]
    assert frame["response"].tolist() == ["Like so.", "", ""]
    earlier = [json.loads(turns) if turns else [] for turns in frame["turns"]]
    assert earlier == [[], [SYSTEM], [SYSTEM, USER, {"role": "assistant", "content": "Like so."}]]


def test_chosen_and_rejected_may_be_turns_too(tmp_path):
    rows = [{"prompt": [USER], "chosen": [ANSWER], "rejected": [USER, {"role": "assistant", "content": "No."}]}]
    columns = {"response": "chosen", "rejected": "rejected"}
    frame = rows_of(tmp_path, "x.json", json.dumps(rows), columns=columns)
    assert frame[["prompt", "response", "rejected"]].values.tolist() == [["How do I start?", "Like so.", "No."]]


def test_content_may_be_parts_of_text(tmp_path):
    parts = [{"type": "text", "text": "How do"}, {"type": "text", "text": "I start?"}]
    assert chats(tmp_path, [[{"role": "user", "content": parts}]])["prompt"].tolist() == ["How do\nI start?"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "tool", "content": "3"}], "has a turn of the role tool; there are system, developer, user, assis"),
        ([SYSTEM, ANSWER], "holds no user turn that an answer could follow"),
        ([USER, ANSWER, ANSWER], "holds no user turn that an answer could follow"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "has a turn with other content than text"),
        ([{"role": "user", "content": ""}], "has an empty prompt"),
    ],
)
def test_turns_that_are_no_prompt_are_refused_with_their_row(tmp_path, turns, message):
    with pytest.raises(UserError, match=f"data.sources.mine: row 2 {message}"):
        chats(tmp_path, [[USER], turns])


def test_conversations_are_one_by_all_their_turns(tmp_path):
    """And a row keeps them, with its number and category, wherever it goes."""
    ends = [f"And then number {i}?" for i in range(40)]
    first = {"role": "user", "content": "How do I stop?"}
    rows = [
        {"messages": [start, ANSWER, {"role": "user", "content": e}], "kind": "a"}
        for start in (USER, first)
        for e in ends
    ]
    (tmp_path / "harmful.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    (tmp_path / "benign.csv").write_text(written([["prompt"], *([f"How do I help friend {i}?"] for i in range(60))]))
    given = ["data=local", f"data.dir={tmp_path}", "data.pretrain_rows=20", "data.near_duplicates=null"]
    own = ["data.sources.harmful.file=harmful.jsonl", "+data.sources.harmful.columns.category=kind"]
    cfg = composed([*given, *own])
    found, report = local.build(cfg.data.model_dump(), cfg.openings.model_dump())
    harmful = [row for row in found if row["label"] == "harmful"]
    assert len(harmful) == 80 == len({row["id"] for row in harmful}) == len({row["pair"] for row in harmful})
    assert report["duplicates"]["within_a_split"] == 1
    assert {row["category"] for row in harmful} == {"a"}
    assert sorted(row["row"] for row in harmful) == list(range(1, 81))
    assert {len(json.loads(row["turns"])) for row in harmful} == {2}
    taught = [row for row in found if row["split"] == "pretrain" and row["turns"]]
    assert taught
    assert {row["prompt"] for row in taught} <= set(ends)
