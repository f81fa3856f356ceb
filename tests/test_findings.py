"""The page of findings quotes nothing that the committed tables do not show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from holdfast.compose import composed, sweep

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/findings.md").read_text(encoding="utf-8")


def test_every_interval_is_in_a_table():
    tables = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/evidence/tables").glob("*.md"))
    quoted = re.findall(r"[+-]?\d+\.\d+\s\[[^\]]+\]", PAGE)
    assert len(quoted) > 10
    assert not [cell for cell in quoted if re.sub(r"\s+", " ", cell) not in tables]


def test_its_commands_compose():
    commands = re.findall(r"^python -m (holdfast\.\S+) ((?:.*\\\n)*.*)$", PAGE, re.M)
    assert len(commands) >= 4
    for stage, words in commands:
        if stage != "holdfast.tuned":
            for job in sweep([word for word in shlex.split(words.replace("\\\n", " ")) if word != "-m"]):
                composed(job)
