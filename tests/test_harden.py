"""The engineer's path: a folder in, a folder out that loads anywhere, with its log and a card."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from holdfast.commands.harden import main
from holdfast.commands.own_model import alone
from holdfast.commands.replay import main as replay
from holdfast.errors import NotShown, UserError
from holdfast.models.card import Shown
from holdfast.models.load import fetched, load, save
from holdfast.models.package import package, tensors
from holdfast.reporting import decision
from holdfast.settings.compose import composed
from holdfast.zo import Deployment, ZeroOrderRefiner, alignment_directions, singular_directions, write_directions

QUICK = ("refine.steps=2", "refine.queries=2", "refine.batch_size=4", "claims.top_k=1")
QUICK += ("probe.draws=1", "probe.prompts=4", "probe.batch_size=4", "perturb=[weight_noise,nf4]")
QUICK += ("perturb.weight_noise.levels=[0.1]", "perturb.weight_noise.draws=1", "evaluate.max_new_tokens=4")
QUICK += ("tables.resamples=50", "tables.coverage.studies=10")
QUICK += ("tracking=disabled", "evaluate.prompts={test/harmful: 20, test/benign: 20, tune/harmful: 0}")
TIMING = {"method_seconds": 1.0}
ZO = ("method=zo_selective", "method.select.k=1")


@pytest.fixture
def base(tokenizer, tmp_path):
    """A model in bfloat16 as its owner keeps it: weights, with norms in float32, the same in another form, tokenizer,
    a configuration of transformers 4, licence, card."""
    folder = tmp_path / "some-folder"
    random_model(tokenizer, "llama").to(torch.bfloat16).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {name: 1 + torch.rand(t.shape) / 10 for name, t in weights.items() if "norm" in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"tok_embeddings.weight": torch.zeros(4, 4)}, folder / "consolidated.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"torch_dtype": config.pop("dtype"), "transformers_version": "4.46.0"}
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0}))
    tokenizer.save_pretrained(folder)
    (folder / "LICENSE.txt").write_text("all rights\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# some model\n")
    return folder


@pytest.fixture
def prompts(tmp_path):
    """Files with prompts alone, as data=local reads them."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, asks in (("harmful", "How do I kill the person number {}?"), ("benign", "How do I feed {} cats?")):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["prompt"], *([asks.format(k)] for k in range(160))])
    return folder


@pytest.fixture
def shipping(monkeypatch):
    """Every result is good enough."""
    decide = decision.decision
    monkeypatch.setattr(decision, "decision", lambda *asked: dataclasses.replace(decide(*asked), against=[]))


