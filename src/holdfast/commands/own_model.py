"""A model of one's own as a study, for the commands that have one: Snakemake runs it, and resumes what was begun."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from holdfast.errors import UserError
from holdfast.settings.compose import composed
from holdfast.settings.overrides import files, quoted
from holdfast.settings.paths import SHARE, Layout

HERE = ("data.dir", "model.origin", "results", "tracking.dir")  # paths, given from where the user stands


@dataclass(frozen=True)
class OwnModel:
    """A model of the command line. `given`: its folder or Hub id as the user wrote it; `path`: the same, a folder from
    the root on; `overrides` make it the model of a study of `own`."""

    given: str
    path: str
    overrides: list[str]

    @classmethod
    def of(cls, given: str) -> OwnModel:
        """From a folder, a Hub id or a name of conf/model. Raises `UserError` where it is none."""
        chosen = composed([f"model={given}"]).model
        if chosen.source is None:
            raise UserError(f"{given}: is made in a study; give a folder or Hub id")
        path = str(chosen.source)
        told = {"path": quoted(path), "revision": chosen.revision, "chat_template": chosen.chat_template}
        overrides = [f"model.{key}={value}" for key, value in told.items() if value is not None]
        return cls(path if given == chosen.name else given, path, overrides)

    def name(self, parts: int = 1) -> str:
        """So many last parts of the path, as a study may be called."""
        last = self.path.strip("/").split("/")[-parts:]
        return "-".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") for part in last)


def measures(arguments: list[str]) -> bool:
    """Whether `holdfast evaluate` is asked to measure a model of one's own, and not for the stage alone: the model is
    a folder or Hub id, or there is one to measure it against, and nothing is said of a method or run folder."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.keys() & {"method", "hydra.run.dir"} or any(argument.startswith("-") for argument in arguments):
        return False
    model = given.get("model", "")
    own = model not in files("model") and ("/" in model or Path(model).expanduser().exists())
    return "against" in given or own


def parsed(arguments: list[str], keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of `keys`, "" where none is given, and the overrides of the study, in which paths no longer depend on
    where the stages run. Raises `UserError` where another study is asked for."""
    asked, overrides = dict.fromkeys(keys, ""), []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "study":
            raise UserError(f"{argument}: this command has a study of its own; give the keys that shall differ")
        if key in asked:
            asked[key] = value
        elif key in HERE and "$" not in value:
            overrides.append(f"{key}={quoted(Path(value).expanduser().absolute()) if _is_path(key, value) else value}")
        else:
            overrides.append(argument)
    if not any(override.startswith("results=") for override in overrides):
        overrides.append(f"results={quoted(Path('results').absolute())}")
    return asked, overrides


def _is_path(key: str, value: str) -> bool:
    return key != "model.origin" or Path(value).is_dir()  # which may be a Hub id


def run(study: str, overrides: list[str], layout: Layout, targets: Sequence[Path]) -> None:
    """Make the targets of a study. Raises `UserError` where a stage fails, or another process is at it."""
    snakefile = ["--snakefile", str(SHARE / "Snakefile")]
    command = [sys.executable, "-m", "snakemake", *snakefile, "--nolock", "--quiet", "all", "--cores", "all"]
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "overrides.txt")  # neither YAML nor a shell has a say in them
        given.write_text("\n".join(overrides), encoding="utf-8")
        own = ["--config", f"study={study}", f"set=@{given}"]
        with alone(layout.root) as lock:
            ended = subprocess.run([*command, *map(str, targets), *own], pass_fds=[lock.fileno()], check=False)
    if ended.returncode:
        raise UserError("a stage failed; its own words are above, and the same command goes on from there")


@contextmanager
def alone(folder: Path) -> Iterator[IO[str]]:
    """A lock on the folder, which Snakemake inherits: it is held while one of the two lives, however they end.
    Snakemake's own would stay behind. Raises `UserError` where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another holdfast works there; wait for it, or give results=…") from None
        yield lock
