"""A refinement is its log: replayed bitwise, resumed after a kill, refused when it is not what was written."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from holdfast.zo import Deployment, TrajectoryError, ZeroOrderRefiner, alignment_directions, replay

OPTIONS = {"layers": ["layer.0", "layer.1"], "mu": 0.1, "lr": 0.05, "queries": 2, "normalize": "rms", "seed": 3}


def refined(model, losses, batches, path, steps, *, finish=True, **changes):
    refiner = ZeroOrderRefiner(model, losses, trajectory=path, **(OPTIONS | changes))
    for step in range(refiner.steps, steps):
        refiner.step(batches[step % len(batches)])
    if finish:
        refiner.finish()
    return refiner


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def losses(token_losses):
    return token_losses


@pytest.fixture
def batches(token_batches):
    return token_batches(3)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_200_updates_are_replayed_bitwise(llama, losses, batches, tmp_path, dtype, noise):
    base = copy.deepcopy(llama.to(dtype))
    refiner = refined(llama, losses, batches, tmp_path / "log", 200, noise=noise)
    assert refiner.drift() == 0
    assert not same(base, llama)
    assert replay(base, tmp_path / "log") == 200
    assert same(base, llama)
    assert (tmp_path / "log").stat().st_size < 60_000


def test_replay_in_another_process(llama, losses, batches, tokenizer, tmp_path, stage):
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    refined(llama, losses, batches, tmp_path / "log", 3)
    ended = stage("replay", f"base={tmp_path}/base", f"trajectory={tmp_path}/log", f"out={tmp_path}/out")
    assert ended.returncode == 0, ended.stderr
    assert same(type(llama).from_pretrained(tmp_path / "out"), llama)


@pytest.mark.parametrize("torn", [0, 1, 30, None])
def test_a_resumed_run_ends_in_the_bytes_of_an_uninterrupted_one(llama, losses, batches, tmp_path, torn):
    """`torn` bytes of the last record are left; None: the record is whole."""
    whole, cut, resumed = (copy.deepcopy(llama) for _ in range(3))
    refined(whole, losses, batches, tmp_path / "whole", 6)
    refined(cut, losses, batches, tmp_path / "cut", 4, finish=False)
    if torn is not None:
        lines = (tmp_path / "cut").read_bytes().splitlines(keepends=True)
        (tmp_path / "cut").write_bytes(b"".join(lines[:-1]) + lines[-1][:torn])
    refined(resumed, losses, batches, tmp_path / "cut", 6)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(resumed, whole)
    refined(llama, losses, batches, tmp_path / "whole", 6)  # a sealed log is replayed, and left as it is
    assert same(llama, whole)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("kind", ["weights", "subspace"])
def test_a_resumed_run_takes_its_scales_from_the_log(llama, losses, batches, tmp_path, monkeypatch, kind):
    """A new reduction may differ in its last bit, by the number of threads for one."""
    from holdfast.zo import ZeroOrderRefiner, perturb

    origin = copy.deepcopy(llama)
    with torch.no_grad():
        for p in llama.parameters():
            p.mul_(1.01)

    def refiner(model):
        if kind == "weights":
            return ZeroOrderRefiner(model, losses, trajectory=tmp_path / "log", **OPTIONS)
        names = [name for name, p in model.named_parameters() if ".layers." in name and p.dim() > 1]
        named = dict(model.named_parameters())
        options = {"mu": 0.1, "lr": 0.05, "seed": 3, "trajectory": tmp_path / "log"}
        options |= {"deployment": Deployment({name: named[name] for name in names}, 0.1)}
        return ZeroOrderRefiner(model, losses, directions=alignment_directions(model, origin, names), **options)

    base, begun = copy.deepcopy(llama), refiner(llama)
    begun.step(batches[0])
    computed = perturb._scales
    monkeypatch.setattr(perturb, "_scales", lambda t: {k: s * (1 + 1e-7) for k, s in computed(t).items()})
    resumed = refiner(base)
    assert resumed.steps == 1
    assert resumed.masters.draws.scales == begun.masters.draws.scales
    if kind != "weights":  # the noise that its losses are asked under too
        assert resumed.moves.noise.scales == begun.moves.noise.scales
    assert same(base, llama)


def test_a_file_that_is_no_log_is_left_alone(llama, losses, batches, tmp_path):
    (tmp_path / "log").write_text("notes of mine")
    with pytest.raises(TrajectoryError, match="not a log of a refinement; move it away"):
        refined(llama, losses, batches, tmp_path / "log", 1)
    assert (tmp_path / "log").read_text() == "notes of mine"


def test_a_log_of_which_nothing_is_whole_begins_anew(llama, losses, batches, tmp_path):
    (tmp_path / "log").write_bytes(b'{"format": "hold')
    assert refined(llama, losses, batches, tmp_path / "log", 1).steps == 1


def altered(path, line, change):
    """Rewrite one record as `change` has it, its chain left alone."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line])
    change(record)
    lines[line] = json.dumps(record, sort_keys=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (0, lambda r: r.update(seed=4)),
        (0, lambda r: r["settings"].update(lr=1.0)),
        (1, lambda r: r["coefficients"].__setitem__(0, (1.0).hex())),
        (2, lambda r: r.update(loss=0.0)),
        (3, lambda r: r.update(step=7)),
        (4, lambda r: r.update(sealed="0")),
    ],
)
def test_an_edited_log_is_refused(llama, losses, batches, tmp_path, line, change):
    base = copy.deepcopy(llama)
    refined(llama, losses, batches, tmp_path / "log", 3)
    altered(tmp_path / "log", line, change)
    with pytest.raises(TrajectoryError, match=f"line {line + 1} is not what was written"):
        replay(base, tmp_path / "log")


