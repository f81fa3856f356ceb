"""The real DAG at study=smoke: it runs, re-runs what it should, and survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import browser
import documented
import numpy as np
import pandas as pd
import pytest
from conftest import run_stage

from holdfast.errors import UserError
from holdfast.runtime import warm
from holdfast.settings.compose import composed
from holdfast.settings.overrides import sweep
from holdfast.workflow.grid import Workflow

REPOSITORY = Path(__file__).resolve().parents[1]
SMOKE = ("--config", "study=smoke")
STAGES = ("data", "pretrain", "align", "probe", "refine", "evaluate", "judge", "tables")
FLOW = Workflow({"study": "smoke"})
FIGURES = {path.stem for product in ("before_after", "figures") for path in FLOW.files(product)}
NAMES = set(FLOW.products) - {"estimates", "before_after", "figures", "transcripts"}
TABLES = {f"tables_{product}" for product in FLOW.products}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def planned(folder: Path, *config: str) -> set[str]:
    """The rules that a dry run would execute, the target aside."""
    ended = snakemake(folder, "-n", "--config", "study=smoke", *config)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = (ended.stdout + ended.stderr).splitlines()
    table = [line.split() for line in lines]
    names = {"data", "pretrain", "align", "probe", "refine", "evaluate", "judge", *TABLES}
    return {row[0] for row in table if len(row) == 2 and row[0] in names and row[1].isdigit()}


def digests(folder: Path) -> dict[str, str]:
    tables = folder / "results" / "tables" / "smoke"
    found = [p for p in tables.iterdir() if p.stem != "timing" and p.suffix in (".csv", ".md", ".tex", ".txt")]
    found += list((folder / "results" / "smoke" / "figures").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A copy of the repository in which the smoke study has been run once."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "workflow", "profiles", "conf", "src", "pyproject.toml"):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        # The copy's own package and conf/, so that a test may edit them; and a server of forks of that package.
        patch.setenv("PYTHONPATH", str(folder / "src"))
        patch.delenv(warm.ADDRESS, raising=False)
        warm.start()
        ended = snakemake(folder, "results/tables", *SMOKE)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        yield folder


def test_tables_and_figures_are_there(ran):
    tables, figures = ran / "results" / "tables" / "smoke", ran / "results" / "smoke" / "figures"
    for name in ("main", "dose_response", "quantization"):
        assert "aligned" in (tables / f"{name}.md").read_text()
        assert r"\toprule" in (tables / f"{name}.tex").read_text()
        assert len(pd.read_csv(tables / f"{name}.csv")) > 2
    for name in ("dose_response", "sensitivity"):
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    curve = pd.read_csv(tables / "dose_response.csv")
    noise, pruning = {"weight_noise", "activation_noise"}, {"magnitude", "wanda"}
    quantizers = {"int8", "nf4", "fp4", "gguf", "rtn", "w8a8", "w4a8", "w4a4", "w4a4_rotated"}
    assert set(curve["perturbation"]) == {"none"} | noise | pruning | quantizers
    quantized = pd.read_csv(tables / "quantization.csv")
    how = {text.split(",")[0] for text in quantized["ran"].dropna()}
    assert how == {"bitsandbytes CPU fallback", "gguf Q8_0", "torchao w8a8", "torchao w4a8", "simulated"}
    for metric in ("asr", "miss_rate", "utility"):
        known = curve[curve[metric].notna()]
        assert len(known) > 1
        assert known[metric].between(known[f"{metric}_low"], known[f"{metric}_high"]).all()


def test_records_hold_one_row_per_prompt_and_point(ran):
    records = pd.read_parquet(ran / "results/smoke/tiny/sft/judge/rules/zo_selective/s0/records.parquet")
    assert not records.duplicated(["id", "perturbation", "level", "draw"]).any()
    test = records[records["split"] == "test"]
    assert set(test["verdict"].dropna()) == set(test.loc[test["response"].notna(), "verdict"])
    assert set(test["verdict"].dropna()) <= {"refused", "partial", "complied", "broken"}
    assert test.loc[test["perturbation"].isin(["none", "weight_noise"]), "verdict"].notna().all()
    assert records["margin"].notna().equals(records["draw"] == 0)
    assert test.loc[test["label"] == "benign", "utility"].notna().all()


def wandb_records(path: Path):
    """The records of an offline run file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # a block's tail too short for a record's header
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = pb.Record()
            record.ParseFromString(held)
            yield record
            held = b""


