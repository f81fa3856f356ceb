"""Utility by lm-eval, on a task and data that are local files."""

from __future__ import annotations

import sys

import pytest

from holdfast.errors import UserError
from holdfast.evaluation.harness import harness

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["red", "blue"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def folder(tmp_path):
    file = tmp_path / "colours.jsonl"
    file.write_text("\n".join(f'{{"question": "What is {k}?", "answer": {k % 2}}}' for k in range(6)))
    (tmp_path / "colours.yaml").write_text(TASK.format(file=file))
    return str(tmp_path)


def test_a_local_task_is_scored_on_the_model_in_memory(llama, tokenizer, folder):
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    found = harness(llama, tokenizer, ["colours"], limit=4, batch_size=2, folder=folder)
    assert 0 <= found["colours/acc"] <= 1
    with pytest.raises(UserError, match=r"no_task.*no such task"):
        harness(llama, tokenizer, ["no_task"], limit=1, batch_size=1, folder=folder)


def test_without_lm_eval_the_extra_is_named(llama, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"holdfast\[eval\]"):
        harness(llama, tokenizer, ["arc_easy"], limit=1, batch_size=1, folder=None)
