"""What is installed, and how little of it the engine needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

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
    assert set(extras) == {"study", "gpu", "eval", "sweep", "slurm", "dev"}
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
        *(bound for extra in ("study", "gpu", "eval", "sweep") for bound in extras[extra]),
    ]:
        name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:;.*)?", bound).groups()
        ran = [next(pin for known, pin in PINS.items() if normal(known) == normal(name))]
        ran += [record[key] for record in records for key in record if key.lower() == name]
        assert any(f"{version}.".startswith(f"{least}.") for version in ran), (bound, ran)


def test_the_engine_needs_torch_and_numba_alone():
    blocked = (
        "pydantic",
        "hydra",
        "omegaconf",
        "transformers",
        "trl",
        "peft",
        "pandas",
        "scipy",
        "snakemake",
        "wandb",
    )
    code = f"import sys; sys.modules |= dict.fromkeys({blocked!r}); from holdfast.zo import *; print(ZeroOrderRefiner)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "<class 'holdfast.zo.refiner.ZeroOrderRefiner'>\n", ended.stderr


def test_a_verb_without_its_libraries_says_what_to_install():
    code = "import sys; sys.modules['pydantic'] = None; from holdfast.__main__ import main; main(['refine'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr == "holdfast refine: pydantic is not installed; pip install 'holdfast[study]'\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel puts into site-packages, built from a copy of the checkout."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("src", "conf", "workflow", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("Snakefile", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, capture_output=True)
    return site


def test_an_installed_package_has_all_that_a_study_needs(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed), "WANDB_MODE": "disabled"}

    def ran(*command: str) -> str:
        given = [sys.executable, "-m", *command]
        ended = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    assert "refine.steps = 25" in ran("holdfast", "refine", "--help")
    snakefile = str(installed / "holdfast/share/Snakefile")
    assert "evaluate" in ran("snakemake", "--snakefile", snakefile, "-n", "--config", "study=smoke")


def test_what_has_no_wheel_elsewhere_is_for_linux_alone():
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(one) for one in [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]]
    triton = [one for one in found if one.name == "triton"]
    assert triton
    assert not any(one.marker.evaluate({"sys_platform": "darwin"}) for one in triton)
    assert all(Version(v) in SpecifierSet(PROJECT["requires-python"]) for v in ("3.11", "3.12", "3.13"))