@pytest.fixture(scope="module")
def tracked(ran):
    """Of every offline run, by the part of its name that is the stage's folder: the run, and its records by kind."""
    found = {}
    for path in (ran / "wandb").glob("offline-run-*/run-*.wandb"):
        kinds = {}
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            kinds.setdefault(kind, []).append(getattr(record, kind))
        found[kinds["run"][0].display_name] = (kinds["run"][0], kinds)
    return found


def test_every_stage_left_a_complete_offline_run(tracked):
    """Config, history and summary, under names by which W&B's comparer lines runs up."""
    assert {run.job_type for run, _ in tracked.values()} == set(STAGES)
    histories = {"pretrain", "align", "probe", "refine"}
    for run, kinds in tracked.values():
        assert {item.key for item in run.config.update} >= {"seed"}
        summary = {".".join(i.nested_key) or i.key for part in kinds["summary"] for i in part.update}
        assert {"seconds", "peak_rss_mib"} <= summary
        assert run.run_group == ("smoke/tiny")
        logged = {i.key or i.nested_key[0] for part in kinds.get("history", ()) for i in part.item}
        assert (run.job_type not in histories) or logged & {"loss", "sensitivity/layer.0"}, run.display_name


def test_a_refinement_and_its_evaluation_can_be_found_and_compared(tracked):
    run, kinds = tracked["refine/smoke/tiny/sft/zo_selective/s0"]
    assert {"sft", "zo_selective", "s0"} <= set(run.tags)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["refine.steps"] == 2
    losses = [
        json.loads(i.value_json) for part in kinds["history"] for i in part.item if "loss" in (i.key, *i.nested_key)
    ]
    assert len(losses) == 2
    run, kinds = tracked["judge/smoke/tiny/sft/zo_selective/s0"]
    assert {"weight_noise", "rtn"} <= set(run.tags)
    summary = {i.key or i.nested_key[0]: json.loads(i.value_json) for part in kinds["summary"] for i in part.update}
    assert 0 <= summary["weight_noise/0.3/asr"] <= 1
    assert 0 <= summary["rtn/2/auroc"] <= 1


def test_artifacts_hold_trajectory_and_metrics_and_say_what_they_came_from(tracked):
    _, kinds = tracked["refine/smoke/tiny/sft/zo_selective/s0"]
    [made] = kinds["artifact"]
    assert made.name == "smoke-tiny-sft-refine-zo_selective-s0"
    files = {entry.path for entry in made.manifest.contents}
    assert files == {"config.yaml", "metrics.json", "trajectory.jsonl"}
    used = json.loads(made.metadata)["inputs"]
    assert set(used) == {"smoke-data", "smoke-tiny-sft-align-s0", "smoke-tiny-sft-probe-s0"}


def test_a_repeated_stage_leaves_one_run(ran, tracked):
    assert len(list((ran / "wandb").glob("offline-run-*"))) == len(tracked)
    assert run_stage("data", "study=smoke", "hydra.run.dir=results/smoke/data", cwd=ran).returncode == 0
    assert len(list((ran / "wandb").glob("offline-run-*"))) == len(tracked)


