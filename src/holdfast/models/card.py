"""The card of a model that is shipped: how it was refined, what of its files is the base's own, what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from holdfast.settings.options import Config

CARD = """---
{front}---
# {name}, hardened with {method}

Refined by holdfast ([the paper that it implements](https://arxiv.org/abs/2605.29396)) so that its safety alignment
withstands the deployment ({deployment}) better than that of `{given}`.

## Measured before and after

{measured}
All families, before ({reference}) and after ({method}):
{figure}
{table}
## How it was made

- {how}, loss `{loss}`, {layers}
- {forwards:,} forward-equivalents of a batch of {batch} prompts; {seconds:.0f} s
- {again}
- tensors: {tensors}
- configuration and tokenizer: {files}

## What this does not say

The prompts were those of `{sources}`; other harm, other languages and other attacks were not measured. The
intervals are for other prompts of the same kind. The licence of the base model applies.
"""
FIGURE = "![Harmful prompts answered before (grey) and after (black) by family, and what guards them]({name})"
TRAJECTORY = """`trajectory.jsonl` holds the whole refinement; with the base weights it gives these, bitwise:
  `holdfast replay base={given}{origin} trajectory=trajectory.jsonl out=replayed`"""
TOLD = ("lr", "sigma", "mu", "queries")  # of a method's options
AGAIN = """the same command gives the same weights, bitwise, of the same prompts, on the same processor, with as many
  threads and these versions: torch {torch}, transformers {transformers}"""


@dataclass(frozen=True)
class Said:
    """What a card says of the tensors and of the other files."""

    tensors: str
    files: str


@dataclass(frozen=True)
class Shown:
    """What a card says of the measurement, in Markdown: of the deployment, its name and the numbers; of all families,
    a table and the file of a figure."""

    deployment: str
    numbers: str
    table: str
    figure: Path | None = None


def card(refined: Path, base: Path, given: str, cfg: Config, said: Said, shown: Shown) -> str:
    """The text of README.md; `said` is what was written."""
    spent, timing = (json.loads((refined / f"{name}.json").read_text("utf-8")) for name in ("metrics", "timing"))
    own = OmegaConf.load(refined / "config.yaml").method  # as it was refined
    method = refined.parent.name
    versions = {name: version(name) for name in ("torch", "transformers")}
    return CARD.format(
        front=_front(base, given),
        name=given.rstrip("/").rpartition("/")[2],
        method=method,
        given=given,
        deployment=shown.deployment,
        measured=shown.numbers,
        table=shown.table,
        figure=f"\n{FIGURE.format(name=shown.figure.name)}\n" if shown.figure else "",
        reference=cfg.study.reference,
        how=_how(own, spent),
        layers=_layers(spent["layers"]),
        loss=cfg.refine.loss,
        forwards=spent["forwards"],
        batch=cfg.refine.batch_size,
        seconds=timing["method_seconds"],
        again=_again(refined, given, cfg.model.origin) or AGAIN.format(**versions),
        tensors=said.tensors,
        files=said.files,
        sources="`, `".join(cfg.data.sources) or cfg.data.kind,
    )


def _again(refined: Path, given: str, origin: str | None) -> str | None:
    """How to replay the log, where there is one. Of directions that it does not come with the model before alignment,
    `origin`, makes them anew."""
    log = refined / "trajectory.jsonl"
    if not log.exists():
        return None
    with log.open(encoding="utf-8") as lines:
        anew = "directions" in json.loads(next(lines)) and not (refined / "directions.safetensors").exists()
    return TRAJECTORY.format(given=given, origin=f" origin={origin}" if anew else "")


def _how(method: Any, spent: dict[str, Any]) -> str:
    """The method with its own numbers."""
    numbers = {key: value for key, value in method.items() if key in TOLD} | {
        key: spent[key] for key in ("strength",) if key in spent
    }
    told = ", ".join(f"{key} = {value:g}" for key, value in numbers.items())
    return f"`{method.kind}`, {len(spent['loss'])} steps, {told}"


def _layers(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} layers"


def _front(base: Path, given: str) -> str:
    """The card's metadata: the base model, and its licence as its own card names it."""
    lines = [] if Path(given).exists() else [f"base_model: {given}\n"]
    own = base / "README.md"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    lines += [f"{line}\n" for line in (front[1] if front else "").splitlines() if line.startswith("license")]
    return "".join([*lines, "library_name: transformers\n", "tags: [safety, robustness, zeroth-order]\n"])
