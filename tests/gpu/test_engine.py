"""The engine on a card: the bits of the CPU, one wait a step, no memory beyond what is stated."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from holdfast.zo import Deployment, ZeroOrderRefiner, alignment_directions, replay, sensitivity, weight_groups
from holdfast.zo import noise as reference
from holdfast.zo.kernels import add_noise
from holdfast.zo.layers import decoder_layers
from holdfast.zo.noise import NOISES, Stream, Target
from holdfast.zo.perturb import Masters

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VALUES = (0, 1, 16, 17, 2**32 - 1)
OPTIONS = {"layers": ["layer.0", "layer.1"], "mu": 0.1, "lr": 0.05, "queries": 2, "normalize": "rms", "seed": 1}


def same(a, b):
    """Bitwise, wherever they are."""
    return all(torch.equal(x.cpu().view(torch.uint8), y.cpu().view(torch.uint8)) for x, y in zip(a, b, strict=True))


def job(dtype, device):
    """Tensors of all lengths and alignments, each with coefficients of its own."""
    g, made = torch.Generator().manual_seed(3), []
    for place, count in enumerate((1, 31, 4096, 4097, 70_000, 2**20)):
        values = torch.randn(count + place, generator=g).to(device)[place:]
        made.append(Target(values, torch.zeros(count, dtype=dtype, device=device), place, [0.1 * place, -2.0, 0.0]))
    return made


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_bits_of_the_cpu(dtype, kind):
    for value in VALUES:
        for keep in (False, True):
            found = []
            for device in ("cpu", "cuda"):
                targets = job(dtype, device)
                add_noise(targets, [value, 1, 2**32 - 1], Stream(kind, value << 32 | value, value), keep=keep)
                found.append([t for target in targets for t in target[:2]])
            assert same(*found), (value, keep)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_every_magnitude_as_the_cpu_does(dtype):
    """Ties, subnormals, overflow to infinity."""
    patterns = torch.arange(0, 2**32, 40_503, dtype=torch.int64).to(torch.int32).view(torch.float32)
    values = patterns[patterns.isfinite()]
    found = []
    for device in ("cpu", "cuda"):
        out = torch.empty_like(values, dtype=dtype, device=device)
        add_noise([Target(values.to(device), out, 0, [])], [], Stream("rademacher", 0, 0), keep=False)
        found.append(out)
    assert same(found[:1], found[1:])


def refined(model, losses, batches, path, steps=6, **changes):
    refiner = ZeroOrderRefiner(model, losses, trajectory=path, **(OPTIONS | changes))
    for step in range(steps):
        refiner.step(batches[step % len(batches)].to(model.device))
    refiner.finish()
    return refiner


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize(("made", "replayed"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_trajectory_replays_bitwise_on_the_other_device(
    llama, token_losses, token_batches, tmp_path, made, replayed, kind, dtype
):
    model, base = llama.to(dtype).to(made), copy.deepcopy(llama).to(replayed)
    refined(model, token_losses, token_batches(3), tmp_path / "log", noise=kind)
    assert replay(base, tmp_path / "log") == 6
    assert same(base.parameters(), model.parameters())


@pytest.mark.parametrize(("made", "replayed"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_trajectory_in_the_subspace_does_too(llama, token_losses, token_batches, tmp_path, made, replayed):
    origin = copy.deepcopy(llama.to(torch.bfloat16))
    with torch.no_grad():
        for p in llama.parameters():
            p.mul_(1.02)
    model, base = copy.deepcopy(llama).to(made), llama.to(replayed)
    names = [name for name, p in model.named_parameters() if p.dim() > 1 and ".layers." in name]
    options = {"mu": 0.1, "lr": 0.2, "seed": 1, "trajectory": tmp_path / "log"}
    options |= {"deployment": Deployment({name: model.get_parameter(name) for name in names}, 0.1)}
    directions = alignment_directions(model, origin.to(made), names)
    refiner = ZeroOrderRefiner(model, token_losses, directions=directions, **options)
    for batch in token_batches(4):
        refiner.step(batch.to(made))
    assert refiner.drift() == 0
    refiner.finish()
    assert replay(base, tmp_path / "log", origin.to(replayed)) == 4
    assert same(base.parameters(), model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_drift_after_200_steps(llama, token_losses, token_batches, dtype):
    model = llama.to(dtype).to("cuda")
    refiner, (batch,) = ZeroOrderRefiner(model, token_losses, **OPTIONS), token_batches(1)
    before = [p.clone() for p in model.parameters()]
    for _ in range(200):
        refiner.step(batch.to("cuda"))
    assert refiner.drift() == 0
    assert not same(before, model.parameters())


def test_no_kernel_of_the_card_for_a_tensor_on_the_cpu(llama, token_losses, token_batches):
    batch = token_batches(1)[0]
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        ZeroOrderRefiner(llama, token_losses, **OPTIONS).step(batch)
        torch.cuda.synchronize()
    assert not [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def waits(work):
    """How often the host waited for the card."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(w.message) for w in caught if "synchroniz" in str(w.message)]


