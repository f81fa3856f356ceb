"""The pages of benchmarks/gpu, and README's paragraph on what has not been run, from the records that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "gpu"
BEGIN, END = "<!-- begin: benchmarks/gpu.py --readme writes this -->", "<!-- end -->"
WHAT = {
    "tests": "the tests marked `gpu`",
    "noise": "the noise kernel",
    "steps-8b": "steps of a model of 8 B parameters",
    "steps-1b": "steps of one of 1 B",
    "steps-135m": "steps of one of 135 M",
    "large": "a random model of 8 B parameters through probe, refinement and evaluation at nf4 and W4A8",
    "smoke": "the DAG of `study=smoke`",
}


def cards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]


def write() -> None:
    """All pages anew, and README's paragraph."""
    for path in sorted(FOLDER.glob("*.json")):
        path.with_suffix(".md").write_text(page(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{paragraph()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def paragraph() -> str:
    """What ran on which card, and what on none, in lines of README's width."""
    import textwrap

    found = cards()
    sentences = []
    for card in found:
        done = [WHAT[part] for part in WHAT if part in card["parts"]]
        page = f"benchmarks/gpu/{stem(card)}.md"
        sentences.append(
            f"On an {card['card']} ran {_list(done)}{_failures(card)}: [results]({page}). Versions: {_versions(card)}."
        )
    missing = [WHAT[part] for part in WHAT if not any(part in card["parts"] for card in found)]
    if missing:
        sentences.append(f"On no card ran {_list(missing)}. `make gpu` is for whoever has one.")
    return textwrap.fill(" ".join(sentences), 125, break_long_words=False, break_on_hyphens=False)


def _versions(card: dict[str, Any]) -> str:
    return ", ".join(f"{key} {card[key]}" for key in ("Python", "CUDA", "torch", "Triton", "transformers"))


def _failures(card: dict[str, Any]) -> str:
    failed = [WHAT[part] for part, found in card["parts"].items() if found.get("exit")]
    return f", where {_list(failed)} failed" if failed else ""


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def stem(card: dict[str, Any]) -> str:
    """Of the names of a card's files."""
    return re.sub(r"[^a-z0-9]+", "-", card["card"].lower())


def page(card: dict[str, Any]) -> str:
    """One card's results, as Markdown."""
    lines = [f"# {card['card']}, {card['memory, GiB']} GiB", "", f"Written by `make gpu`. {_versions(card)}.", ""]
    for part in WHAT:
        if part in card["parts"]:
            found = card["parts"][part]
            lines += [
                f"## {part}: {WHAT[part]}",
                "",
                *SECTIONS[part](found),
                "",
                f"Took {found['seconds']:.0f} s.",
                "",
            ]
    return "\n".join(lines)


def _tests(found: dict[str, Any]) -> list[str]:
    bad = found.get("failures", 0) + found.get("errors", 0)
    passed = found["tests"] - bad - found["skipped"]
    lines = [f"{passed} passed, {bad} failed, {found['skipped']} skipped (those that need two cards)."]
    return [*lines, *(f"- failed: `{name}`" for name in found["failed"])]


def _smoke(found: dict[str, Any]) -> list[str]:
    if found["exit"]:
        return [f"Ended with exit code {found['exit']}."]
    times = "; ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["stages"].items())
    return [f"Its stages took: {times}."]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from tabulate import tabulate

    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g").splitlines()


def _noise(found: dict[str, Any]) -> list[str]:
    return [
        "float32 masters, bfloat16 weights. Bytes read and written a second, beside a copy timed in turn with it.",
        "",
        *_table(found["rows"]),
    ]


def _steps(found: dict[str, Any]) -> list[str]:
    return [
        "`zo_step.py`, bfloat16. Each variant was timed in turn with the floor, two bare forwards with full logits.",
        "",
        *_table(found["rows"]),
    ]


def _large(found: dict[str, Any]) -> list[str]:
    size = f"{found['parameters'] / 1e9:.2f} B parameters, {found['layers']} layers, random, bfloat16"
    return [f"{size}. Memory is what torch held, and what `holdfast plan` predicts of it.", "", *_table(found["rows"])]


SECTIONS = {"tests": _tests, "noise": _noise, "large": _large, "smoke": _smoke}
SECTIONS |= {part: _steps for part in WHAT if part.startswith("steps")}
