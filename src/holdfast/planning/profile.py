"""What a cluster's jobs ask for, by a plan: the part of a Snakemake profile that depends on the study."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.runtime.files import read_text
from holdfast.settings.paths import SHARE

TEMPLATE = SHARE / "profiles/slurm/config.yaml"
BEGIN, END = "# begin: holdfast plan writes this", "# end"
CHAIN = ("refine", "evaluate", "judge")  # of one model, method and seed: each waits for the one before
SHORT = 600  # seconds, below which a job is not worth its place in a queue
MEMORY, TIME = 1.3, 2.0  # what is asked for of what is planned; a retry asks for as much again
QUEUED = 5  # minutes that every job may take beside its work, on a busy file system


class Need(NamedTuple):
    """Of the largest job of a rule: seconds, and MiB of the machine's own memory."""

    seconds: float
    memory: float


def write(folder: Path, needs: Mapping[str, Need]) -> str:
    """Put what the jobs of each rule need into `folder`/config.yaml, a copy of profiles/slurm if it is not there.

    Raises `UserError` for a profile that does not have the two lines between which it stands.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATE, path)
    before, begun, rest = read_text(path).partition(f"{BEGIN}\n")
    _, ended, after = f"\n{rest}".partition(f"\n{END}\n")
    if not (begun and ended):
        raise UserError(f"{path}: lacks a line {BEGIN!r}, or {END!r} after it; take a new folder")
    path.write_text(f"{before}{begun}{_asked(needs)}{END}\n{after}", encoding="utf-8")
    return f"wrote {path}: what {len(needs)} rules ask for"


def _asked(needs: Mapping[str, Need]) -> str:
    found: dict[str, object] = {
        "set-resources": {
            rule: {
                "mem_mb": f"{math.ceil(MEMORY * need.memory)} * attempt",
                "runtime": f"{math.ceil(TIME * need.seconds / 60) + QUEUED} * attempt",
            }
            for rule, need in needs.items()
        }
    }
    chain = [rule for rule in CHAIN if rule in needs]
    if sum(needs[rule].seconds for rule in chain) < SHORT:
        found["groups"] = [f"{rule}=chain" for rule in chain]
    return OmegaConf.to_yaml(found)
