"""The commands of the documentation, one by one, and how each runs on what `study=smoke` has made."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/method.md", "docs/tracking.md", "docs/findings.md", "docs/glossary.md")
STAGES = ("data", "pretrain", "align", "probe", "refine", "tune", "evaluate", "judge", "tables")


def commands() -> list[str]:
    """Of every page but the one on extending, which has tests of its own; without comments, each once."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += re.findall(r"`(holdfast [^`…<]+)`", text)
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            found += [re.sub(r"\s+#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in found if line))


def module(line: str) -> str:
    """`refine` of `holdfast refine …`; nothing of another command."""
    found = re.match(r"holdfast ([\w.]+)", line)
    return found[1] if found else ""


def long(line: str) -> bool:
    """What takes too long even at study=smoke, or needs what another study made: there options are checked."""
    return module(line) == "harden" or "study=tuning" in line or "tables.source=" in line


def at_smoke(line: str) -> list[str]:
    """The command's arguments, with the names of what is there in the place of those of a longer study."""
    line = re.sub(r"results/tiny\b", "results/smoke", line).replace("seed=0,1", "seed=0").replace("seed=1", "seed=0")
    words = shlex.split(re.sub(r"study=(tiny|paper|real_prompts|steps)", "study=smoke", line).replace("$PWD/", ""))
    if words[0] == "snakemake":
        asked = [word for word in words[1:] if word not in ("-n", "study=smoke")]
        return ["-n", *asked, *(["--config"] * ("--config" not in asked)), "study=smoke"]
    arguments = words[2:]
    if any(word.startswith("sweep=") for word in arguments):
        return arguments
    if module(line) in STAGES:
        arguments += ["study=smoke", "tracking=disabled"]
    if module(line) == "tune":
        arguments += ["perturb=[wanda]"]  # of the whole grid one family
    if module(line) == "plan":
        arguments += ["plan.flops=1e11", "plan.bandwidth=1e10"]  # which it would otherwise measure
    return arguments
