"""Noise is a function of integers: the same bits from every backend, thread count, dtype and slice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.zo import noise as reference
from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import Stream, Target, noise, philox

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(reference.NOISES)
AT = {"seed": 0, "step": 0, "query": 0, "tensor": 0}


def drawn(count, *, kind, seed, step, query, tensor, first=0):
    return noise(count, Stream(kind, seed, step), tensor=tensor, query=query, device=CPU, first=first)


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
    stream = AT | {"seed": seed, "kind": kind}
    whole = drawn(first + count, **stream)
    assert torch.equal(drawn(count, first=first, **stream), whole[first:])


def test_gaussian_by_hand():
    """The first two elements, from the words of the first block, in exact integers."""
    w = philox_by_hand((0, 5, 7, 3), (11, 2))
    found = drawn(2, kind="gaussian", seed=11 + 2 * 2**32, step=3, query=5, tensor=7)
    for k in (0, 1):
        ones, v = bin(w[2 * k]).count("1"), w[2 * k + 1]
        integer = (ones - 16) * 65536 + (v & 0xFFFF) + (v >> 16) - 65535
        assert found[k] == torch.tensor(float(integer)) * reference.GAUSSIAN_UNIT


@settings(deadline=None, max_examples=20)
@given(KINDS, st.integers(0, 2**64 - 1), WORDS, WORDS, WORDS)
def test_moments(kind, seed, step, query, tensor):
    """Bounds of six standard errors: 20 examples stay within them for any seed that hypothesis may try."""
    n = 100_000
    z = drawn(n, kind=kind, seed=seed, step=step, query=query, tensor=tensor)
    fourth, spread = {"rademacher": (1.0, 0.0), "gaussian": (2.94, 9.5)}[kind]
    assert abs(z.mean()) < 6 / n**0.5
    assert abs(z.square().mean() - 1) < 6 * 1.5 / n**0.5
    assert abs(z.pow(4).mean() - fourth) < 0.01 + 6 * spread / n**0.5


@settings(deadline=None, max_examples=40)
@given(KINDS, st.integers(0, 2**64 - 1), WORDS, st.sampled_from(sorted(AT)), st.integers(1, 2**32 - 1))
def test_streams_are_uncorrelated(kind, seed, place, change, by):
    """Streams that differ in one of seed, step, query and tensor, in place and one element apart."""
    n = 40_000
    at = AT | {"seed": seed, "tensor": place}
    other = at | {change: (at[change] + by) % 2 ** (64 if change == "seed" else 32)}
    a, b = drawn(n, kind=kind, **at), drawn(n, kind=kind, **other)
    assert abs((a * b).mean()) < 6 / n**0.5
    assert abs((a[1:] * b[:-1]).mean()) < 6 / n**0.5


def test_words_about_tensors_are_of_blocks_of_their_own():
    """Block, query, tensor and step of the counter, in the shape (queries, tensors)."""
    stream = Stream("gaussian", 11 + 2 * 2**32, 3)
    for block in (reference.SUBSET, reference.COIN, reference.DIRECTION):
        found = reference.words(block, stream, tensors=[7, 2**32 - 1], queries=range(4, 7))
        expected = [[philox_by_hand((block, q, t, 3), (11, 2))[0] for t in (7, 2**32 - 1)] for q in range(4, 7)]
        assert found.tolist() == expected
    assert reference.words(reference.COIN, stream, tensors=[1], queries=[]).shape == (0, 1)


def both(count, dtype, coefficients, kernel, *, keep, stream, tensor=5, offset=0):
    """(values, out) of the reference and of a kernel from the same start; `out` begins at any element."""
    found = []
    start = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for add in (reference.add_noise, kernel):
        values, out = start.clone(), torch.full((count + offset,), 7.0, dtype=dtype)[offset:]
        add([Target(values, out, tensor, coefficients)], range(len(coefficients)), stream, keep=keep)
        found.append((values, out))
    return found


def same(a, b):
    """Bitwise."""
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    KINDS,
    st.integers(1, 9000),
    st.sampled_from(DTYPES),
    st.lists(st.floats(-2, 2, width=32), max_size=3),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    WORDS,
    st.integers(0, 9),
)
def test_cpu_kernel_has_the_bits_of_the_reference(kind, count, dtype, coefficients, keep, seed, tensor, offset):
    stream = Stream(kind, seed, 9)
    assert same(*both(count, dtype, coefficients, add_noise, keep=keep, stream=stream, tensor=tensor, offset=offset))


@settings(deadline=None, max_examples=30)
@given(KINDS, st.lists(st.integers(1, 30_000), min_size=1, max_size=6), st.integers(1, 5))
def test_tensors_of_one_job_do_not_touch_each_other(kind, counts, threads):
    """Many tensors at once, by any number of threads, are each what they are alone."""
    stream, before = Stream(kind, 1, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outs = [torch.zeros(count) for count in counts]
        job = [Target(torch.zeros(o.numel()), o, place, [0.5]) for place, o in enumerate(outs)]
        add_noise(job, [3], stream, keep=False)
    finally:
        torch.set_num_threads(before)
    for place, out in enumerate(outs):
        assert torch.equal(out, 0.5 * noise(out.numel(), stream, tensor=place, query=3, device=CPU))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_kernel_rounds_every_magnitude_as_torch_does(dtype):
    """Ties, subnormals, overflow to infinity: rounding of float32 bit patterns from all over the range."""
    patterns = torch.arange(0, 2**32, 40_503, dtype=torch.int64).to(torch.int32)
    values = patterns.view(torch.float32)
    values = torch.cat([values[values.isfinite()], torch.tensor([65504.0, 65519.9, 65520.0, 2**-24, 2**-25, -0.0])])
    out = torch.empty_like(values, dtype=dtype)
    add_noise([Target(values, out, 0, [])], [], Stream("rademacher", 0, 0), keep=False)
    assert torch.equal(out.view(torch.uint8), values.to(dtype).view(torch.uint8))


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    for kind in reference.NOISES:
        add_noise([Target(torch.zeros(1000), torch.zeros(1000), 4, [1.0])], [0], Stream(kind, 3, 1), keep=True)
    assert torch.equal(before, torch.get_rng_state())