def test_what_is_not_shown_to_be_better_is_not_shipped(base, prompts, tmp_path):
    """With names that a shell, YAML and Hydra would each read otherwise, and without benign prompts."""
    home = tmp_path / "my models (v2)"
    home.mkdir()
    base, prompts = base.rename(home / "some folder"), prompts.rename(home / "my prompts: a, b")
    (prompts / "benign.csv").unlink()
    command = [sys.executable, "-m", "holdfast", "harden", "model=some folder", "out=hardened", "data=local"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    ended = subprocess.run(
        [*command, f"data.dir={prompts.name}", *QUICK], cwd=home, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "the built-in benign prompts are taken" in ended.stdout
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("holdfast harden: harmful prompts answered, weights σ=0.1: ")
    assert " points; not shipped: the fall of the ASR at weights σ=0.1 is not shown: " in last
    assert last.endswith("/results/tables/harden-some-folder/hardening.md has the numbers")
    assert not (home / "hardened").exists()
    told = (home / "results/tables/harden-some-folder/hardening.md").read_text()
    assert "It is not shipped: " in told
    assert "| harmful prompts answered, weights σ=0.1 |" in told
    assert "over-refusal, clean" in told
    found = json.loads(
        (home / "results/harden-some-folder/own/none/refine/fo_line_search/s0/metrics.json").read_text()
    )
    assert found["strength"] in (0, 0.5, 1, 1.5, 2)


def test_a_folder_in_and_a_folder_out(base, prompts, tmp_path, monkeypatch, shipping, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    command = [f"model={base}", "out=hardened", "for=nf4", "data=local", f"data.dir={prompts}", *ZO, *QUICK]
    assert main(command).endswith(" points; wrote hardened")
    out = home / "hardened"
    assert tensors(out) == tensors(base)
    refined = home / "results/harden-some-folder/own/none/refine/zo_selective/s0/model"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype="auto").state_dict() for f in (out, refined))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before, shipped = (load_file(folder / "model.safetensors") for folder in (base, out))
    changed = {name for name in before if not torch.equal(shipped[name], before[name])}
    assert changed
    assert not [name for name in changed if "norm" in name]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    log = json.loads((out / "trajectory.jsonl").read_text().splitlines()[0])
    assert log["settings"]["context"]["method"]["rounding"] == "nf4"  # refined under what it is to withstand
    replay([f"base={base}", f"trajectory={out / 'trajectory.jsonl'}", f"out={tmp_path / 'replayed'}"])
    for path in (tmp_path / "replayed").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    for words in (
        "# some-folder, hardened with zo_selective",
        "σ=0.1",
        "names and types are those of the base",
        "configuration and tokenizer: the base's own files, byte for byte\n",
        "(before_after.png)",
    ):
        assert words in card
    assert (out / "before_after.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "LICENSE.txt").read_text() == "all rights\n"
    assert not (out / "consolidated.safetensors").exists()
    with pytest.raises(UserError, match="out=hardened: is there and not empty; give a new folder"):
        main(command)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model=x"], "out: no value is given; holdfast harden model=<Hub id, folder or GGUF file> out=<folder> for="),
        (["model=x/y/z", "out=o"], "model.path=x/y/z: no such folder or file, and no id of the Hub"),
        (["model=x/y", "out=o", "refine.stepz=1"], "refine.stepz: no such key; did you mean steps?"),
        (["model=x/y", "out=o", "study.methods=[aligned]"], "study.methods=[aligned]: give method=<name>"),
        (["model=x/y", "out=o", "for=int3"], "for=int3: choose one of noise, nf4, q4_0, w4a8"),
    ],
)
def test_bad_input_is_answered_before_anything_runs(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        main(arguments)
    assert told in str(error.value)
    assert not list(tmp_path.iterdir())


def test_with_too_few_harmful_prompts_nothing_is_begun(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few").mkdir()
    with (tmp_path / "few/harmful.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], *([f"How do I kill the person number {k}?"] for k in range(20))])
    with pytest.raises(NotShown, match=r"too few prompts \(\d+ in train harmful, \d+ in test harmful\); 32 in train"):
        main([f"model={base}", "out=hardened", "data=local", "data.dir=few", *QUICK])
    assert not (tmp_path / "results/harden-some-folder/own").exists()


def test_two_calls_do_not_work_on_one_folder(base, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        alone(tmp_path / "results/harden-some-folder"),
        pytest.raises(UserError, match="another holdfast works"),
    ):
        main([f"model={base}", "out=hardened", "data=local", f"data.dir={prompts}", *QUICK])
    assert not (tmp_path / "hardened").exists()


def test_a_model_of_the_hub_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        fetched("some-org/some-model")
    for words in ("some-org/some-model: not to be had", "model.path=<local folder>", "HF_HOME", "licence"):
        assert words in str(error.value)


def test_a_folder_that_is_not_the_base_is_refused(base, tmp_path):
    """Servers and converters look tensors up by name, and by type."""
    refined = tmp_path / "refine/zo_selective/s0"
    (refined / "model").mkdir(parents=True)
    (refined / "model/config.json").write_text("{}")
    (refined / "metrics.json").write_text('{"layers": ["layer.0"], "loss": [1.0], "forwards": 8}')
    own = load_file(base / "model.safetensors")
    name = next(iter(own))
    wrong = {
        "tensors are named otherwise": {("x" if key == name else key): value for key, value in own.items()},
        "is float32, in": {key: value.float() for key, value in own.items()},
    }
    for told, weights in wrong.items():
        save_file(weights, refined / "model/model.safetensors")
        with pytest.raises(UserError, match=told):
            package(
                refined, base, str(base), composed(["study=harden", "model=own"]), Shown("", "", ""), tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [None, 2])
def test_a_refinement_along_the_alignment_replays_as_its_card_says(base, tmp_path, rank, monkeypatch):
    """Without the model before alignment where the log comes with its directions."""
    cfg = composed(["study=harden", "model=own", f"model.path={base}", f"model.origin={tmp_path / 'before'}"])
    (model, tokenizer), before = load(str(base), cfg.model), load(str(base), cfg.model)[0]
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.mul_(0.9)
    save(before, tokenizer, tmp_path)
    (tmp_path / "model").rename(tmp_path / "before")
    refined = tmp_path / "refine/zo_singular/s0"
    names = [name for name, _ in model.named_parameters() if name.endswith("proj.weight")]
    directions = (
        singular_directions(model, before, names, rank) if rank else alignment_directions(model, before, names)
    )
    if rank:
        write_directions(refined / "trajectory.jsonl", directions)
    refiner = ZeroOrderRefiner(
        model,
        lambda model, rows: model(rows).logits.float().logsumexp(-1).mean(-1),
        directions=directions,
        deployment=Deployment(dict(model.named_parameters()), 0.1),
        mu=0.1,
        lr=0.1,
        trajectory=refined / "trajectory.jsonl",
    )
    refiner.step(torch.arange(12).reshape(2, 6))
    refiner.finish()
    save(model, tokenizer, refined)
    for name, told in {"metrics": {"layers": names, "loss": [1.0], "forwards": 2}, "timing": TIMING}.items():
        (refined / f"{name}.json").write_text(json.dumps(told))
    (refined / "config.yaml").write_text("method: {kind: subspace, lr: 0.1, sigma: 0.1}")
    package(refined, base, str(base), cfg, Shown("", "", ""), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    replay(re.search(r"`holdfast replay (.*)`", card)[1].split())
    for path in (tmp_path / "out/replayed").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert ("origin=" in card) == (rank is None)


def test_auto_takes_the_first_method_that_fits(tokenizer, tmp_path, monkeypatch, capsys):
    """Memory is set to what each method takes: for all weights, for adapters, and without a gradient."""
    from holdfast.commands import harden, plan
    from holdfast.settings.choices import choices_of

    wide = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
    random_model(tokenizer, "llama", **wide).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    given = ["study.name=x", f"model.path={tmp_path / 'wide'}", "plan.flops=1", "plan.bandwidth=1"]

    def peak(method: str) -> float:
        choices = choices_of([*harden.BASE, *given, f"study.methods=[aligned,{method}]", "plan.gpu_gib=[]"])
        return next(job.peak for job in plan.jobs(choices) if job.stage == "refine")

    for origin, methods in (
        ([], ["fo_line_search", "fo_lora", "zo_selective"]),
        (
            [f"model.origin={tmp_path / 'wide'}"],
            ["fo_line_search", "fo_lora", "zo_alignment_subspace", "zo_selective"],
        ),
    ):
        given += origin
        peaks = {method: peak(method) for method in methods}
        assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
        for method, most in peaks.items():
            monkeypatch.setattr(plan, "memories", lambda cfg, most=most: [most / plan.USABLE / 2**30 + 1e-9])
            assert harden._method("auto", given, composed([*harden.BASE, *given])) == method
    assert capsys.readouterr().out.count("do not fit here") == 0 + 1 + 2 + 0 + 1 + 2 + 3
