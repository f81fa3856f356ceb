"""Refine a model that comes aligned, evaluate it before and after, and write what can be shipped.

holdfast harden model=<Hub id or folder> out=<folder> [overrides, as of study=harden]
"""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from holdfast.errors import UserError
from holdfast.models.load import fetched
from holdfast.settings.compose import composed
from holdfast.settings.options import Config
from holdfast.settings.overrides import quoted
from holdfast.settings.paths import SHARE, Layout

READS = ("data", "probe", "method", "refine", "perturb", "judge", "evaluate", "claims")
BASE = ("study=harden", "model=own")  # what all overrides come on top of
HERE = ("data.dir", "model.origin", "results", "tracking.dir")  # paths, given from where the user stands


def main(arguments: list[str]) -> str:
    """Runs the study `harden` of the one model, resuming what an earlier call left; gives what to tell the user."""
    model, out, overrides = _parsed(arguments)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there and not empty; give a new folder")
    cfg = composed([*BASE, *overrides])
    method = _method(cfg)
    base = fetched(model, cfg.model.revision)  # a model that is not to be had says so before anything is begun
    layout = Layout.of(cfg)
    table = str(layout.tables / "main.md")  # of all tables the one that the card shows
    snakefile = ["--snakefile", str(SHARE / "Snakefile")]
    command = [sys.executable, "-m", "snakemake", *snakefile, "--nolock", "--quiet", "all", "--cores", "all", table]
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "overrides.txt")  # neither YAML nor a shell has a say in them
        given.write_text("\n".join(overrides), encoding="utf-8")
        with _alone(layout.root) as lock:
            own = ["--config", "study=harden", f"set=@{given}"]
            ended = subprocess.run([*command, *own], pass_fds=[lock.fileno()], check=False)
    if ended.returncode:
        raise UserError("a stage failed; its own words are above, and the same command goes on from there")

    from holdfast.models.package import package

    package(layout.refine("own", cfg.align.name, method, cfg.study.seeds[0]), base, model, cfg, out)
    return f"harden   {_before_and_after(layout, method)}; wrote {out}"


@contextmanager
def _alone(folder: Path) -> Iterator[IO[str]]:
    """A lock on the folder, which Snakemake inherits: it is held while one of the two lives, however they end.
    Snakemake's own would stay behind. Raises `UserError` where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another holdfast harden works there; wait for it, or give results=…") from None
        yield lock


def _parsed(arguments: list[str]) -> tuple[str, Path, list[str]]:
    """The model, the folder to write and the overrides of the study, in which paths no longer depend on where the
    stages run."""
    asked, overrides = {"model": "", "out": ""}, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in asked:
            asked[key] = value
        elif key in HERE and "$" not in value:
            overrides.append(f"{key}={quoted(Path(value).expanduser().absolute()) if _is_path(key, value) else value}")
        else:
            overrides.append(argument)
    for key, value in asked.items():
        if not value:
            raise UserError(f"{key}: no value is given; holdfast harden model=<Hub id or folder> out=<folder>")
    given = asked["model"]
    chosen = composed([f"model={given}"]).model  # a name of conf/model, a folder or a Hub id
    path = str(chosen.path)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-.")
    for key in ("revision", "chat_template"):
        overrides += [f"model.{key}={value}"] * ((value := getattr(chosen, key)) is not None)
    if not any(override.startswith("results=") for override in overrides):
        overrides.append(f"results={quoted(Path('results').absolute())}")
    out, own = Path(asked["out"]).expanduser(), [f"study.name=harden-{name}", f"model.path={quoted(path)}"]
    return path if given == chosen.name else given, out, [*own, *overrides]


def _is_path(key: str, value: str) -> bool:
    return key != "model.origin" or Path(value).is_dir()  # which may be a Hub id


def _method(cfg: Config) -> str:
    """The one method beside the reference."""
    methods = [method for method in cfg.study.methods if method != cfg.study.reference]
    if len(methods) != 1 or len(cfg.study.methods) != 2:
        raise UserError(
            f"study.methods={list(cfg.study.methods)}: give {cfg.study.reference} and the method to harden with"
        )
    return str(methods[0])


def _before_and_after(layout: Layout, method: str) -> str:
    """The primary metric of both, at every headline level."""
    import pandas as pd

    frame = pd.read_csv(layout.tables / "main.csv")
    wide = frame[frame["metric"] == "asr_matched"].pivot(index="column", columns="method", values="estimate")
    order = frame["column"].drop_duplicates()
    rows = (100 * wide.loc[order]).dropna().itertuples()
    place = list(wide.columns).index(method)
    return "matched ASR in %, before and after: " + "; ".join(
        f"{row[0]} {row[1 + (1 - place)]:.1f} → {row[1 + place]:.1f}" for row in rows
    )
