"""The folder that is shipped: a refined model in the form of its base, its trajectory, and a card."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.runtime.files import write_text
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout

TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
CARD = """---
{front}---
# {name}, hardened with {method}

Refined by holdfast ([the method](https://arxiv.org/abs/2605.29396)) so that its safety alignment withstands noise
and quantization better than that of `{given}`. Whether it does is measured below, before ({reference}) and after
({method}).

- layers: {layers}; {steps} steps of {queries} queries, μ = {mu:g} of each matrix's rms, loss `{loss}`
- {forwards:,} forward-equivalents of a batch of {batch}{trajectory}
- tensors: {tensors}

{table}
## What this does not say

The prompts were those of `{sources}`; other harm, other languages and other attacks were not measured. What the base
model answered undisturbed, this one answers too. The licence of the base model applies.
"""
TRAJECTORY = """
- `trajectory.jsonl` holds the whole refinement; with the base weights it gives these, bitwise:
  `holdfast replay base={given} trajectory=trajectory.jsonl out=replayed`"""


def package(refined: Path, base: Path, given: str, cfg: Config, out: Path) -> None:
    """Write `out`, whole or not at all, from the run folder of a refinement; `given` is how the user named `base`.

    Raises `UserError` where a tensor of the base is missing, has another shape or, if `model.dtype` is auto, another
    type: converters and servers look tensors up by name.
    """
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(refined / "model", temporary, copy_function=_linked)
    for pattern in TERMS:
        for path in base.glob(pattern):
            shutil.copy2(path, temporary)
    log = refined / "trajectory.jsonl"
    if log.exists():
        shutil.copy2(log, temporary)
    tensors = _agree(base, temporary, cfg.model.dtype == "auto")
    write_text(temporary / "README.md", _card(refined, base, given, cfg, tensors, log.exists()))
    if out.is_dir():
        out.rmdir()
    os.replace(temporary, out)


def _linked(source: str, target: str) -> str:
    """A hard link where the file system allows it, because weights are large; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def tensors(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and shape of every tensor of a folder's safetensors, from their headers alone."""
    found: dict[str, tuple[str, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        found |= {name: (t["dtype"], t["shape"]) for name, t in header.items() if name != "__metadata__"}
    return found


def _agree(base: Path, made: Path, same_type: bool) -> str:
    """Compare names, shapes and types of the tensors; gives the card's line. A tied head need not be stored twice."""
    ours, theirs = tensors(made), tensors(base)
    tied = json.loads((made / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    missing = {name for name in theirs.keys() - ours.keys() if not (tied and name.startswith("lm_head"))}
    if wrong := sorted(missing | (ours.keys() - theirs.keys())):
        raise UserError(f"{made}: tensors are named otherwise than in {base}: {', '.join(wrong[:4])}")
    common = ours.keys() & theirs.keys()
    if reshaped := sorted(name for name in common if ours[name][1] != theirs[name][1]):
        raise UserError(f"{made}: {reshaped[0]} is {ours[reshaped[0]][1]}, in {base} {theirs[reshaped[0]][1]}")
    retyped = sorted(name for name in common if ours[name][0] != theirs[name][0])
    if retyped and same_type:
        raise UserError(f"{made}: {retyped[0]} is {ours[retyped[0]][0]}, in {base} {theirs[retyped[0]][0]}")
    if retyped:
        return f"the names of the base; {len(retyped)} of {len(common)} are {ours[retyped[0]][0]}, as asked for"
    return "names and types are those of the base"


def _card(refined: Path, base: Path, given: str, cfg: Config, said: str, log: bool) -> str:
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
        tensors=said,
        table=table,
        sources="`, `".join(cfg.data.sources) or cfg.data.kind,
    )


def _front(base: Path, given: str) -> str:
    """The card's metadata: the base model, and its licence as its own card names it."""
    lines = [] if Path(given).exists() else [f"base_model: {given}\n"]
    card = base / "README.md"
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.S) if card.is_file() else None
    lines += [f"{line}\n" for line in (front[1] if front else "").splitlines() if line.startswith("license")]
    return "".join([*lines, "library_name: transformers\n", "tags: [safety, robustness, zeroth-order]\n"])
