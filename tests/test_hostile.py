"""Prompts that would like to be something else go through a whole study and come out as text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import browser
import pandas as pd
import pytest
from test_transcripts import HOSTILE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The smoke study of a folder whose prompts, names and categories are hostile, with its report."""
    home = tmp_path_factory.mktemp("home")
    (home / "prompts").mkdir()
    shell = f"$(touch {home}/owned) `touch {home}/owned` ; touch {home}/owned"
    for label in ("harmful", "benign"):
        rows = [
            {"prompt": f"{text} {label} {k}", "category": text, "id": f"{label}{k} {text}"}
            for k, text in enumerate([*HOSTILE, shell] * 12)
        ]
        pd.DataFrame(rows).to_json(home / f"prompts/{label}.json", orient="records")
    columns = "{prompt:prompt,category:category,id:id}"
    words = [
        "data=local",
        "data.dir=prompts",
        "data.near_duplicates=null",
        "data.pretrain_rows=50",
        "tracking=disabled",
    ]
    for label in ("harmful", "benign"):
        words += [f"data.sources.{label}.file={label}.json", f"data.sources.{label}.columns={columns}"]
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(ROOT / "Snakefile")]
    config = ["--config", "study=smoke", f"set={' '.join(words)}"]
    for target in (["results/tables"], ["--report", "report.html"]):
        ended = subprocess.run([*command, *target, *config], cwd=home, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "\x1b[31m" not in ended.stdout + ended.stderr
    return home


@pytest.mark.slow
def test_nothing_of_them_runs_and_nothing_is_lost(ran):
    assert not (ran / "owned").exists()
    for path in (ran / "results/tables/smoke").iterdir():
        text = path.read_text(encoding="utf-8")
        assert os.environ["HOME"] + " 49" not in text, path
        if path.suffix == ".html" and path.stem != "transcripts":
            assert "<img src=x" not in text, path
            assert "<script>document" not in text, path
        if path.suffix == ".csv":
            cells = pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel()
            assert not [cell for cell in cells if cell.startswith(("=", "@", "\t", "\r"))], path
        if path.suffix in (".txt", ".md"):
            assert "\x1b" not in text, path
            assert "<img src=x" not in text, path
    asked = pd.read_parquet(ran / "results/smoke/data/prompts.parquet")
    assert {text for text in HOSTILE if asked["prompt"].str.startswith(text).any()} == set(HOSTILE)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
def test_report_and_transcripts_open_as_text(ran, tmp_path):
    report = browser.opened(ran / "report.html", tmp_path)
    assert report["said"] == []
    look = 'return {first: document.getElementById("asked").textContent, title: document.title};'
    read = browser.opened(ran / "results/tables/smoke/transcripts.html", tmp_path, look)
    assert read["said"] == []
    assert read["title"] == "Transcripts of smoke"
    assert any(text in read["first"] for text in HOSTILE) or "touch" in read["first"]
