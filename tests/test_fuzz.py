"""What users hand in, broken at random: every reader takes it or says in one line what is wrong.

`HOLDFAST_FUZZ=4000 pytest -n 0 tests/test_fuzz.py` tries so many cases a reader, where the suite tries some.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct

import pandas as pd
import pytest
import torch
import yaml
from conftest import random_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from test_gguf import written

from holdfast.datasets.files import parsed
from holdfast.datasets.local import build
from holdfast.datasets.tokens import prompts_ids
from holdfast.errors import UserError
from holdfast.models.checkpoints import check, context, dtype_of, ends, shards, tensors
from holdfast.models.gguf import dequantized
from holdfast.models.load import tokenizer_of
from holdfast.settings.compose import composed
from holdfast.zo.trajectory import FORMAT, Trajectory, TrajectoryError, read_directions

CASES = int(os.environ.get("HOLDFAST_FUZZ", "60"))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink a whole file takes minutes
FUZZED = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
FEWER = settings(FUZZED, max_examples=max(30, CASES // 10))

ROWS = [{"prompt": f"How do I feed {k} cats?", "response": "With food.", "id": k} for k in range(6)]
WHOLE = {
    "rows.csv": pd.DataFrame(ROWS).to_csv(index=False).encode(),
    "rows.json": json.dumps(ROWS).encode(),
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "rows.parquet": pd.DataFrame(ROWS).to_parquet(),
}
WEIRD = st.sampled_from(
    [b"\x00", b"\xff\xfe", b'"', b"\n", b"\r", b",", b"[" * 2000, b"{", b"}", b"\\ud800", b"1e999", b"NaN", b"-1"]
)
ODD = st.text(st.characters(codec="utf-8") | st.sampled_from("\x00\x1b\u202e\ufeff{}$=[],:'\"#\\\n"), max_size=40)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with pieces cut out, doubled, overwritten or put in; or others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(whole)))
        end = min(len(whole), start + draw(st.integers(0, 40)))
        whole = (
            whole[:start] + draw(st.one_of(st.binary(max_size=8), WEIRD, st.just(whole[start:end] * 2))) + whole[end:]
        )
    return whole


def one_line(error: BaseException) -> None:
    assert str(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("name", WHOLE)
def test_files_of_prompts(name):
    @FUZZED
    @given(damaged(WHOLE[name]))
    def reads(content):
        try:
            assert parsed(name, content) is not None
        except UserError as error:
            one_line(error)

    reads()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=6,
)
CHATS = st.lists(st.dictionaries(st.sampled_from(["role", "content", "x"]), ODD | VALUES, max_size=3), max_size=4)
OPENINGS = composed(["study=smoke"]).openings.model_dump()
LOCAL = composed(["study=harden", "model=own", "data=local", "data.dir=.", "source=[harmful]"]).data.model_dump()


@FUZZED
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "messages", "response", "id", "label"]), VALUES | CHATS | ODD, max_size=5
        ),
        max_size=5,
    ),
    st.sampled_from([{}, {"response": "response"}, {"id": "id"}, {"label": "label"}]),
)
def test_rows_of_any_values(tmp_path_factory, rows, columns):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.json").write_text(json.dumps(rows))
    data = copy.deepcopy(LOCAL) | {"dir": str(folder)}
    data["sources"]["harmful"]["file"] = "rows.json"
    data["sources"]["harmful"]["columns"] |= {"prompt": "prompt", **columns}
    try:
        build(data, OPENINGS)
    except UserError as error:
        one_line(error)


LOG = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"format": "holdfast trajectory 1", "base": "0", "settings": {}, "tensors": {}, "chain": "0" * 16},
        {"step": 0, "coefficients": ["0x1p-3"], "loss": 1.0, "chain": "1" * 16},
    )
)


@FUZZED
@given(damaged(LOG))
def test_logs(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("log") / "trajectory.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrajectoryError) as error:  # the chain holds for nothing that was not written by us
        Trajectory.read(path)
    one_line(error.value)


RECORDS = st.dictionaries(
    st.sampled_from(
        ["format", "base", "settings", "tensors", "step", "steps", "coefficients", "loss", "rms", "sealed"]
    ),
    VALUES | st.just(FORMAT) | st.integers(0, 2) | st.lists(VALUES | st.just("0x1p-3"), max_size=2),
)


@FUZZED
@given(st.lists(RECORDS, max_size=3))
def test_logs_that_were_edited_with_care(tmp_path_factory, records):
    """Each line chained as ours are."""
    path, chain = tmp_path_factory.mktemp("log") / "trajectory.jsonl", ""
    with path.open("w") as log:
        for record in records:
            chain = hashlib.sha256(f"{chain}{json.dumps(record, sort_keys=True)}".encode()).hexdigest()[:16]
            log.write(json.dumps(record | {"chain": chain}, sort_keys=True) + "\n")
    try:
        Trajectory.read(path)
    except TrajectoryError as error:
        one_line(error)


WEIGHTS = save({"model.embed_tokens.weight": torch.zeros(4, 4), "lm_head.weight": torch.ones(4, 4)})
HEADER = json.loads(WEIGHTS[8 : 8 + struct.unpack("<Q", WEIGHTS[:8])[0]])


@FUZZED
@given(damaged(WEIGHTS))
def test_safetensors(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "directions.safetensors").write_bytes(content)
    for read, expected in (
        (lambda: tensors(folder), UserError),
        (lambda: read_directions(folder / "trajectory.jsonl"), TrajectoryError),
    ):
        try:
            read()
        except expected as error:
            one_line(error)


@FUZZED
@given(
    st.dictionaries(
        st.sampled_from([*HEADER, "x", "__metadata__"]),
        VALUES | st.fixed_dictionaries({"dtype": VALUES, "shape": VALUES, "data_offsets": VALUES}),
        max_size=4,
    ),
    st.integers(-(2**63), 2**64 - 1) | st.none(),
)
def test_headers_of_safetensors(tmp_path_factory, header, length):
    folder = tmp_path_factory.mktemp("model")
    text = json.dumps(header).encode()
    said = len(text) if length is None or length < 0 else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", said) + text + bytes(128))
    try:
        tensors(folder)
    except UserError as error:
        one_line(error)


@FUZZED
@given(
    st.dictionaries(
        st.sampled_from(["config", "index", "generation"]),
        damaged(b'{"dtype": "float32"}') | VALUES.map(lambda value: json.dumps(value).encode()),
        max_size=3,
    )
)
def test_configurations_of_models(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("model")
    names = {"config": "config.json", "index": "model.safetensors.index.json", "generation": "generation_config.json"}
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    for name, content in files.items():
        (folder / names[name]).write_bytes(content)
    for read in (
        lambda: check("given", folder),
        lambda: shards(folder),
        lambda: ends(folder),
        lambda: context(folder),
        lambda: dtype_of(folder),
    ):
        try:
            read()
        except UserError as error:
            one_line(error)


def windows(whole: bytes, *places: int) -> st.SearchStrategy[bytes]:
    """The bytes with some 600 after one of the places damaged."""
    return st.sampled_from(places).flatmap(
        lambda at: damaged(whole[at : at + 600]).map(lambda part: whole[:at] + part + whole[at + 600 :])
    )


def test_gguf_files(tmp_path, tokenizer, monkeypatch):
    """Those of which our own reader of headers takes the header go on to transformers."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "x.gguf"
    written(path, random_model(tokenizer, "llama"), tokenizer, "llama")
    whole = path.read_bytes()

    @FEWER
    @given(windows(whole, 0, 200, whole.index(b"tokenizer.ggml.tokens"), whole.index(b"blk.0."), len(whole) - 600))
    def reads(content):
        path.write_bytes(content)
        try:
            dequantized(path)
        except UserError as error:
            one_line(error)

    reads()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_what_comes_with_a_tokenizer(tmp_path, tokenizer, name):
    random_model(tokenizer, "llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / name
    whole, model = path.read_bytes(), composed(["model=own", f"model.path={tmp_path}"]).model
    jinja = st.lists(st.sampled_from(JINJA) | ODD, max_size=5).map(lambda parts: "".join(parts).encode())

    @FEWER
    @given(damaged(whole) | jinja if name.endswith("jinja") else damaged(whole))
    def reads(content):
        path.write_bytes(content)
        try:
            encoded = tokenizer_of(tmp_path, tmp_path, model)
            prompts_ids(encoded, pd.DataFrame({"prompt": ["How do I feed {{ cats }}?"], "turns": [None]}))
        except UserError as error:
            one_line(error)

    reads()


JINJA = [
    *("{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ ''.__class__.__mro__ }}"),
    *("{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{% if x %}", "{% endif %}", "{{ messages[9].content }}", "{#"),
    *("{{ m['content'] + m['role'] }}", "{% set x = namespace() %}", "{{ range(10 ** 9) }}", "{% include 'x' %}"),
]
KEYS = st.sampled_from(
    ["refine.lr", "refine", "method", "perturb", "data.sources", "model", "seed", "x", "hydra.run.dir"]
)


@FEWER
@given(st.lists(st.builds("{}={}".format, KEYS, ODD) | ODD, min_size=1, max_size=2))
def test_overrides(overrides):
    try:
        composed(["study=smoke", *overrides])
    except UserError as error:
        one_line(error)


OWN_FILES = {
    "method": b"# @package _global_\ndefaults: [zo_all, _self_]\nmethod:\n  select: {rule: top_k, k: 1}\n",
    "perturb": b"own:\n  kind: rtn\n  family: quantization\n  levels: [2]\n  group_size: 32\n  draws: 8\n",
    "study": b"# @package _global_\nstudy:\n  methods: [aligned, &x zo_all]\nseed: ${refine.steps}\n",
}
TREES = st.dictionaries(
    st.sampled_from([*OWN_FILES, "defaults", "own", "kind", "_target_"]) | st.booleans(), VALUES, max_size=3
)


@pytest.mark.parametrize("group", OWN_FILES)
def test_own_yaml(tmp_path, group):
    path = tmp_path / group / "own.yaml"
    path.parent.mkdir()

    @FEWER
    @given(damaged(OWN_FILES[group]) | TREES.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode()))
    def reads(content):
        path.write_bytes(content)
        try:
            composed([f"hydra.searchpath=[{tmp_path}]", f"{group}={'[own]' if group == 'perturb' else 'own'}"])
        except UserError as error:
            one_line(error)

    reads()