def test_compare_shows_methods_side_by_side_and_what_changed_between_studies(ran, tmp_path):
    for name in ("smoke", "longer"):
        shutil.copytree(ran / "results/smoke", tmp_path / name)
    for path in (tmp_path / "longer").rglob("config.yaml"):
        path.write_text(path.read_text().replace("name: smoke", "name: longer").replace("steps: 2\n", "steps: 40\n"))
    path = tmp_path / "longer/tiny/sft/judge/rules/zo_selective/s0/records.parquet"
    records = pd.read_parquet(path)
    records.replace({"verdict": {"complied": "refused"}}).to_parquet(path)

    methods = run_stage("compare", "smoke", "--all", cwd=tmp_path).stdout
    assert re.search(r"method.kind +none +zeroth_order", methods)
    assert re.search(r"^ASR +weight noise σ=0.3 +\d+\.\d \[.*\] +\d+\.\d \[", methods, re.M)
    studies = run_stage("compare", "smoke", "longer", cwd=tmp_path).stdout
    assert re.search(r"^refine.steps +2 +40$", studies, re.M)
    before, after = studies.split("tiny/sft/aligned\n")[1].split("tiny/sft/zo_selective\n")
    assert "no metric differs" in before
    assert re.search(r"^ASR +weight noise σ=0.3 +100.0 \[.*\] +0.0 \[.*\] \*$", after, re.M)

    ended = run_stage("compare", "smoke", "nothing", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("holdfast compare: nothing: no tables of a study there")
    assert ended.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def report(ran):
    page = ran / "report.html"
    ended = snakemake(ran, "--report", str(page), *SMOKE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return page


def test_the_report_holds_tables_figures_settings_and_the_graph(report):
    text = report.read_text(encoding="utf-8")
    assert set(re.findall(r"results/tables/smoke/(\w+)\.html", text)) == NAMES | {"transcripts"}
    assert "Robustness of safety alignment: study smoke" in text
    assert "below an estimate: " in text  # the main table, which it opens on
    assert 'alt="before and after"' in text.replace("\\", "")
    assert "first_order_lr" in text
    assert not re.search(r'(src|href)="https?://[^"]+\.(js|css)', text)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
def test_the_report_opens_without_a_network_and_shows_everything(report, tmp_path):
    found = browser.opened(report, tmp_path)
    assert found["said"] == []
    assert found["graph"]
    assert found["top"] >= 0
    assert {Path(path).stem for path in found["shown"] if path.endswith(".png")} == set(FIGURES)
    for path, (width, height, own) in found["shown"].items():
        assert width > 200, path
        assert height > 100, path
        assert own > 200 or path.endswith(".html"), path


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_every_table_compiles_in_a_bare_article_and_fits_its_page(ran, tmp_path):
    names = sorted((ran / "results/tables/smoke").glob("*.tex"))
    text = "".join(f"\\input{{{path}}}\n\\clearpage\n" for path in names)
    page = (
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n" + text + "\\end{document}\n"
    )
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Overfull" not in ended.stdout
    assert "Float too large" not in ended.stdout


def test_nothing_to_be_done_twice_and_with_a_slash(ran):
    tables = "results/tables/smoke"
    for target in ("results/tables", "results/tables/", tables, f"{tables}/", f"{tables}/main.md"):
        ended = snakemake(ran, target, *SMOKE)
        assert "Nothing to be done" in ended.stdout + ended.stderr


def test_a_changed_value_reruns_what_depends_on_it(ran):
    assert planned(ran) == set()
    assert planned(ran, "set=refine.steps=3") == {"refine", "evaluate", "judge", *TABLES}
    assert planned(ran, "set=judge.refusal.opening_words=41") == {"judge", *TABLES}
    assert planned(ran, "set=tables.false_alarms=0.1") == TABLES
    assert planned(ran, "set=tracking=disabled") == set()
    assert planned(ran, "set=align.steps=7") == {"align", "probe", "refine", "evaluate", "judge", *TABLES}


def test_other_judges_have_runs_and_settings_of_their_own(ran):
    others = "set=tables.other_judges=[llama-guard-3]"
    assert planned(ran, others) == {"judge", *TABLES - {"tables_estimates"}}
    flow = Workflow({"study": "smoke", "set": others.removeprefix("set=")})
    assert flow.settings("judge", model="tiny", judge="rules") == FLOW.settings("judge", model="tiny")
    assert flow.settings("judge", model="tiny", judge="llama-guard-3")["judge"]["parser"] == "first_word"
    theirs = set(flow.layout.by("llama-guard-3").records(flow.study))
    assert theirs <= set(flow.measured("judges"))
    assert not theirs & set(flow.measured("estimates"))
    assert {path.with_name("metrics.json") for path in theirs} <= set(flow.targets())
    with pytest.raises(UserError, match="too; write a file for conf/judge"):
        Workflow({"study": "smoke", "set": f"{flow.overrides[1]} judge.refusal.opening_words=41"})


def test_whitespace_and_comments_rerun_nothing(ran):
    for path in (ran / "conf").rglob("*.yaml"):
        path.write_text(path.read_text() + "\n\n# a remark\n")
    assert planned(ran) == set()


def test_one_deleted_table_is_rebuilt_alone(ran):
    before = digests(ran)
    (ran / "results/tables/smoke/main.csv").unlink()
    others = {p: p.stat().st_mtime_ns for p in (ran / "results/tables/smoke").iterdir() if "dose" in p.name}
    assert planned(ran) == {"tables_main"}
    assert snakemake(ran, "results/tables", *SMOKE).returncode == 0
    assert digests(ran) == before
    assert {p: p.stat().st_mtime_ns for p in others} == others


def running(ran: Path, stage: str) -> list[int]:
    """The processes in `ran` that wait for the end of the stage."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            if words[1:4] == ["-m", "holdfast.runtime.warm", stage] and (process / "cwd").resolve() == ran.resolve():
                found.append(int(process.name))
        except OSError:  # ended meanwhile
            continue
    return found


def test_killed_stage_then_second_call_gives_the_same_bytes(ran):
    before = digests(ran)
    (ran / "results/smoke/tiny/sft/refine/zo_selective/s0/metrics.json").unlink()
    evaluation = ran / "results/smoke/tiny/sft/evaluate/zo_selective/s0"
    first_point = evaluation / "points/00000.parquet"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "results/tables", *SMOKE]
    with subprocess.Popen(command, cwd=ran, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while first.poll() is None and not first_point.exists():  # many points follow
            time.sleep(0.01)
        for process in running(ran, "evaluate"):
            os.kill(process, signal.SIGKILL)
        assert first.wait(120) != 0
    assert not (evaluation / "metrics.json").exists()
    assert first_point.exists()
    assert snakemake(ran, "results/tables", *SMOKE).returncode == 0
    assert digests(ran) == before


@pytest.mark.slow
def test_two_threads_give_the_rates_of_one(ran, tmp_path):
    """What docs/reliability.md says: the losses of a probe differ in their last bits, and no table shows it."""
    two = ("--snakefile", str(ran / "Snakefile"), *SMOKE, "set=model.threads=2 tracking=disabled")
    ended = snakemake(tmp_path, "results/tables", *two)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert digests(tmp_path) == digests(ran)
    sensitivity = "results/smoke/tiny/sft/probe/s0/sensitivity.parquet"
    one, other = (pd.read_parquet(folder / sensitivity).filter(["clean", "up", "down"]) for folder in (ran, tmp_path))
    print(f"probe's losses differ by {(one - other).abs().max().max():.1e}")
    assert np.allclose(one, other, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def stocked(ran):
    """The folder that the documentation speaks of: a model, prompts, completions, and a second study."""
    shutil.copytree(ran / "results/smoke/tiny/sft/align/s0/model", ran / "my-model")
    shutil.copytree(ran / "results/smoke", ran / "results/longer")
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(REPOSITORY / name, ran)
    (ran / "my-prompts").mkdir()
    harmful, benign = ([f"A {kind} prompt, number {n}?" for n in range(60)] for kind in ("harmful", "benign"))
    pd.DataFrame({"goal": harmful}).to_csv(ran / "my-prompts/bad.csv")
    pd.DataFrame({"prompt": benign}).to_json(ran / "my-prompts/good.jsonl", orient="records", lines=True)
    labels = ["1_full_compliance", "2_full_refusal"]
    said = {"prompt": ["One?", "Two?"], "completion": ["Sure, here it is.", "I cannot help with that."]}
    pd.DataFrame({**said, "final_label": labels}).to_csv(ran / "completions.csv")
    return ran


@pytest.mark.parametrize("line", [c for c in documented.commands() if not c.startswith("source ")])
def test_a_command_of_the_documentation_runs(stocked, line):
    """At study=smoke, dry-run, or its options alone where even that is long."""
    if documented.long(line):
        name, words = documented.module(line), shlex.split(line)[2:]
        given = [w for w in words if w != "-m" and not w.startswith(("out=", "model=./", "for="))]
        for job in sweep([*given, *["study=harden"] * (name == "harden")]):
            composed(job)
        return
    if line.startswith("holdfast"):
        ended = run_stage(documented.module(line), *documented.at_smoke(line), cwd=stocked)
    elif line.startswith("snakemake"):
        ended = snakemake(stocked, *documented.at_smoke(line))
    else:
        command = [*shlex.split(line), "--dry-run", "STUDY=smoke"]
        ended = subprocess.run(command, cwd=stocked, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_killed_snakemake_leaves_no_lock_and_a_living_one_keeps_its_own(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1"]
    command += ["results/smoke/data/metrics.json", *SMOKE, "set=tracking=disabled"]

    def begun() -> subprocess.Popen[str]:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True, start_new_session=True)
        while not list(tmp_path.glob(".snakemake/locks/*.lock")):
            assert running.poll() is None
            time.sleep(0.01)
        return running

    first = begun()
    os.kill(first.pid, signal.SIGSTOP)
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 1
    assert "Directory cannot be locked" in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    assert "a run in this folder was killed; this one goes on from what it wrote" in third.stderr
    assert not list(tmp_path.glob(".snakemake/locks/*.lock"))
