"""What a study of thousands of jobs needs on a cluster: few composes, resources by the plan, and models beforehand."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, run_stage
from omegaconf import OmegaConf

from holdfast.commands import fetch, plan
from holdfast.errors import UserError
from holdfast.settings import choices
from holdfast.settings.choices import Choices
from holdfast.settings.compose import composed
from holdfast.workflow.grid import Workflow

STATED = ("plan.flops=4e14", "plan.bandwidth=3e12")
MODELS = ["qwen2.5-0.5b-instruct", "llama-2-7b"]


@pytest.fixture
def counted(monkeypatch):
    """The overrides of every compose from here on."""
    asked, own = [], choices.composition

    def counting(overrides):
        asked.append(overrides)
        return own(overrides)

    monkeypatch.setattr(choices, "composition", counting)
    return asked


def test_models_share_the_sections_that_no_model_changes(counted):
    found = Choices(["study=paper"], MODELS)
    for method in ("zo_selective", "extrapolate"):
        for model in MODELS:
            whole = composed(["study=paper", f"model={model}", f"method={method}"])
            assert found.of(model=model, method=method).as_dict() == whole.as_dict()
    assert len(counted) == len(MODELS) + 2  # each model alone, and each method with the first


def test_a_section_that_reads_the_model_s_is_composed_for_each(counted):
    found = Choices(["study=paper", "answer.path=${model.path}"], MODELS)
    assert found.of(model=MODELS[1], method="zo_all").answer.path == "meta-llama/Llama-2-7b-hf"
    assert [o for o in counted if f"model={MODELS[1]}" in o and "method=zo_all" in o]


def test_what_does_not_fit_the_model_is_refused_where_sections_are_shared():
    found = Choices(["study=smoke", "method.select.k=2"], ["tiny", "own"])
    assert found.of(model="tiny", method="zo_selective").method.select.k == 2
    found = Choices(["method.select.k=9"], ["own", "tiny"])
    with pytest.raises(UserError, match=r"method\.select\.k=9: tiny has \d decoder layers"):
        found.of(model="tiny", method="zo_selective")


def test_a_job_composes_what_it_reads_whatever_the_study_holds(counted):
    flow = Workflow({"study": "paper"})
    one = {"model": "llama-2-7b", "method": "zo_selective"}
    flow.settings("refine", **one)
    flow.code("refine", **one)
    flow.needed("llama-2-7b", "sft", "zo_selective", 0)
    flow.threads("llama-2-7b", flow.processes("llama-2-7b", "zo_selective"))
    assert len(counted) <= 4


def test_the_dag_of_one_job_asks_for_no_other():
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--cores",
        "1",
        "--mode",
        "remote",
        "--allowed-rules",
        "refine",
    ]
    command += ["--target-jobs", "refine:model=tiny,recipe=sft,method=zo_all,seed=0", "--config", "study=smoke"]
    program = "from holdfast.workflow.grid import Workflow as W; W.targets = W.measured = None\n"
    program += f"import sys; from snakemake.cli import main; main({command[3:]!r})"
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "refine tiny by sft with zo_all, seed 0" in ended.stdout + ended.stderr


def test_a_profile_asks_for_what_the_plan_says_and_keeps_what_is_not_its_own(tmp_path):
    given = ["study=smoke", "plan.gpu_gib=[]", *STATED, f"plan.profile={tmp_path / 'mine'}"]
    said = plan.main(given)
    path = tmp_path / "mine/config.yaml"
    assert said.endswith(f"wrote {path}: what 5 rules ask for")
    path.write_text(path.read_text().replace("your-account", "our-account"))
    plan.main(given)
    found = OmegaConf.load(path)
    assert found["default-resources"]["slurm_account"] == "our-account"
    peaks = {job.stage: job.peak / 2**20 for job in plan.jobs(choices.choices_of(given))}
    for rule, asked in found["set-resources"].items():
        assert 1.2 * peaks[rule] < int(asked["mem_mb"].split(" * ")[0]) < 1.5 * peaks[rule] + 400
    assert found["groups"] == ["refine=chain", "evaluate=chain", "judge=chain"]
    command = ["-n", "--executor", "local", "--workflow-profile", str(path.parent), "--config", "study=smoke"]
    ended = subprocess.run(
        [sys.executable, "-m", "snakemake", "--directory", str(tmp_path), *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Group job chain" in ended.stdout + ended.stderr


def test_a_profile_without_its_place_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("jobs: 3\n")
    with pytest.raises(UserError, match=r"config\.yaml: lacks a line '# begin: holdfast plan writes this'"):
        plan.main(["study=smoke", "plan.gpu_gib=[]", *STATED, f"plan.profile={tmp_path}"])
    assert (tmp_path / "config.yaml").read_text() == "jobs: 3\n"


def test_what_cannot_be_fetched_is_told_at_once_after_the_rest(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ended = run_stage("fetch", "study=smoke", "study.models=[own]", f"model.path={folder}", "judge=wildguard")
    assert ended.returncode == 1
    assert f"fetch    model own {folder}: 0.00 GB in {folder}" in ended.stdout
    assert ended.stderr.startswith(
        "holdfast fetch: 1 of the study could not be had: judge wildguard allenai/wildguard:"
    )
    assert ended.stderr.count("\n") == 1
    assert fetch.main(["study=smoke"]) == "fetch    all is here; give the jobs HF_HUB_OFFLINE=1"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import scaling

    return scaling


def test_a_schedule_is_bound_by_its_longest_chain_and_by_its_gpus(scaling):
    """Two chains of 3 + 2 + 1 s, and one job of 4 s on two GPUs."""

    def chain():
        first = scaling.Work(3.0)
        second = first.then(scaling.Work(2.0))
        return [first, second, second.then(scaling.Work(1.0))]

    both = [*chain(), *chain()]
    assert [scaling.makespan(both, gpus) for gpus in (1, 2, 9)] == [12.0, 6.0, 6.0]
    assert scaling.makespan([*both, scaling.Work(4.0, 2)], 4) == 6.0
    assert scaling.makespan([*both, scaling.Work(4.0, 2)], 2) == 10.0


def test_the_page_on_scaling_says_what_its_simulator_says(scaling):
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page.partition(scaling.BEGIN)[2].partition(scaling.END)[0].strip() == scaling.report("paper")


def test_the_recipe_of_the_container_names_files_that_are_there():
    shared = re.search(r"^SHARED = (.*)$", (REPOSITORY / "setup.py").read_text(), re.M)[1]

    text = (REPOSITORY / "containers/holdfast.def").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, re.M | re.S))
    copied = [line.split() for line in parts["files"].splitlines() if line.strip()]
    assert all((REPOSITORY / source).exists() and place == f"/opt/holdfast/{source}" for source, place in copied)
    assert {*re.findall(r'"(.+?)"', shared), "pyproject.toml", "constraints.txt"} <= {source for source, _ in copied}
    script = re.sub(
        r"{{ (\w+) }}", lambda found: re.search(rf"{found[1]}=(\S+)", parts["arguments"])[1], parts["post"]
    )
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert "{" not in script
