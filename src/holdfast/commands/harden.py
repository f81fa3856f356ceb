"""Refine a model that comes aligned, evaluate it before and after, and write what can be shipped.

holdfast harden model=<Hub id, folder or GGUF file> out=<folder> [overrides, as of study=harden]
"""

from __future__ import annotations

from pathlib import Path

from holdfast.commands.own_model import OwnModel, parsed, run
from holdfast.errors import UserError
from holdfast.models.load import fetched
from holdfast.settings.compose import composed
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout

READS = ("data", "probe", "method", "refine", "perturb", "judge", "evaluate", "claims")
BASE = ("study=harden", "model=own")  # what all overrides come on top of


def main(arguments: list[str]) -> str:
    """Runs the study `harden` of the one model, resuming what an earlier call left; gives what to tell the user."""
    asked, overrides = parsed(arguments, ("model", "out"))
    for key, value in asked.items():
        if not value:
            raise UserError(
                f"{key}: no value is given; holdfast harden model=<Hub id, folder or GGUF file> out=<folder>"
            )
    out = Path(asked["out"]).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there and not empty; give a new folder")
    model = OwnModel.of(asked["model"])
    overrides = [f"study.name=harden-{model.name()}", *model.overrides, *overrides]
    cfg = composed([*BASE, *overrides])
    method = _method(cfg)
    base = fetched(model.given, cfg.model.revision)  # one that is not to be had says so before anything is begun
    layout = Layout.of(cfg)
    run("harden", overrides, layout, [layout.tables / "main.md"])  # of all tables the one that the card shows

    from holdfast.models.package import package

    package(layout.refine("own", cfg.align.name, method, cfg.study.seeds[0]), base, model.given, cfg, out)
    return f"harden   {_before_and_after(layout, method)}; wrote {out}"


def _method(cfg: Config) -> str:
    """The one method beside the reference."""
    methods = [method for method in cfg.study.methods if method != cfg.study.reference]
    if len(methods) != 1 or len(cfg.study.methods) != 2:
        raise UserError(
            f"study.methods={list(cfg.study.methods)}: give {cfg.study.reference} and the method to harden with"
        )
    return str(methods[0])


def _before_and_after(layout: Layout, method: str) -> str:
    """The ASR of both, clean and at every family's level."""
    import pandas as pd

    frame = pd.read_csv(layout.tables / "main.csv").query("metric == 'asr'").dropna(subset="estimate")
    wide = 100 * frame.pivot(index="column", columns="method", values="estimate").loc[frame["column"].unique()]
    before = next(name for name in wide.columns if name != method)
    return "harmful prompts answered in %, before and after: " + "; ".join(
        f"{column} {was:.1f} → {now:.1f}"
        for column, was, now in zip(wide.index, wide[before], wide[method], strict=True)
    )
