"""The page of findings quotes nothing that the committed tables do not show."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import stage_here

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/findings.md").read_text(encoding="utf-8")


def test_every_interval_is_in_a_table():
    pages = [*(ROOT / "docs/evidence/tables").glob("*.md"), *(ROOT / "docs/evidence/smollm2").rglob("*.md")]
    tables = " ".join(path.read_text(encoding="utf-8") for path in pages)
    quoted = re.findall(r"[+-]?\d+\.\d+\s\[[^\]]+\]", PAGE)
    assert len(quoted) > 10
    assert not [cell for cell in quoted if re.sub(r"\s+", " ", cell) not in tables]


def test_the_readme_quotes_the_real_model_as_it_was_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## What ran where")[0]
    pages = [
        ROOT / "docs/evidence/smollm2" / name for name in ("hardening.md", "tables/main.md", "tables/controls.md")
    ]
    table = " ".join(page.read_text(encoding="utf-8") for page in pages)
    quoted = re.findall(r"-\d+\.\d \S*\s?\[[^\]]+\]|(\d+\.\d) %", readme)
    assert len(quoted) >= 4
    assert not [cell for cell in quoted if cell and cell not in table]
    assert not [cell for cell in re.findall(r"\[-[^\]]+\]", readme) if cell not in table]
    rows = [line for line in readme.splitlines() if re.search(r"\| .*\d\.\d", line)]
    assert len(rows) == 5
    main = "".join(page.read_text(encoding="utf-8") for page in pages[1:]).replace("**", "")
    for row in rows:  # of a method each, as its row of the main table or of the controls' has them
        name = next(iter(re.findall(r"`(\w+)`", row)), "aligned")
        shown = next(line for line in main.splitlines() if re.match(rf"\|[^|]*\| {name} ", line))
        cells = [cell.strip().replace(", Δ", " Δ") for cell in row.split("|")[2:-1]]
        assert not [cell for cell in cells if cell not in shown]


def test_the_real_models_records_make_its_tables(tmp_path):
    kept = ROOT / "docs/evidence/smollm2"
    given = (
        f"tables.source={kept}",
        f"tables.dir={tmp_path}",
        f"results={tmp_path}",
        "tables.make=[main,controls,claims]",
    )
    stage_here("tables", "study=smollm2", *given)
    for name in ("main.md", "main.txt", "controls.md", "claims.md", "claims.txt"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (kept / "tables" / name).read_text(encoding="utf-8")
