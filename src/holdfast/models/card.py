"""The card of a model that is shipped: how it was refined, what of its files is the base's own, what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from holdfast.settings.options import Config
from holdfast.settings.paths import Layout

CARD = """---
{front}---
# {name}, hardened with {method}

Refined by holdfast ([the method](https://arxiv.org/abs/2605.29396)) so that its safety alignment withstands noise
and quantization better than that of `{given}`. Whether it does is measured below, before ({reference}) and after
({method}).

- layers: {layers}; {steps} steps of {queries} queries, μ = {mu:g} of each matrix's rms, loss `{loss}`
- {forwards:,} forward-equivalents of a batch of {batch}{trajectory}
- tensors: {tensors}
- configuration and tokenizer: {files}

{table}
## What this does not say

The prompts were those of `{sources}`; other harm, other languages and other attacks were not measured. What the base
model answered undisturbed, this one answers too. The licence of the base model applies.
"""
TRAJECTORY = """
- `trajectory.jsonl` holds the whole refinement; with the base weights it gives these, bitwise:
  `holdfast replay base={given} trajectory=trajectory.jsonl out=replayed`"""


@dataclass(frozen=True)
class Said:
    """What a card says of the tensors and of the other files."""

    tensors: str
    files: str


def card(refined: Path, base: Path, given: str, cfg: Config, said: Said, log: bool) -> str:
    """The text of README.md; `said` is what was written."""
    spent = json.loads((refined / "metrics.json").read_text(encoding="utf-8"))
    layout, r = Layout.of(cfg), cfg.refine
    own = OmegaConf.load(refined / "config.yaml").method  # as it was refined
    table = (layout.tables / "main.md").read_text(encoding="utf-8")
    method = refined.parent.name
    return CARD.format(
        front=_front(base, given),
        name=given.rstrip("/").rpartition("/")[2],
        method=method,
        given=given,
        reference=cfg.study.reference,
        layers=", ".join(spent["layers"]),
        steps=len(spent["loss"]),
        queries=own.get("queries", r.queries),
        mu=own.get("mu", r.mu),
        loss=r.loss,
        forwards=spent["forwards"],
        batch=r.batch_size,
        trajectory=TRAJECTORY.format(given=given) if log else "",
        tensors=said.tensors,
        files=said.files,
        table=table,
        sources="`, `".join(cfg.data.sources) or cfg.data.kind,
    )


def _front(base: Path, given: str) -> str:
    """The card's metadata: the base model, and its licence as its own card names it."""
    lines = [] if Path(given).exists() else [f"base_model: {given}\n"]
    own = base / "README.md"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    lines += [f"{line}\n" for line in (front[1] if front else "").splitlines() if line.startswith("license")]
    return "".join([*lines, "library_name: transformers\n", "tags: [safety, robustness, zeroth-order]\n"])