def test_a_removed_or_swapped_record_is_refused(llama, losses, batches, tmp_path):
    base = copy.deepcopy(llama)
    refined(llama, losses, batches, tmp_path / "log", 3)
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    for changed in (lines[:1] + lines[2:], [lines[0], lines[2], lines[1], *lines[3:]]):
        (tmp_path / "log").write_text("".join(changed))
        with pytest.raises(TrajectoryError, match="edited"):
            replay(base, tmp_path / "log")


def test_a_log_that_ends_early_and_a_wrong_base_are_refused(llama, losses, batches, tmp_path):
    base = copy.deepcopy(llama)
    refined(llama, losses, batches, tmp_path / "log", 3, finish=False)
    with pytest.raises(TrajectoryError, match="ends early, after step 3"):
        replay(base, tmp_path / "log")
    refined(copy.deepcopy(base), losses, batches, tmp_path / "log", 3)
    with torch.no_grad():
        base.model.norm.weight[0] += 1e-6  # a tensor that is not refined
    with pytest.raises(TrajectoryError, match="other base weights"):
        replay(base, tmp_path / "log")


@pytest.mark.parametrize("change", [{"lr": 0.06}, {"seed": 4}, {"noise": "gaussian"}, {"layers": ["layer.0"]}])
def test_resuming_another_refinement_is_refused(llama, losses, batches, tmp_path, change):
    refined(copy.deepcopy(llama), losses, batches, tmp_path / "log", 1, finish=False)
    with pytest.raises(TrajectoryError, match="of another refinement"):
        refined(llama, losses, batches, tmp_path / "log", 2, **change)


KILLED = """
import sys; sys.path[:0] = {paths!r}
import torch, warnings
from conftest import random_llama
from test_trajectory import refined
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained({base!r})
def losses(model, ids):
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
g = torch.Generator().manual_seed(1)
batches = [torch.randint(5, 100, (3, 12), generator=g) for _ in range(3)]
from pathlib import Path
refined(model, losses, batches, Path({log!r}), 60)
model.save_pretrained({out!r})
"""


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_bytes(llama, tmp_path):
    """Each of 20 seeded runs is killed at a random step, resumed, and compared with an uninterrupted one."""
    import random

    llama.save_pretrained(tmp_path / "base")
    here = os.path.dirname(__file__)

    def start(name):
        places = {"base": f"{tmp_path}/base", "log": f"{tmp_path}/{name}.log", "out": f"{tmp_path}/{name}"}
        program = KILLED.format(paths=[here, os.path.dirname(here)], **places)
        return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)

    assert start("whole").wait(120) == 0
    expected = (tmp_path / "whole.log").read_bytes()
    killed = 0
    for seed in range(20):
        victim, log = start(f"k{seed}"), tmp_path / f"k{seed}.log"
        aim = random.Random(seed).randrange(1, 60)
        while victim.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= aim):
            time.sleep(0.001)
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            killed += 1
        victim.wait()
        assert start(f"k{seed}").wait(120) == 0
        assert log.read_bytes() == expected
        assert (tmp_path / f"k{seed}/model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()
    assert killed >= 15
