"""The CUDA kernel without a card: it compiles for every argument that a launch may bring, and its interpreted bits are
those of the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product

import pytest
import torch
from test_noise import DTYPES

from holdfast.zo.noise import NOISES, Stream, Target

pytest.importorskip("triton")

TARGETS = (80, 90, 100)  # Ampere, Hopper, Blackwell
VALUES = (0, 1, 16, 17, 2**32 - 1)  # 1 and multiples of 16 are what Triton makes constants of


def launched(value, kind, dtype, keep, count):
    """Arguments of `add_noise` with the value for tensor, query, step and both halves of the seed."""
    out = torch.zeros(count, dtype=dtype)
    return [Target(torch.zeros(count), out, value, [0.5])], [value], Stream(kind, value << 32 | value, value), keep


@pytest.fixture
def compilations(monkeypatch):
    """What `add_noise` would compile in place of a launch: a list of (source, options of a target)."""
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    from holdfast.zo.kernels import cuda

    found = {}

    def run(*args, grid, warmup, **kwargs):
        for number in TARGETS:
            target = cuda.triton.backends.compiler.GPUTarget("cuda", number, 32)
            backend = make_backend(target)
            bind = create_function_from_signature(cuda.kernel.signature, cuda.kernel.params, backend)
            bound, specialization, rest = bind(*args, **kwargs)
            options, signature, constants, attributes = cuda.kernel._pack_args(
                backend, {**kwargs, "debug": False}, bound, specialization, rest
            )
            source = ASTSource(cuda.kernel, signature, constants, attributes)
            found.setdefault((number, source.hash()), (source, target, options))

    monkeypatch.setattr(cuda.kernel, "run", run)
    return found


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("keep", [False, True])
def test_it_compiles_for_every_launch(compilations, kind, keep):
    """One compilation a target, type and alignment, whatever the numbers. What is not aligned takes a path that the
    aligned have too, for their last tile, and is compiled for one target."""
    from triton import compile

    from holdfast.zo.kernels.cuda import add_noise

    for dtype, value, count in product(DTYPES, VALUES, (1, 16, 17, 8192)):
        targets, queries, stream, keep = launched(value, kind, dtype, keep, count)
        add_noise(targets, queries, stream, keep=keep)
        shifted = targets[0]._replace(values=torch.zeros(count + 1)[1:])
        add_noise([shifted], queries, stream, keep=keep)
    for source, target, options in compilations.values():
        aligned = dict(source.constants)[(11,)]
        if target.arch != 90 and not aligned:
            continue
        assembly = compile(source, target=target, options=options.__dict__).asm["ptx"]
        assert f"sm_{target.arch}" in assembly
        assert "fma.rn.f32" not in assembly  # a product and its sum are two roundings
        wide = re.search(r"ld\.global\S*\.v4", assembly) is not None
        assert wide == aligned  # one thread loads 16 bytes at once
    assert len(compilations) == len(TARGETS) * len(DTYPES) * 2


INTERPRETED = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
from test_cuda_kernel import VALUES, launched
from test_noise import DTYPES, Stream, Target, both, same
from holdfast.zo import noise
from holdfast.zo.kernels.cuda import add_noise
for kind in ("rademacher", "gaussian"):
    for dtype in DTYPES:
        for count in (1, 127, 4096, 5000):
            for keep in (True, False):
                stream = Stream(kind, 2**63 + 5, 9)
                found = both(count, dtype, [0.3, -1.7], add_noise, keep=keep, stream=stream, tensor=2**32 - 1)
                assert same(*found), (kind, dtype, count, keep)
        for value in VALUES:
            for add in (add_noise, noise.add_noise):
                targets, queries, stream, keep = launched(value, kind, dtype, True, 300)
                add(targets, queries, stream, keep=keep)
                found.append(targets[0][:2])
            assert same(*found[-2:]), (kind, dtype, value)
    # Tensors of several types and alignments, two of five tiles, with coefficients of their own.
    jobs = []
    for add in (add_noise, noise.add_noise):
        job, g = [], torch.Generator().manual_seed(3)
        for place, (count, dtype) in enumerate([(5, DTYPES[0]), (1, DTYPES[0]), (9000, DTYPES[1]), (9000, DTYPES[1])]):
            values, out = torch.randn(count + place, generator=g)[place:], torch.zeros(count, dtype=dtype)
            job.append(Target(values, out, place, [0.1 * place, -2.0, 0.0]))
        add(job, [4, 2**32 - 1, 0], Stream(kind, 1, 1), keep=True)
        jobs.append([t for target in job for t in target[:2]])
    assert same(*jobs)
"""


def test_interpreted_it_has_the_bits_of_the_reference():
    """In a process of its own: Triton reads at import whether it is to interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_all_tensors_of_a_type_are_one_launch(monkeypatch):
    from holdfast.zo.kernels import cuda

    launches = []
    monkeypatch.setattr(cuda.kernel, "run", lambda *args, grid, **kwargs: launches.append(grid))
    job = [Target(torch.zeros(n), torch.zeros(n), n, [1.0]) for n in (16, 2048, 2064, 4096)]
    cuda.add_noise(job, [0], Stream("rademacher", 1, 1), keep=False)
    assert launches == [(1 + 1 + 2 + 2,)]
