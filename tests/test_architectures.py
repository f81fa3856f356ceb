"""Every architecture goes the engineer's path: aligned, probed, refined, evaluated, packaged, on a random model of two
layers as save_pretrained writes it."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, SIZE, point, random_model, save_prompts, stage_here
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from holdfast.commands.replay import main as replay
from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.models.card import Shown
from holdfast.models.package import package, tensors
from holdfast.perturbations import Bench, perturbed
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.zo import weight_groups

REFUSED = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mixtral": {**SIZE, "num_local_experts": 2},
    "qwen3_moe": {**SIZE, "num_experts": 2, "moe_intermediate_size": 16},
    "gemma3": {
        "text_config": {**SIZE, "vocab_size": 500, "head_dim": 16},
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 14},
    },
}
ON_WEIGHTS = ("weight_noise", "rtn", "gguf", "w4a4", "magnitude", "wanda", "int8", "nf4", "benign_finetuning")
FAST = ("study.name=made", "model=own", "study.models=[own]", "align=sft", "align.steps=2", "align.batch_size=4")
FAST += ("study.aligns=[sft]", "study.methods=[aligned,zo_selective]", "study.seeds=[0]", "claims.judged=[sft]")
FAST += ("probe.draws=1", "probe.prompts=4", "probe.batch_size=4", "probe.online.steps=1", "refine.steps=2")
FAST += ("refine.queries=2", "refine.batch_size=4", "perturb=[weight_noise,rtn]", "perturb.weight_noise.levels=[0.3]")
FAST += ("perturb.rtn.levels=[4]", "perturb.rtn.draws=1", "evaluate.max_new_tokens=4", "tables.make=[main]")
FAST += ("tables.resamples=50", "tables.coverage.studies=10")


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_by_name(kind, tokenizer, tmp_path):
    """Where only a part of it would be perturbed: in the engine, by every perturbation, and as a stage loads it."""
    changes = REFUSED[kind] if kind == "gemma3" else {**REFUSED[kind], "vocab_size": 500}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes))
    name = type(model).__name__
    with pytest.raises(ValueError, match=f"^{name}: .*supported are decoders of Llama's form"):
        weight_groups(model)
    for perturbation in (*ON_WEIGHTS, "activation_noise"):
        with pytest.raises(UserError, match=f"^{name}: "), perturbed(model, point(perturbation), Bench(0, 0)):
            raise AssertionError
    if kind != "gemma3":  # whose processor would have to be saved with it
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=f"^{tmp_path}: {name}: ") as raised:
            models.load(tmp_path, composed(["model=own"]).model)
        assert "\n" not in str(raised.value)


def test_a_quantized_checkpoint_is_refused(tokenizer, tmp_path):
    random_model(tokenizer, "llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match=r"is quantized already \(gptq\); give the model that it was made from"):
        models.load(tmp_path, composed(["model=own"]).model)


def test_packed_weights_are_not_taken_for_weights(llama):
    """Integers are in no group; a perturbation of the decoder names the first of them."""
    layer = llama.model.layers[1].mlp
    packed = torch.zeros(8, 8, dtype=torch.uint8)
    layer.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    llama.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    groups = weight_groups(llama)
    assert not [name for name in (*groups["layer.0"], *groups["layer.1"]) if "up_proj" in name]
    for name in ON_WEIGHTS:
        with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight: holds uint8, .*quantized already"):
            perturbed(llama, point(name), Bench(0, 0)).__enter__()


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_a_perturbation_reaches_every_matrix_of_the_decoder(kind, name, tokenizer):
    """Frozen ones too: what happens to a model after alignment does not ask what was trained."""
    model = random_model(tokenizer, kind).requires_grad_(False)
    matrices = {k: p.clone() for k, p in model.named_parameters() if ".layers." in k and p.dim() > 1}
    rows = [([5, 6, 7, 8, 9], [10, 11, 12])] * 4
    level = {"benign_finetuning": 2, "wanda": 0.5, "magnitude": 0.5}.get(name)
    with perturbed(model, point(name, level), Bench(0, tokenizer.pad_token_id, lambda label: rows)) as arm:
        after = dict(arm.model.named_parameters())
        same = [k for k, p in matrices.items() if after[k].shape == p.shape and torch.equal(after[k], p)]
    assert not same
    assert all(torch.equal(p, matrices[k]) for k, p in model.named_parameters() if k in matrices)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A study's folder of data."""
    layout = Layout(str(tmp_path_factory.mktemp("results")), "made")
    save_prompts(layout, 8)
    return layout.data


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_goes_all_the_way(kind, data, tokenizer, tmp_path):
    base = tmp_path / "base"
    random_model(tokenizer, kind).save_pretrained(base)
    tokenizer.save_pretrained(base)
    given = [*FAST, f"results={tmp_path}", f"model.path={base}"]
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "data").symlink_to(data, target_is_directory=True)
    aligned = stage_here("align", *given)
    stage_here("probe", *given)
    refined = stage_here("refine", *given, "method=zo_selective")
    for method in ("aligned", "zo_selective"):
        stage_here("evaluate", *given, f"method={method}")
        records = pd.read_parquet(stage_here("judge", *given, f"method={method}") / "records.parquet")
        scored = (records["draw"] == 0) & (records["split"] != "tune")
        assert records["margin"].notna().equals(scored)
    stage_here("tables", *given)
    out = tmp_path / "hardened"
    package(refined, base, str(base), composed(given), Shown("", "", ""), out)
    assert tensors(out) == {name: t for name, t in tensors(base).items() if name in tensors(out)}
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, refined / "model"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    card = (out / "README.md").read_text()
    assert "weights" in card
    assert json.loads((refined / "metrics.json").read_text())["layers"][0] in card
    replay([f"base={aligned / 'model'}", f"trajectory={out / 'trajectory.jsonl'}", f"out={tmp_path / 'again'}"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
