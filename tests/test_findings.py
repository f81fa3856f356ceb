"""The page of findings quotes nothing that the committed tables do not show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/findings.md").read_text(encoding="utf-8")


def test_every_interval_is_in_a_table():
    tables = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/evidence/tables").glob("*.md"))
    quoted = re.findall(r"[+-]?\d+\.\d+\s\[[^\]]+\]", PAGE)
    assert len(quoted) > 10
    assert not [cell for cell in quoted if re.sub(r"\s+", " ", cell) not in tables]
