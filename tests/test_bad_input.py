"""Mistakes of users, each through the real command: one line that names what is wrong and what would be right, an exit
status other than 0, and nothing written or lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import random_llama

from holdfast.__main__ import main

# The command, what of its line is wrong, and a part of what would be right.
LINES = """
evalute | evalute: no such verb | did you mean evaluate?
data data=nowhere | data=nowhere: no such choice | local
data study=smok | study=smok: no such choice | did you mean smoke?
data tracking=maybe | tracking=maybe: no such choice | disabled, offline, online
data source=[x] | source=x: no such choice | advbench
data source=harmful | source=[harmful] is not for data=world | add data=local
refine method=zo_selectve | method=zo_selectve: no such choice | did you mean zo_selective?
refine method=3 | method=3: no such choice | zo_all
refine method=null | method=null: no such choice | zo_all
refine method= | method=: no such choice | zo_all
refine method=[a,b] | method=b: no such choice | zo_all
refine model=tinny | model=tinny: no such choice | a Hub id (organization/name) or a folder
align align=sftt | align=sftt: no such choice | did you mean sft?
judge judge=ruless | judge=ruless: no such choice | did you mean rules?
judge judge=yes.no.Class | yes.no.Class: cannot be imported | No module named 'yes'
judge judge.refusal.openings=[] | judge.refusal.openings: the list is empty | give at least one
evaluate perturb=[weight_nois] | perturb=weight_nois: no such choice | did you mean weight_noise?
refine hydra/launcher=slurmm | hydra/launcher=slurmm: no such choice | basic
refine refine.stepz=3 | refine.stepz: no such key | did you mean steps?
refine +x=1 | x: no such key | refine
refine ~refine | ~refine: refine is a section | set refine.<key>=…
refine refine=3 | refine=3: refine is a section | set refine.<key>=…
refine refine= | refine=: refine is a section | set refine.<key>=…
refine hydra=3 | hydra=3: hydra is a section | set hydra.<key>=…
refine =3 | =3: not of the form | key=value
refine refine.steps | refine.steps: not of the form | key=value
refine model.path=[ | model.path=[: not of the form | key=value
refine refine.steps="3 | refine.steps="3: not of the form | key=value
refine refine.steps=abc | refine.steps=abc | give a whole number
refine refine.steps=1.5 | refine.steps=1.5 | give a whole number
refine refine.steps=[1,2] | refine.steps=[1,2] | give a whole number
refine refine.steps=0 | refine.steps=0 | must be at least 1
refine refine.steps=-1 | refine.steps=-1 | must be at least 1
refine refine.steps=null | refine.steps: no value is given | set refine.steps=…
refine refine.steps=??? | refine.steps: no value is given | set refine.steps=…
refine ~refine.steps | refine.steps: no value is given | set refine.steps=…
refine refine.steps=${nothing} | Interpolation key 'nothing' | not found
refine refine.steps=${oc.env:NO_SUCH_VARIABLE} | Environment variable 'NO_SUCH_VARIABLE' | not found
refine refine.steps=${oc.nothing:1} | Unsupported interpolation type | oc.nothing
refine refine.queries=0 | refine.queries=0 | must be at least 1
refine refine.mu=0 | refine.mu=0 | must be above 0
refine refine.mu=-1 | refine.mu=-1 | must be above 0
refine refine.sigma=-0.1 | refine.sigma=-0.1 | must be above 0
refine refine.lr=0 | refine.lr=0 | must be above 0
refine refine.lr=nan | refine.lr=nan | give a finite number
refine refine.lr=inf | refine.lr=inf | give a finite number
refine refine.lr=1e-3x | refine.lr=1e-3x | give a number
refine refine.batch_size=0 | refine.batch_size=0 | must be at least 2
refine refine.loss=nlll | refine.loss=nlll: no such loss | nll, cvar, margin, hinge, dpo
refine method.select.k=99 | method.select.k=99 | tiny has 6 decoder layers
refine method.select.k=0 | method.select.k=0 | must be at least 1
refine method.select.rule=best | method.select.rule=best | top_k
refine method.normalize=max | method.normalize=max | none, rms
refine method.noise=uniform | method.noise=uniform | rademacher, gaussian
refine method.schedule=up | method.schedule=up | constant, cosine
refine method=zo_alignment_subspace method.tie=head | method.tie=head | tensor, layer, model
refine method=zo_singular method.rank=0 | method.rank=0 | must be at least 1
refine method=fo_line_search method.set_aside=2 | method.set_aside=2 | must be at most 1
refine method=fo_line_search method.strengths=[] | method.strengths: the list is empty | give at least one
refine method.share=0 | method.share=0 | must be above 0
refine seed=abc | seed=abc | give a whole number
refine seed=-1 | seed=-1 | must be at least 0
refine study.seeds=[a] | study.seeds=a | give a whole number
refine study.methods=zo_all | study.methods=zo_all | give a list
refine device=gpu | device=gpu | auto, cpu, cuda
refine openings.loss.refusal=[] | openings.loss.refusal: the list is empty | give at least one
refine model.revision=3 | model.revision=3 | give text
align model.dtype=float7 | model.dtype=float7 | bfloat16
align model.threads=0 | model.threads=0 | must be at least 1
align model.attention=flsh | model.attention=flsh | sdpa
align align.steps=0 | align.steps=0 | must be at least 1
align align.lr=-1 | align.lr=-1 | must be above 0
align align.warmup=3 | align.warmup=3 | must be at most 1
align align=dpo align.beta=0 | align.beta=0 | must be above 0
align align=dpo_lora align.lora.rank=0 | align.lora.rank=0 | must be at least 1
align align.lora.r=0 | align.lora.r: no such key | rank, alpha
elicit elicit.unrefused=sometimes | elicit.unrefused=sometimes | left_out, taught
elicit elicit.prompts=-1 | elicit.prompts=-1 | must be at least 0
probe probe.sigma=0 | probe.sigma=0 | must be above 0
probe probe.draws=0 | probe.draws=0 | must be at least 1
probe probe.keep=0 | probe.keep=0 | must be at least 1
probe probe.loss=x | probe.loss=x | margin, nll
evaluate perturb.weight_noise.levels=[-0.1] | perturb.weight_noise.levels=[-0.1] | numbers from 0 up
evaluate perturb.weight_noise.levels=[] | perturb.weight_noise.levels: the list is empty | give at least one
evaluate perturb.weight_noise.levels=0.1 | perturb.weight_noise.levels=0.1 | give a list
evaluate perturb.weight_noise.draws=0 | perturb.weight_noise.draws=0 | must be at least 1
evaluate perturb=[rtn] perturb.rtn.levels=[0] | perturb.rtn.levels=[0.0] | whole numbers from 2 to 16
evaluate perturb=[nf4] perturb.nf4.levels=[7] | perturb.nf4.levels=[7.0] | here 4
evaluate perturb=[gguf] perturb.gguf.levels=[9] | perturb.gguf.levels=[9.0] | whole numbers from 4 to 8
evaluate perturb=[magnitude] perturb.magnitude.levels=[1.5] | perturb.magnitude.levels=[1.5] | numbers from 0 to 1
evaluate perturb.activation_noise.place=somewhere | perturb.activation_noise.place=somewhere | residual
evaluate evaluate.max_new_tokens=0 | evaluate.max_new_tokens=0 | must be at least 1
evaluate evaluate.batch_size=0 | evaluate.batch_size=0 | must be at least 1
evaluate evaluate.prompts={test/harmfull:3} | evaluate.prompts.test/harmfull | did you mean test/harmful?
evaluate evaluate.prompts={test/harmful:-1} | evaluate.prompts.test/harmful=-1 | must be at least 0
evaluate evaluate.tasks_at=[nf4/3] | evaluate.tasks_at: nf4/3 is no point of the grid | nf4/4
evaluate against=./aligned | model: no value is given | holdfast evaluate model=<folder or Hub id>
evaluate model=./aligned against=./aligned | against=./aligned: cannot be told from | give another
tables claims.confidence=2 | claims.confidence=2 | must be at most 0.999
tables claims.margin=-1 | claims.margin=-1 | must be above 0
tables claims.families.weights.perturbation=nothing | families.weights.perturbation=nothing | weight_noise
tables tables.resamples=0 | tables.resamples=0 | must be at least 50
tables tables.make=[mian] | tables.make=mian: no such table or figure | main
refine | results/tiny/data/metrics.json: no such file | `snakemake --cores all
harden out=new | model: no value is given | out=<folder>
harden model=./aligned | out: no value is given | out=<folder>
harden model=./aligned out=new for=q5 | for=q5 | noise, nf4, q4_0, w4a8
harden model=./aligned out=full | out=full: is there and not empty | give a new folder
harden model=./missing out=new | model.path=./missing | no such folder or file
harden model=a/b/c out=new | model.path=a/b/c | no id of the Hub
harden model=./aligned out=new study.methods=[zo_all] | study.methods=[zo_all] | give method=<name>
harden model=./aligned out=new method=zo_al | method=zo_al: no such choice | did you mean zo_all?
harden model=./no_config out=new | holds no config.json | save_pretrained
harden model=./pickled out=new | holds no model.safetensors | give a folder with all its safetensors
harden model=./truncated out=new | is cut short, or no safetensors | fetch it again
harden model=./shardless out=new | holds no model-00001-of-00002.safetensors | give a folder with all its safetensors
harden model=./broken.gguf out=new | transformers cannot read this GGUF file | version 2 or 3
plan gpu=x | gpu: no such key | plan
plan plan.gpu_gib=-1 | plan.gpu_gib=-1 | give a list
compare nothing | nothing: no tables of a study there | give results/<study>
replay | base: no value is given | set base=…
replay bse=./aligned | bse: no such key | base, trajectory, out, origin
replay base=./aligned trajectory=missing.jsonl out=new | trajectory=missing.jsonl | no such file
replay base=./aligned trajectory=edited.jsonl out=new | edited.jsonl: line 1 | no record of a trajectory
replay base=./aligned trajectory=edited.jsonl out=full | out=full: is not empty | give a new folder
calibrate | data: no value is given | set data=<completions.csv>
calibrate completions=x.csv | completions=x.csv: no such argument | judge=…, data=…
tune method=zo_al | method=zo_al: no such choice | did you mean zo_all?
data data=local data.dir=missing | no file missing/harmful.csv, missing/benign.csv | data.dir=…
data data=local data.dir=no_column | columns.prompt=prompt: no such column | the data have goal
data data=local data.dir=empty | empty/harmful.csv: the file is empty | it holds no rows
data data=local data.dir=latin | latin/harmful.csv: byte 9 is not UTF-8 | convert the file
data data=local data.dir=twice data.sources.harmful.columns.id=id | the id '1' occurs twice | must be unique
data data=local data.dir=blank | row 2 has an empty prompt | remove or fill it
data data=local data.dir=same | no benign prompt is left for the split train | add a source or a share
data data=local data.dir=odd data.sources.harmful.file=harmful.json | not readable as json | Expecting ',' delimiter
data data=local data.dir=odd data.sources.harmful.file=harmful.parquet | not readable as parquet | Parquet magic bytes
refine --config-dir mine method=unclosed | mine/method/unclosed.yaml: line 3 | expected ',' or '}'
refine --config-dir mine method=child | mine/method/unclosed.yaml: line 3 | expected ',' or '}'
refine --config-dir mine method=latin | mine/method/latin.yaml | is not UTF-8
refine --config-dir mine method=header | mine/method/header.yaml | Expected header format
refine --config-dir mine method=deep | mine/method/deep.yaml | is nested too deeply
refine --config-dir mine method=parents | mine/method/parents.yaml | must be a list
refine --config-dir mine method=zo_all | mine/method/zo_all.yaml: holdfast has a method/zo_all.yaml | another name
refine --config-dir mine method=number | method.3: a key that is no text | put it into quotes
refine --config-dir mine method=target | method._target_=3 | give package.module.Class
evaluate --config-dir mine perturb=[flat] | perturb.flat=3 | give keys with values
data data=local data.dir=odd data.sources.harmful.file=harmful.txt | odd/harmful.txt | .csv, .json, .jsonl, .parquet
"""
CASES = [[part.strip() for part in line.split(" | ")] for line in LINES.strip().splitlines()]


@pytest.fixture(scope="module")
def home(tokenizer, tmp_path_factory):
    """What the commands speak of, and results of an earlier study."""
    folder = tmp_path_factory.mktemp("home")
    models(folder, tokenizer)
    for name in ("no_column", "empty", "latin", "twice", "blank", "same", "odd"):
        (folder / name).mkdir()
        pd.DataFrame({"prompt": [f"How do I feed {k} cats?" for k in range(60)]}).to_csv(folder / name / "benign.csv")
    bad = {
        "no_column/harmful.csv": b"goal\nx\n",
        "empty/harmful.csv": b"",
        "latin/harmful.csv": "prompt\nGrüße?\n".encode("latin-1"),
        "twice/harmful.csv": b"id,prompt\n1,a b c?\n1,d e f?\n",
        "blank/harmful.csv": b'prompt\n"a?"\n"  "\n',
        "same/harmful.csv": (folder / "same/benign.csv").read_bytes(),
        "odd/harmful.json": b'[{"prompt": "a"',
        "odd/harmful.parquet": b"PAR1xxxx",
        "odd/harmful.txt": b"a\n",
        "mine/method/unclosed.yaml": b"method:\n  select: {rule: top_k\nkind: x\n",
        "mine/method/child.yaml": b"# @package _global_\ndefaults: [unclosed, _self_]\n",
        "mine/method/latin.yaml": "name: Grüße\n".encode("latin-1"),
        "mine/method/header.yaml": b"# @package\nmethod: {}\n",
        "mine/method/deep.yaml": b"[" * 5000,
        "mine/method/parents.yaml": b"defaults: {zo_all: x}\n",
        "mine/method/zo_all.yaml": b"# @package _global_\nmethod: {kind: zo}\n",
        "mine/method/number.yaml": b"kind: zo\n3: x\n",
        "mine/method/target.yaml": b"_target_: 3\n",
        "mine/perturb/flat.yaml": b"flat: 3\n",
        "edited.jsonl": b'{"format": "holdfast trajectory 1"}\n',
        "broken.gguf": b"GGUF" + bytes(60),
        "full/mine": b"x",
        "results/smoke/tables/main/metrics.json": b"{}",
        "results/tables/smoke/main.md": b"| a table |",
    }
    for name, content in bad.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def models(folder: Path, tokenizer) -> None:
    """One that is whole, and some that are not."""
    random_llama(tokenizer).save_pretrained(folder / "aligned")
    tokenizer.save_pretrained(folder / "aligned")
    for name in ("no_config", "pickled", "truncated", "shardless"):
        shutil.copytree(folder / "aligned", folder / name)
    weights = (folder / "aligned/model.safetensors").read_bytes()
    (folder / "no_config/config.json").unlink()
    (folder / "truncated/model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "pickled/model.safetensors").rename(folder / "pickled/pytorch_model.bin")
    (folder / "shardless/model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "shardless/model.safetensors.index.json").write_text(json.dumps(index))


def state(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("line", "wrong", "right"), CASES, ids=[line for line, _, _ in CASES])
def test_one_line_says_what_is_wrong_and_what_would_be_right(home, line, wrong, right, monkeypatch, capfd):
    monkeypatch.chdir(home)
    monkeypatch.setattr("sys.argv", ["holdfast"])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    before = state(home)
    with pytest.raises(SystemExit) as ended:
        main([*line.split(" "), *["tracking=disabled"] * line.startswith("data data=local")])
    said = capfd.readouterr().err or str(ended.value.code)  # which Python prints as it exits, if it is a text
    assert ended.value.code not in (0, None)
    assert len(said.strip().splitlines()) == 1, said
    assert wrong in said
    assert right in said
    assert state(home) == before
