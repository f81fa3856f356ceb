"""Where a run's results come from: its whole configuration, the overrides that it was given, and the code."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from holdfast.runtime.files import as_json, write_text
from holdfast.settings.options import Config

PACKAGES = ("holdfast", "torch", "transformers")


@dataclass(frozen=True)
class Origin:
    """`code`: the commit, and whether files have changed since."""

    cfg: Config
    overrides: list[str]
    code: dict[str, Any]

    @classmethod
    def of(cls, cfg: Config, overrides: list[str]) -> Origin:
        """To be asked before a run begins: its code may be edited while it lasts."""
        return cls(cfg, overrides, _code())

    def write(self, out: Path) -> None:
        versions = {name: _version(name) for name in PACKAGES}
        run = {"overrides": self.overrides, "seed": self.cfg.seed, **self.code, "versions": versions}
        write_text(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.cfg.as_dict())))
        write_text(out / "run.json", as_json(run))


def _code() -> dict[str, Any]:
    """Of the checkout that holds this package; without values where none does."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie in a checkout of something else
        first, *more = _git("status", "--porcelain=2", "--branch", "--untracked-files=no").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": first.removeprefix("# branch.oid "), "dirty": any(not line.startswith("#") for line in more)}


def _git(*words: str) -> str:
    package = Path(__file__).resolve().parents[1]
    command = ["git", "--no-optional-locks", *words]  # a stage waits for no other's look at the index
    return subprocess.run(command, cwd=package, capture_output=True, text=True, check=True).stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
