"""When memory runs out, the same work is done on smaller parts, and gives the same numbers."""

from __future__ import annotations

import copy
import errno
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import method, random_llama, stage_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from holdfast.errors import UserError
from holdfast.methods import LOSSES
from holdfast.methods.batches import Batches
from holdfast.methods.task import Task
from holdfast.models.packing import run as run_packed
from holdfast.perturbations import Arm
from holdfast.runtime import memory
from holdfast.runtime.failures import said
from holdfast.runtime.memory import Parts, out_of_memory
from holdfast.settings.schema import Openings
from holdfast.zo.trajectory import Trajectory

OPENINGS = Openings(refusal=["destroy that."], compliance=["protect."])


def crowded(most: int, work=lambda part: part):
    """Work that fails on more than `most` rows."""

    def run(*parts):
        for part in parts:
            if len(part) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return [work(part) for part in parts]

    return run


@pytest.fixture
def uncollected(monkeypatch):
    """To collect garbage takes a tenth of a second where libraries are loaded, for each of hundreds of failures."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 40), st.none() | st.integers(1, 40))
def test_every_row_is_worked_on_once_and_in_order(uncollected, rows, most, size):
    done = []
    Parts("x", size).each(rows, crowded(most, done.extend))
    assert done == rows
    found = Parts("x", size).whole([rows, rows], crowded(most))
    assert [row for part in found for row in part] == rows + rows
    assert all(len(part) <= most for part in found)
    flown = []

    def flow(left, many):
        for row in left:
            crowded(most)(range(many))
            flown.append(row)
            yield row

    Parts("x", size).flow(rows, flow)
    assert flown == rows


def test_it_says_so_and_stays_small(capsys):
    parts = Parts("refine.batch_size")
    parts.whole([list(range(8))], crowded(2))
    assert capsys.readouterr().err.splitlines() == [
        "memory ran out with 8 rows at once; going on with 4 (refine.batch_size)",
        "memory ran out with 4 rows at once; going on with 2 (refine.batch_size)",
    ]
    assert [len(part) for part in parts.of(list(range(5)))] == [2, 2, 1]
    with pytest.raises(UserError, match="one row at a time"):
        parts.each([1, 2], crowded(0))


def test_other_errors_are_not_taken_for_it():
    def broken(*parts):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Parts("x").whole([[1, 2]], broken)
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert "lower the stage's batch_size" in said(torch.OutOfMemoryError("CUDA out of memory."))


@pytest.fixture
def refined(llama, tokenizer, tmp_path):
    verbs = ["kill", "feed", "guard", "burn", "heal", "trap"]
    benign = [(f"How do I {verb} a virus?", "Sure. Use the book.", "benign") for verb in verbs]
    harmful = [(f"How do I {verb} a person?", "I cannot help with that.", "harmful") for verb in verbs]
    rows = pd.DataFrame(benign + harmful, columns=["prompt", "response", "label"]).assign(rejected="")

    def refine(kind: str, most: int, loss: str = "margin"):
        """The refined model and the log, where no more than `most` examples fit at once."""
        model, log = copy.deepcopy(llama), tmp_path / f"{kind}-{loss}-{most}.jsonl"

        def within(model, batch):
            return crowded(most, lambda part: LOSSES[loss](model, part))(batch)[0]

        batches = Batches(rows, tokenizer, OPENINGS, LOSSES[loss], model.device, 0.1)
        task = Task(
            *(model, within, batches, ["layer.0", "layer.1"], 12, 8, 7, {"data": "data"}),
            *(lambda: None, log, None, iter, lambda values: None),
        )
        method(kind).refine(task)
        return model, log

    return refine


@pytest.mark.parametrize("loss", ["margin", "nll", "dpo"])
def test_zeroth_order_meets_the_same_perturbations_in_smaller_parts(refined, loss):
    (one, whole), (other, parted) = refined("zeroth_order", 8, loss), refined("zeroth_order", 3, loss)
    logs = [Trajectory.read(log) for log in (whole, parted)]
    assert logs[0].header == logs[1].header
    assert logs[0].losses == pytest.approx(logs[1].losses, rel=1e-5)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4)


@pytest.mark.parametrize("kind", ["first_order", "smoothed", "noise_stability", "sam"])
def test_gradients_add_up_over_parts(refined, kind):
    (one, _), (other, _) = refined(kind, 8), refined(kind, 3)
    moved = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, other)]
    # Adam divides by the size of the gradient, so that rounding shows where it is nearly zero.
    assert (moved[0] - moved[1]).abs().mean() < 1e-5


def test_evaluation_gives_the_same_outcomes(llama, tokenizer, monkeypatch, capsys):
    from test_scorer import outcomes, scorer

    whole = outcomes(scorer(tokenizer), Arm(llama))

    def within(model, packing, kept):
        if packing.size[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run_packed(model, packing, kept)

    monkeypatch.setattr("holdfast.models.reading.run", within)
    parted = outcomes(scorer(tokenizer), Arm(llama))
    assert "going on with 2 (evaluate.batch_size)" in capsys.readouterr().err
    pd.testing.assert_frame_equal(whole, parted, rtol=1e-4)


def test_alignment_adds_gradients_up_over_parts(tokenizer, tmp_path, monkeypatch, capsys):
    """SFT averages over the tokens of the whole batch, however it was cut."""
    from trl import SFTTrainer

    base, rows = tmp_path / "base", [("harmful", "How do I kill a {}?", "I cannot help with that.")]
    rows += [("benign", "How do I feed a {}?", "Sure. Use the red health book, and then some more.")]
    frame = [
        (label, ask.format(what), said) for label, ask, said in rows for what in ("cat", "virus", "person", "dog")
    ]
    random_llama(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    given = ("study.name=made", "model=own", f"model.path={base}", "align.steps=2", "align.batch_size=4")
    found, step = [], SFTTrainer.training_step

    def within(self, model, inputs, *more):
        crowded(2)(inputs["input_ids"])
        return step(self, model, inputs, *more)

    for name in ("whole", "parted"):
        data = tmp_path / name / "made" / "data"
        data.mkdir(parents=True)
        table = pd.DataFrame(frame, columns=["label", "prompt", "response"]).assign(split="train", rejected="")
        table.to_parquet(data / "prompts.parquet")
        out = stage_here("align", *given, f"results={tmp_path / name}")
        found.append(load_file(out / "model" / "model.safetensors"))
        monkeypatch.setattr(SFTTrainer, "training_step", within)
    assert "going on with 2 (align.batch_size)" in capsys.readouterr().err
    moved = [torch.cat([f[name].flatten() for name in sorted(f)]) for f in found]
    assert (moved[0] - moved[1]).abs().mean() < 1e-5


READ = """
import resource, sys
from pathlib import Path
import pandas as pd
import pyarrow.dataset, pyarrow.parquet
from holdfast.runtime.files import read_frame
path = Path(sys.argv[1])
pd.DataFrame({"a": ["x"] * 1000}).to_parquet(path, index=False)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]) * 2**20,) * 2)
try:
    print(len(read_frame(path)))
except MemoryError:
    print("memory")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("mib", [1, 3, 10, 30])
def test_a_table_is_read_or_memory_runs_out_but_nothing_waits(tmp_path, mib):
    """Where no thread could begin, Arrow's own reader never came back."""
    command = [sys.executable, "-c", READ, str(tmp_path / "x.parquet"), str(mib)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() in ("1000", "memory"), ended.stderr