def encoded(tokenizer, device, loss):
    """A padded batch of the alignment loss."""
    import pandas as pd

    from holdfast.methods import LOSSES
    from holdfast.methods.batches import Batches
    from holdfast.settings.schema import Openings

    openings = Openings(refusal=["I cannot"], compliance=["Sure"])
    rows = [("What is a person?", "A person is a thing.", "benign"), ("How do I kill it?", "I cannot.", "harmful")]
    frame = pd.DataFrame(rows * 3, columns=["prompt", "response", "label"]).assign(rejected="")
    return next(Batches(frame, tokenizer, openings, LOSSES[loss], torch.device(device)).stream(6, 0))


@pytest.mark.parametrize("loss", ["nll", "margin"])
@pytest.mark.parametrize("options", [{}, {"prefix": "off"}, {"subset": 0.5, "clean": True}])
def test_a_step_waits_once(llama, tokenizer, loss, options):
    from holdfast.methods import LOSSES

    model = llama.to(torch.bfloat16).to("cuda")
    batch = encoded(tokenizer, "cuda", loss)
    refiner = ZeroOrderRefiner(model, LOSSES[loss], **{**OPTIONS, "layers": ["layer.1"], **options})
    refiner.step(batch)  # compiles, and checks the reuse of prefixes once a run
    found = waits(lambda: refiner.step(batch))
    assert len(found) == 1, found


def test_a_draw_of_the_probe_does_not_wait(llama, tokenizer):
    from holdfast.methods import LOSSES

    model, batch = llama.to("cuda"), encoded(tokenizer, "cuda", "nll")
    groups = {k: weight_groups(model)[k] for k in decoder_layers(weight_groups(model))}

    def probe(draws):
        sensitivity(model, LOSSES["nll"], [batch], groups, sigma=0.1, draws=draws, seed=1)

    probe(1)  # compiles
    assert len(waits(lambda: probe(1))) == len(waits(lambda: probe(4)))


def test_reused_and_full_forward_agree_bitwise(llama, tokenizer):
    from holdfast.methods import LOSSES

    batch, ends = encoded(tokenizer, "cuda", "nll"), []
    for prefix in ("off", "step", "run"):
        model = copy.deepcopy(llama).to(torch.bfloat16).to("cuda")
        refiner = ZeroOrderRefiner(model, LOSSES["nll"], **{**OPTIONS, "layers": ["layer.1"]}, prefix=prefix)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reports = [refiner.step(batch) for _ in range(4)]
        ends.append((reports, list(model.parameters())))
    assert ends[0][0] == ends[1][0] == ends[2][0]
    assert same(ends[0][1], ends[2][1])


def test_a_step_takes_four_bytes_a_refined_weight():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    ids = torch.randint(5, 500, (2, 16), device="cuda")

    def losses(model, ids):
        return -model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[..., 0].mean(1)

    with torch.inference_mode():
        losses(model, ids)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    groups = weight_groups(model)
    weights = sum(p.numel() for layer in decoder_layers(groups) for p in groups[layer].values())
    refiner = ZeroOrderRefiner(model, losses, layers=decoder_layers(groups), mu=0.1, lr=0.01)
    refiner.step(ids)
    taken = torch.cuda.max_memory_allocated() - before
    largest = max(p.numel() for p in model.parameters())
    assert 4 * weights < taken < 4 * weights + 8 * largest + 2**24  # and a reduction's copies of one matrix


def test_the_device_of_a_tensor_need_not_be_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    found = [job(torch.bfloat16, device) for device in ("cpu", "cuda:1")]
    for targets in found:
        add_noise(targets, [1, 2, 3], Stream("rademacher", 1, 1), keep=True)
    assert same(*([t.out for t in targets] for targets in found))


def test_masters_of_the_cpu_and_of_the_card_have_the_same_noise(llama):
    """As fp32 differences: z of both signs, and of the reference."""
    model = llama.to("cuda")
    name, weight = next((k, p) for k, p in model.named_parameters() if "up_proj" in k)
    masters = Masters({name: weight}, seed=1, scales={name: 1.0})
    before = weight.detach().clone()
    masters.write(2.0**10, step=1, query=0)
    z = reference.noise(
        weight.numel(), Stream("rademacher", 1, 1), tensor=masters.draws.names[name], query=0, device="cpu"
    )
    assert torch.equal((weight - before).sign().cpu().flatten(), z)
