"""What is installed, and how little of it the engine needs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned():
    pinned = {normal(name) for name in PINS}
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"study", "gpu", "torchao", "eval", "dev"}
    asked = [r for extra in extras.values() for r in extra if not r.startswith("holdfast[")]
    for requirement in [*PROJECT["dependencies"], *asked]:
        assert normal(re.split(r"[\[<>=]", requirement)[0]) in pinned
    assert PINS["torch"] == "2.13.0"


def test_lower_bounds_are_of_versions_that_ran():
    """Here, as pinned, or on a card, as recorded."""
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/gpu").glob("*.json")]
    extras = PROJECT["optional-dependencies"]
    for bound in [
        *PROJECT["dependencies"],
        *(bound for extra in ("study", "gpu", "torchao", "eval") for bound in extras[extra]),
    ]:
        name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)", bound).groups()
        ran = [next(pin for known, pin in PINS.items() if normal(known) == normal(name))]
        ran += [record[key] for record in records for key in record if key.lower() == name]
        assert any(f"{version}.".startswith(f"{least}.") for version in ran), (bound, ran)
