"""Bad input: one line with the valid choices, exit ≠ 0, no traceback, nothing written."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.__main__ import MODULES
from holdfast.__main__ import main as command
from holdfast.commands import plan, tune
from holdfast.errors import UserError
from holdfast.runtime.failures import is_expected
from holdfast.settings.compose import composed
from holdfast.settings.options import Options, Registry, sections
from holdfast.settings.overrides import quoted, sweep
from holdfast.settings.paths import CONF, Layout, runs
from holdfast.workflow.grid import STAGES, Workflow
from holdfast.workflow.overrides import overrides_of

BAD = [
    ("refine", ["refine.stepz=3"], "refine.stepz: no such key; did you mean steps?"),
    ("refine", ["refin.steps=3"], "did you mean refine?"),
    ("refine", ["refine.steps=many"], "refine.steps=many: give a whole number"),
    ("refine", ["refine.steps=0"], "refine.steps=0: must be at least 1"),
    ("refine", ["refine.mu=-1"], "refine.mu=-1: must be above 0"),
    ("refine", ["refine.queries=0"], "refine.queries=0: must be at least 1"),
    ("refine", ["refine.loss=dpo2"], "choose one of nll, cvar, margin, hinge, dpo"),
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
    ("data", ["data=local", "data.dir=nowhere"], "no file nowhere/harmful.csv, nowhere/benign.csv; put them there"),
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


WRONG = {
    "method/mine.yaml": "# @package _global_\nmethod: {kind: first_order, lr: -1}\n",
    "perturb/mine.yaml": "mine: {kind: rtn, family: f, levels: [2], draws: 1, group_size: 0}\n",
    "align/mine.yaml": "# @package _global_\ndefaults: [sft, _self_]\nalign: {warmup: 2}\n",
    "judge/mine.yaml": "# @package _global_\ndefaults: [rules, _self_]\njudge: {refusal: {opening_words: some}}\n",
    "study/mine.yaml": "# @package _global_\nstudy: {models: [tiny], aligns: [sft], methods: [], seeds: [0]}\n",
    "model/mine.yaml": "# @package _global_\nmodel: {path: x, dtype: float8}\n",
}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=mine", "method.lr=-1: must be above 0 (in {}/method/mine.yaml)"),
        ("perturb=[mine]", "perturb.mine.group_size=0: must be at least 1 (in {}/perturb/mine.yaml)"),
        ("align=mine", "align.warmup=2: must be at most 1 (in {}/align/mine.yaml)"),
        ("judge=mine", "judge.refusal.opening_words=some: give a whole number (in {}/judge/mine.yaml)"),
        ("study=mine", "study.methods: the list is empty; give at least one (in {}/study/mine.yaml)"),
        ("model=mine", "model.dtype=float8: choose one of float32, bfloat16, float16, auto (in {}/model/mine.yaml)"),
    ],
)
def test_a_bad_value_names_the_file_that_it_stands_in(tmp_path, override, words):
    for name, text in WRONG.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        composed([f"hydra.searchpath=[{tmp_path}]", override])
    assert str(error.value) == words.format(tmp_path)


def test_a_value_of_the_command_line_names_no_file():
    with pytest.raises(UserError) as error:
        composed(["study=paper", "refine.queries=0"])
    assert str(error.value) == "refine.queries=0: must be at least 1"


@pytest.mark.parametrize("model", ["some/folder", "Organization/model-7b"])
def test_a_model_may_be_a_folder_or_an_id_of_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some/folder").mkdir(parents=True)
    found = composed([f"model={model}"]).model
    assert found.name == "own"
    assert found.path == (str(tmp_path / model) if model == "some/folder" else model)
    assert composed(["model=llama-3.2-1b-instruct"]).model.path == "meta-llama/Llama-3.2-1B-Instruct"


def test_a_study_does_not_overwrite_what_a_method_was_tuned_to():
    tuned = composed(["study=paper", "method=zo_alignment_subspace", "refine.lr=0.7"]).method
    assert (tuned.lr, tuned.mu, tuned.sigma) == (0.04, 0.1, 0.1)
    common = composed(["study=paper", "method=zo_all", "refine.lr=0.7"]).method
    assert (common.lr, common.mu) == (0.7, 0.1)
    own = composed(["study=paper", "method=fo_smoothed"]).method
    assert (own.lr, own.sigma) == (1e-5, 0.1)
    assert composed(["study=paper", "method=fo_smoothed", "method.lr=3e-5"]).method.lr == 3e-5


def test_a_name_is_that_of_its_file():
    with pytest.raises(UserError, match=r"method\.name=other: the name is that of the file, zo_all"):
        composed(["method=zo_all", "method.name=other"])
    variant = composed(["study=steps", "method=zo_all_half"]).method
    assert (variant.name, variant.kind, variant.share) == ("zo_all_half", "zeroth_order", 0.5)
    with pytest.raises(UserError, match="method=zo_all_half: no such choice"):
        composed(["method=zo_all_half"])


def test_help_lists_verbs_and_keys_without_torch():
    code = "import sys; from holdfast.__main__ import main\nfor line in sys.stdin: main(line.split()); print('\\f')\n"
    code += "sys.exit('torch' in sys.modules)"
    asked = ["--help", *(f"{verb} --help" for verb in MODULES), "refine method=sam --help"]
    ended = subprocess.run([sys.executable, "-c", code], input="\n".join(asked), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    told = dict(zip(asked, map(str.lstrip, ended.stdout.split("\f")), strict=False))
    for verb in MODULES:
        assert f"  {verb} " in told["--help"]
        assert told[f"{verb} --help"].startswith(f"holdfast {verb}")
    assert "method.mu = 0.6   number > 0" in told["refine --help"]
    assert "method.rho = 0.05   number > 0" in told["refine method=sam --help"]


def test_an_unknown_verb_is_answered_in_one_line(stage):
    ended = stage("refin")
    assert ended.stderr.startswith("holdfast refin: refin: no such verb; did you mean refine? choose one of data, ")
    assert ended.stderr.count("\n") == 1


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r$", exclude_categories=["Cc"])))
def test_a_quoted_value_means_itself(text):
    (override,) = OverridesParser.create().parse_overrides([f"a={quoted(text)}"])
    assert override.value() == text


def test_what_the_grid_would_overrule_is_refused(tmp_path):
    listed = tmp_path / "my overrides.txt"
    listed.write_text("refine.steps=3\nevaluate.prompts={test/harmful: 10}\n")
    found = Workflow({"study": "smoke", "set": f"@{listed}"}).cfg
    assert (found.refine.steps, found.evaluate.prompts["test/harmful"]) == (3, 10)
    for config, words in {
        ("stduy", "paper"): "--config stduy=…: no such key",
        ("set", "align=sft_lora"): "write study.aligns=[sft_lora]",
        ("set", "method=zo_all"): "write study.methods=[zo_all]",
        ("set", "seed=4"): "write study.seeds=[4]",
        ("set", "study.models=[tiny,own] model.path=/x"): "would be given to all of study.models=[tiny,own]",
        ("set", "refine.loss='a"): "No closing quotation",
        ("set", "@absent.txt"): "no such file",
        ("set", 5): "YAML changes it",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            Workflow(dict([config]))


def test_a_base_model_depends_on_the_seed():
    one, other = (Workflow({"set": f"study.name={n}"}) for n in "ab")
    assert one.settings("pretrain", model="tiny") == other.settings("pretrain", model="tiny")
    assert one.settings("pretrain", model="tiny")["seed"] == 0
    assert Workflow({"study": "evidence"}).settings("pretrain", model="tiny")["seed"] == 20


def test_every_option_has_a_sentence():
    def without(options: type) -> list[str]:
        found = []
        for name, field in options.model_fields.items():
            inner = options_in(field.annotation)
            found += [f"{options.__name__}.{name}"] * (not inner and not field.description and name not in LABELS)
            found += [one for part in inner for one in without(part)]
        return found

    classes = [
        made
        for one in sections().values()
        for made in (one.options.kinds.values() if isinstance(one.options, Registry) else [one.options])
    ]
    assert not [one for made in classes for one in without(made)]


LABELS = ("name", "kind")


def options_in(annotation) -> list[type]:
    """The classes of options in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return [annotation]
    return [one for part in get_args(annotation) for one in options_in(part)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("stduy=paper", "--config stduy=…: no such key"),
        ("set=refine.stepz=3", "refine.stepz: no such key; did you mean steps?"),
    ],
)
def test_the_workflow_answers_bad_input_in_one_line(config, words):
    command = [sys.executable, "-m", "snakemake", "-n", "--config", config]
    ended = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(said) == 1
    assert said[0].startswith(words)


