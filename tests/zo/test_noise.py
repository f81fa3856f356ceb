"""Noise is a function of integers: the same bits from every backend, thread count, dtype and slice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.zo import noise as reference
from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import noise, philox

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(reference.NOISES)
STREAM = {"seed": 0, "step": 0, "query": 0, "tensor": 0, "device": CPU}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def philox_by_hand(counter, key):
    """Philox-4x32-10 on Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_is_philox(counter, key):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert [w.item() for w in words] == philox_by_hand(counter, key)


def test_philox_known_answer():
    """The all-ones vector of Random123's known-answer file."""
    ones = (torch.tensor([0xFFFFFFFF]),) * 4
    words = philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))
    assert [w.item() for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@settings(deadline=None)
@given(KINDS, st.integers(0, 3000), st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_noise_is_addressed_by_element(kind, first, count, seed):
    """A shard is a slice of the whole."""
    stream = STREAM | {"seed": seed, "kind": kind}
    whole = noise(first + count, **stream)
    assert torch.equal(noise(count, first=first, **stream), whole[first:])


def test_gaussian_by_hand():
    """The first two elements, from the words of the first block, in exact integers."""
    w = philox_by_hand((0, 5, 7, 3), (11, 2))
    found = noise(2, kind="gaussian", seed=11 + 2 * 2**32, step=3, query=5, tensor=7, device=CPU)
    for k in (0, 1):
        ones, v = bin(w[2 * k]).count("1"), w[2 * k + 1]
        integer = (ones - 16) * 65536 + (v & 0xFFFF) + (v >> 16) - 65535
        assert found[k] == torch.tensor(float(integer)) * reference.GAUSSIAN_UNIT


@pytest.mark.parametrize("kind", reference.NOISES)
def test_moments(kind):
    n = 400_000
    z = noise(n, kind=kind, **STREAM)
    fourth = {"rademacher": 1.0, "gaussian": 2.94}[kind]
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.square().mean() - 1) < 4 * 1.5 / n**0.5
    assert abs(z.pow(4).mean() - fourth) < 4 * 10 / n**0.5


@pytest.mark.parametrize("kind", reference.NOISES)
@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 2**32}, {"step": 1}, {"query": 1}, {"tensor": 1}])
def test_streams_are_uncorrelated(kind, change):
    n = 40_000
    a, b = noise(n, kind=kind, **STREAM), noise(n, kind=kind, **(STREAM | change))
    assert abs((a * b).mean()) < 4 / n**0.5
    assert abs((a[1:] * b[:-1]).mean()) < 4 / n**0.5


def both(count, dtype, coefficients, kernel, *, keep=True, **stream):
    """(values, out) of the reference and of a kernel from the same start."""
    found = []
    start = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for add in (reference.add_noise, kernel):
        values, out = start.clone(), None if dtype is None else torch.full((count,), 7.0, dtype=dtype)
        add(values, out, coefficients, range(len(coefficients)), keep=keep, **stream)
        found.append((values, out))
    return found


@settings(deadline=None, max_examples=60)
@given(
    KINDS,
    st.integers(1, 9000),
    st.sampled_from([None, *DTYPES]),
    st.lists(st.floats(-2, 2, width=32), max_size=3),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    WORDS,
)
def test_cpu_kernel_has_the_bits_of_the_reference(kind, count, dtype, coefficients, keep, seed, tensor):
    a, b = both(count, dtype, coefficients, add_noise, keep=keep, kind=kind, seed=seed, step=9, tensor=tensor)
    assert torch.equal(a[0], b[0])
    assert dtype is None or torch.equal(a[1].view(torch.uint8), b[1].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_kernel_rounds_every_magnitude_as_torch_does(dtype):
    """Ties, subnormals, overflow to infinity: rounding of float32 bit patterns from all over the range."""
    patterns = torch.arange(0, 2**32, 40_503, dtype=torch.int64).to(torch.int32)
    values = patterns.view(torch.float32)
    values = torch.cat([values[values.isfinite()], torch.tensor([65504.0, 65519.9, 65520.0, 2**-24, 2**-25, -0.0])])
    out = torch.empty_like(values, dtype=dtype)
    add_noise(values, out, [], [], kind="rademacher", seed=0, step=0, tensor=0, keep=False)
    assert torch.equal(out.view(torch.uint8), values.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("kind", reference.NOISES)
def test_bits_do_not_depend_on_threads(kind):
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values = torch.zeros(300_001)
            add_noise(values, None, [1.0], [0], kind=kind, seed=3, step=1, tensor=4, keep=True)
            found.append(values)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_triton_kernel_has_the_bits_of_the_reference():
    """In a process of its own: Triton reads at import whether it is to interpret."""
    pytest.importorskip("triton")
    program = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
from test_noise import both, DTYPES
from holdfast.zo.kernels.cuda import add_noise
for kind in ("rademacher", "gaussian"):
    for dtype in (None, *DTYPES):
        for count in (1, 127, 1025, 5000):
            for keep in (True, False):
                stream = dict(kind=kind, seed=2**63 + 5, step=9, tensor=2**32 - 1)
                a, b = both(count, dtype, [0.3, -1.7], add_noise, keep=keep, **stream)
                assert torch.equal(a[0], b[0]), (kind, dtype, count, keep)
                if dtype is not None:
                    assert torch.equal(a[1].view(torch.uint8), b[1].view(torch.uint8)), (kind, dtype, count)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    for kind in reference.NOISES:
        add_noise(torch.zeros(1000), None, [1.0], [0], kind=kind, seed=3, step=1, tensor=4, keep=True)
    assert torch.equal(before, torch.get_rng_state())
