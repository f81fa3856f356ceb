"""The overrides that a call of the workflow gives by `set=`, and which of them would have no effect."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from holdfast.errors import UserError
from holdfast.runtime.files import read_text
from holdfast.settings.schema import Study

ONE_MODEL = ("model.path", "model.revision", "model.origin", "model.chat_template")  # of no two models


def overrides_of(text: Any) -> list[str]:
    """The overrides of `set=`: words as a shell has them, or the lines of the file that `@` names."""
    if not isinstance(text, str):  # what YAML takes for a mapping or a number
        raise UserError(f"set={text}: YAML changes it; write the overrides into a file, one a line, and set=@<file>")
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        if not path.is_file():
            raise UserError(f"set={text}: no such file")
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"set={text}: {error}; write the overrides into a file, one a line, and set=@<file>") from None


def refuse_without_effect(overrides: list[str], study: Study, judges: list[str]) -> None:
    """Raise `UserError` for what the study's grid would overrule, and for what would be given to several."""
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        grid = {"align": "aligns", "method": "methods", "seed": "seeds", "model": "models"}.get(key)
        if grid and not (key == "model" and "own" in study.models):
            raise UserError(f"set={override}: the study's grid says it; write study.{grid}=[{value}]")
        if len(judges) > 1 and (key.startswith("judge.") or (key == "judge" and "." in value)):
            raise UserError(
                f"set={override}: would be given to tables.other_judges=[{','.join(judges[1:])}] too; write a file "
                "for conf/judge"
            )
        if key in ONE_MODEL and len(study.models) > 1:
            raise UserError(
                f"set={override}: would be given to all of study.models=[{','.join(study.models)}]; "
                "name one model there, or write a file for conf/model"
            )