def test_overrides_of_a_file(tmp_path):
    path = tmp_path / "overrides"
    path.write_text("refine.steps=3\n\n  seed=1\n")
    assert overrides_of(f"@{path}") == ["refine.steps=3", "seed=1"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="byte 0 is not UTF-8; convert the file"):
        overrides_of(f"@{path}")


def test_what_is_missing_is_said_with_the_study_that_makes_it(stage, tmp_path):
    ended = stage("probe", "study=smoke", "results=else/a b", "tracking=disabled", cwd=tmp_path)
    path = "else/a b/smoke/data/metrics.json"
    command = shlex.split(ended.stderr.split("`")[1])
    assert command == ["snakemake", "--cores", "all", path, "--config", "study=smoke", "set=results='else/a b'"]
    assert ended.stderr.startswith(f"holdfast probe: {path}: no such file; ")
    assert ended.stderr.endswith("or `holdfast data` makes it\n")
    assert not (tmp_path / "outputs").exists()


def test_a_terminal_does_not_obey_what_a_message_quotes_and_a_traceback_is_there_if_asked_for(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["plan", "refine.steps=\x1b[31mred"])
    assert ended.value.code == 1
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert "\\x1b[31mred" in said
    monkeypatch.setenv("HOLDFAST_DEBUG", "1")
    with pytest.raises(UserError) as error:
        command(["plan", "refine.steps=0"])
    assert not error.value.__suppress_context__


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.ENOENT, False)])
def test_a_disk_that_cannot_be_written_is_said_in_one_line(number, expected):
    assert is_expected(OSError(number, "x")) == expected
