"""Bad input: one line with the valid choices, exit ≠ 0, no traceback, nothing written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.commands import plan, tune
from holdfast.errors import UserError
from holdfast.settings.compose import composed, sweep
from holdfast.settings.options import sections
from holdfast.settings.paths import CONF, Layout, runs
from holdfast.workflow.grid import STAGES

BAD = [
    ("refine", ["refine.stepz=3"], "refine.stepz: no such key; did you mean steps?"),
    ("refine", ["refin.steps=3"], "did you mean refine?"),
    ("refine", ["refine.steps=many"], "refine.steps=many: give a whole number"),
    ("refine", ["refine.steps=0"], "refine.steps=0: must be at least 1"),
    ("refine", ["refine.mu=-1"], "refine.mu=-1: must be above 0"),
    ("refine", ["refine.queries=0"], "refine.queries=0: must be at least 1"),
    ("refine", ["refine.loss=dpo2"], "choose one of nll, margin, dpo"),
    (
        "tables",
        ["tables.make=[mian]"],
        "tables.make=mian: no such table or figure; choose one of main",
    ),
    ("refine", ["method.select.k=9"], "method.select.k=9: tiny has 6 decoder layers"),
    ("refine", ["method=zo_selectiv"], "did you mean zo_selective?"),
    ("refine", ["model=huge"], "model=huge: no such choice; choose one of "),
    ("refine", ["model=qwen2.5-0.5b-instruct", "model.shape.layers=3"], "model.shape.hidden_size: no value is given"),
    ("refine", ["study=absent"], "study=absent: no such choice"),
    ("refine", ["seed=-1"], "seed=-1: must be at least 0"),
    ("refine", ["nonsense"], "nonsense"),
    ("evaluate", ["perturb.weight_noise.levels=[-0.1]"], "perturb.weight_noise.levels"),
    ("evaluate", ["perturb=[typo]"], "perturb=typo: no such choice"),
    ("refine", ["results=nowhere"], "nowhere/tiny/data/metrics.json: no such file"),
    ("data", ["data=local", "data.dir=nowhere"], "no file nowhere/harmful.csv"),
]


@pytest.mark.parametrize(
    ("name", "overrides", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_input_is_answered_in_one_line(stage, tmp_path, name, overrides, message):
    ended = stage(name, *overrides, "tracking=disabled", cwd=tmp_path)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert ended.stderr.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_multirun_is_checked_before_its_first_job(stage, tmp_path):
    ended = stage("refine", "-m", "refine.steps=5,0", "seed=0,1", "tracking=disabled", cwd=tmp_path)
    assert "refine.steps=0: must be at least 1" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_sweep_is_the_product_of_its_axes():
    assert sweep(["a=1,2", "b=x", "seed=range(0,2)"]) == [
        ["a=1", "b=x", "seed=0"],
        ["a=1", "b=x", "seed=1"],
        ["a=2", "b=x", "seed=0"],
        ["a=2", "b=x", "seed=1"],
    ]


@pytest.mark.parametrize("group", [path.name for path in CONF.iterdir() if path.is_dir()])
def test_every_choice_of_every_group_composes(group):
    for path in sorted((CONF / group).glob("*.yaml")):
        choice = f"[{path.stem}]" if group in ("perturb", "source") else path.stem
        composed([f"{group}={choice}", *["data=local"] * (group == "source")])


def test_what_a_study_sets_of_a_perturbation_that_was_not_chosen_goes():
    cfg = composed(["study=paper", "perturb=[rtn]"])
    assert list(cfg.perturb) == ["rtn"]
    assert cfg.perturb["rtn"].group_size == 128


def test_a_study_composes_with_each_of_its_models_and_methods():
    for path in (CONF / "study").glob("*.yaml"):
        study = composed([f"study={path.stem}"]).study
        assert study.name == path.stem
        assert study.reference in study.methods
        for model in study.models:
            assert composed([f"study={path.stem}", f"model={model}"]).model.name == model
        for method in study.methods:
            assert composed([f"study={path.stem}", f"method={method}"]).method.name == method


def test_a_block_may_have_seeds_of_its_own_but_not_for_some_methods_of_a_recipe():
    study, layout = composed(["study=evidence", "study.also.optimizers.seeds=[20]"]).study, Layout("results", "e")
    assert [run for run in runs(study) if run[1] == "sgd"] == [("tiny", "sgd", "aligned", 20)]
    assert len(runs(study)) == len(set(runs(study)))
    assert layout.probe("tiny", "sgd", 20) in layout.probes(study)
    unprobed = composed(["study=evidence", "study.also.optimizers.probe=false"]).study
    assert layout.probe("tiny", "sgd", 20) not in layout.probes(unprobed)
    with pytest.raises(UserError, match=r"tiny/sft_plateau has seeds .* give all its methods the same"):
        composed(["study=evidence", "study.also.controls.seeds=[20]"])


def test_every_section_is_read_by_a_stage():
    read = {part for one in (*STAGES.values(), tune.STAGE) for part in one.reads} | set(plan.READS)
    assert set(sections()) - read == {"tracking"}


@settings(max_examples=20, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, max_value=0))
def test_a_radius_is_positive(mu):
    with pytest.raises(UserError, match=r"refine\.mu"):
        composed([f"refine.mu={mu}"])


def test_no_number_is_in_the_workflow():
    """Numbers of scientific meaning are in conf/; the rules hold Snakemake's version and `2>&1`."""
    root = CONF.parent
    for path in [root / "Snakefile", *(root / "workflow" / "rules").glob("*.smk")]:
        assert set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", path.read_text())) <= {"9.0", "2", "1"}
