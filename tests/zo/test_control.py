"""The sign-shuffled walk: the same lengths and noise, fresh signs, a log of its own."""

from __future__ import annotations

import copy

import pytest
from test_trajectory import refined, same

from holdfast.zo import TrajectoryError, ZeroOrderRefiner, alignment_directions, replay, sign_shuffled
from holdfast.zo.trajectory import Trajectory


@pytest.fixture
def source(llama, token_losses, token_batches, tmp_path):
    """(base model, log of a refinement with subsets)."""
    base = copy.deepcopy(llama)
    refined(llama, token_losses, token_batches(3), tmp_path / "source", 40, subset=0.6, context={"loss": "x"})
    return base, tmp_path / "source"


def test_lengths_are_kept_and_signs_are_fresh(source, llama, tmp_path):
    base, path = source
    before = path.read_bytes()
    walked, other = copy.deepcopy(base), copy.deepcopy(base)
    assert sign_shuffled(walked, path, seed=1, trajectory=tmp_path / "a") == 80  # two queries a step
    sign_shuffled(other, path, seed=2, trajectory=tmp_path / "b")
    assert path.read_bytes() == before
    logs = [Trajectory.read(p) for p in (path, tmp_path / "a", tmp_path / "b")]
    rows = [[c for step in log.steps for c in step] for log in logs]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert list(map(abs, rows[a])) == list(map(abs, rows[b]))
        agreeing = sum(x == y for x, y in zip(rows[a], rows[b], strict=True)) / 80
        assert abs(agreeing - 0.5) < 3 * 0.5 / 80**0.5
    assert not same(walked, other)
    assert not same(walked, llama)
    for key in ("seed", "noise", "subset", "tensors", "base", "kind"):
        assert logs[0].header[key] == logs[1].header[key]
    shuffled = {"loss": "x", "sign_shuffled": {"seed": 1, "source": logs[0].sealed}}
    assert logs[1].header["settings"]["context"] == shuffled


def test_replay_and_resumption_are_bitwise(source, llama, tmp_path):
    base, path = source
    whole, resumed, replayed = (copy.deepcopy(base) for _ in range(3))
    sign_shuffled(whole, path, seed=1, trajectory=tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:20]) + lines[20][:30])
    assert sign_shuffled(resumed, path, seed=1, trajectory=tmp_path / "cut") == 80
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert replay(replayed, tmp_path / "whole") == 40
    assert same(whole, resumed)
    assert same(whole, replayed)
    assert replay(base, path) == 40  # the source is still the refinement's
    assert same(base, llama)


def test_what_cannot_be_shuffled(source, llama, token_losses, token_batches, tmp_path):
    base, path = source
    with pytest.raises(TrajectoryError, match="other base weights"):
        sign_shuffled(llama, path, seed=1, trajectory=tmp_path / "a")
    with pytest.raises(TrajectoryError, match="of another refinement"):
        sign_shuffled(copy.deepcopy(base), path, seed=1, trajectory=path)
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "early").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(TrajectoryError, match="ends early"):
        sign_shuffled(copy.deepcopy(base), tmp_path / "early", seed=1, trajectory=tmp_path / "a")
    directions = alignment_directions(base, llama, ["lm_head.weight"])
    options = {"mu": 0.1, "lr": 0.1, "trajectory": tmp_path / "subspace"}
    refiner = ZeroOrderRefiner(copy.deepcopy(base), token_losses, directions=directions, **options)
    refiner.step(token_batches(1)[0])
    refiner.finish()
    with pytest.raises(TrajectoryError, match="within a subspace"):
        sign_shuffled(base, tmp_path / "subspace", seed=1, trajectory=tmp_path / "a")
    assert not (tmp_path / "a").exists()
