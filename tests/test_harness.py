"""Utility by lm-eval, on a task and data that are local files."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from holdfast.errors import UserError
from holdfast.evaluation.harness import harness
from holdfast.reporting.measured import Measured
from holdfast.reporting.setting import Setting
from holdfast.reporting.tasks import tasks
from holdfast.settings.compose import composed

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


def test_the_table_says_where_a_task_was_run():
    """A metric's own name may hold an @."""
    setting = Setting.of(Measured({}, {}, {}, {}, 0, 0, ""), composed(["study=measure"]))
    scores = {"code/pass@1": 0.6, "code/pass@1@weight_noise/0.1": 0.5, "code/pass@1@nf4/4": 0.4}
    rows = [("own/none", "aligned", 0, task, value) for task, value in scores.items()]
    made = tasks(pd.DataFrame(rows, columns=["model", "method", "seed", "task", "value"]), setting)
    assert made.frame.set_index(["task", "at"])["estimate"].to_dict() == {
        **{("code/pass@1", "clean"): 0.6, ("code/pass@1", "weight noise σ=0.1"): 0.5},
        ("code/pass@1", "quantization nf4"): 0.4,
    }
    assert list(made.shown) == ["task", "at", "model", "method", "score", "Δ aligned"]
