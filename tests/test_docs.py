"""Code blocks of the documentation run as printed, on a random model in the place of the study's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    (name, block)
    for name in ("README.md", "docs/trainer.md", "docs/method.md")
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)
]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_python_blocks_run_as_printed(name, block, tmp_path, tokenizer):
    from conftest import random_llama

    folder = tmp_path / "results/tiny/tiny/sft/align/s0/model"
    random_llama(tokenizer, layers=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ended = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr


def test_links_between_pages_lead_somewhere():
    pages = [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_pages_of_cards_and_the_paragraph_on_them_are_made_from_their_records():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_pages

    assert f"{gpu_pages.BEGIN}\n{gpu_pages.paragraph()}\n{gpu_pages.END}" in (ROOT / "README.md").read_text()
    for card, path in zip(gpu_pages.cards(), sorted(gpu_pages.FOLDER.glob("*.json")), strict=True):
        assert path.with_suffix(".md").read_text() == gpu_pages.page(card)


def test_the_readme_is_short_and_so_are_its_sentences():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    for part in (r"```.*?```", r"<!--.*?-->", r"!\[.*?\]\(.*?\)", r"\]\([^)]*\)", r"\|[^\n]*\|\n"):
        text = re.sub(part, "", text, flags=re.S)
    sentences = [one for block in text.split("\n\n") for one in re.split(r"(?<=[.!?:])\s+", " ".join(block.split()))]
    assert len(sentences) > 50
    assert not [one for one in sentences if len(one.split()) > 30]


def test_files_that_pages_name_are_there():
    pages = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"))]
    for page in [*pages, *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|yaml|smk|jinja))`", page.read_text(encoding="utf-8")):
            found = any((folder / name).exists() for folder in (ROOT, ROOT / "src/holdfast"))
            assert found or name.startswith("mine/"), f"{page.name}: {name}"


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    fetches = re.compile(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+stylesheet[^>]+href="https?:')
    assert not [page for page in pages if fetches.search(page.read_text(encoding="utf-8"))]
    method = (tmp_path / "method/index.html").read_text(encoding="utf-8")
    assert method.count("<math") > 50
    assert not re.search(r"\$|\\mathrm", method.partition("<article")[2].partition("</article>")[0])
