"""The stages' pieces on a card: evaluation as on the CPU, every perturbation, first order, alignment."""

from __future__ import annotations

import copy
import math

import pandas as pd
import pytest
import torch
from conftest import method, point, save_prompts, stage_here

from holdfast.datasets.tokens import prompt_ids, response_ids
from holdfast.evaluation.answers import Scorer
from holdfast.methods import LOSSES, METHODS
from holdfast.methods.batches import Batches
from holdfast.methods.task import Task
from holdfast.perturbations import Arm, Bench, perturbed
from holdfast.settings.compose import composed
from holdfast.settings.paths import CONF, Layout
from holdfast.settings.schema import Openings
from holdfast.zo import fingerprint, weight_groups

pytestmark = pytest.mark.gpu
PROMPTS = ["What is a person?", "What does kill mean?", "What?", "What is a virus, a weed or a tumor?"]
NAMES = sorted(path.stem for path in (CONF / "perturb").glob("*.yaml"))
ON_THE_MODEL = [name for name in NAMES if name not in ("decoding", "prefill")]
IDS = torch.arange(5, 17).view(2, 6)


@pytest.fixture
def bench(tokenizer):
    rows = [(prompt_ids(tokenizer, p), response_ids(tokenizer, "A thing to keep safe.", end=True)) for p in PROMPTS]
    return Bench(7, tokenizer.pad_token_id, lambda label: rows)


def outcomes(tokenizer, model, bench, name):
    rows = [
        {"id": f"{label}{k}", "split": "test", "label": label, "pair": "", "prompt": prompt}
        | {"response": "A thing.", "rejected": ""}
        for label in ("harmful", "benign")
        for k, prompt in enumerate(PROMPTS)
    ]
    cfg = composed(["study=tiny"])
    scorer = Scorer(tokenizer, pd.DataFrame(rows), cfg, cfg.openings.score)
    everything = list(range(len(rows)))
    if name == "none":
        return scorer.outcomes(Arm(model), everything, everything, margins=True)
    with perturbed(model, point(name), bench) as arm:
        return scorer.outcomes(arm, everything, everything, margins=True)


@pytest.mark.parametrize("name", ["none", "weight_noise", "activation_noise", "rtn", "magnitude", "decoding"])
def test_records_are_those_of_the_cpu_to_rounding(llama, tokenizer, bench, name):
    """In float32. A response may part from the other's where two tokens are as likely to the last digits."""
    here, there = (outcomes(tokenizer, copy.deepcopy(llama).to(d), bench, name) for d in ("cpu", "cuda"))
    assert here["margin"].tolist() == pytest.approx(there["margin"].tolist(), rel=1e-3, abs=1e-3)
    assert (here["response"] == there["response"]).mean() >= 0.9
    assert here["utility"].isna().equals(there["utility"].isna())


@pytest.mark.parametrize("name", ON_THE_MODEL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_perturbation_acts_and_restores_bitwise(llama, bench, name, dtype):
    model, ids = llama.to(dtype).to("cuda"), IDS.to("cuda")

    def logits(m):
        with torch.inference_mode():
            return m(input_ids=ids).logits

    before, clean = fingerprint(model), logits(model)
    with perturbed(model, point(name), bench) as arm:
        noisy = logits(arm.model)
    assert not torch.equal(noisy, clean)
    assert torch.isfinite(noisy).all()
    assert fingerprint(model) == before
    assert torch.equal(logits(model), clean)


OTHERS = ("none", "sign_shuffled", "extrapolate", "subspace", "subspace_gradient")  # which need another model or log
KINDS = [kind for kind in METHODS.kinds if kind not in OTHERS]


@pytest.mark.parametrize("kind", KINDS)
def test_methods_move_their_layer_alone(llama, tokenizer, tmp_path, kind):
    model = llama.to(torch.bfloat16).to("cuda")
    openings = Openings(refusal=["destroy that."], compliance=["protect."])
    rows = [(p, "Sure. Use it.", "benign") for p in PROMPTS] + [
        (f"Kill. {p}", "I cannot.", "harmful") for p in PROMPTS
    ]
    frame = pd.DataFrame(rows, columns=["prompt", "response", "label"]).assign(rejected="")
    batches = Batches(frame, tokenizer, openings, LOSSES["nll"], model.device)
    task = Task(
        *(model, LOSSES["nll"], batches, ["layer.1"], 12, 4, 1, {"data": "data"}),
        *(lambda: None, tmp_path / "log", None, iter, lambda values: None),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = method(kind).refine(task)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"lm_head.weight"} if kind == "threshold_shift" else set(weight_groups(model)["layer.1"]))
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.parametrize("recipe", ["sft", "sft_lora", "dpo", "zo"])
def test_a_model_in_half_precision_is_aligned(llama, tokenizer, tmp_path, recipe):
    base = tmp_path / "base"
    llama.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    save_prompts(Layout(str(tmp_path), "made"), 8)
    given = ["study.name=made", "model=own", f"model.path={base}", "model.dtype=auto", f"results={tmp_path}"]
    out = stage_here("align", *given, f"align={recipe}", "align.steps=2", "align.batch_size=4", "align.lr=1e-3")
    after = type(llama).from_pretrained(out / "model")
    assert after.dtype == torch.bfloat16
    assert any(not torch.equal(p, q) for p, q in zip(after.parameters(), llama.parameters(), strict=True))
