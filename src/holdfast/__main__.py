"""holdfast <verb> [key=value …]: safety alignment that survives noise, quantization and pruning."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from holdfast.errors import UserError

STAGES = ("data", "pretrain", "answer", "align", "elicit", "probe", "refine", "evaluate", "judge", "tables")
COMMANDS = ("harden", "plan", "fetch", "compare", "replay", "tune", "calibrate", "workspace")
ROOMS = dict.fromkeys(STAGES, "stages") | dict.fromkeys(COMMANDS, "commands")
MODULES = {verb: f"holdfast.{room}.{verb}" for verb, room in ROOMS.items()}
MEASURE = "holdfast.commands.evaluate"  # what `evaluate` is for a model of one's own


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; a `UserError` ends it with one line and its exit status, and with a traceback where
    `HOLDFAST_DEBUG` is set."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if verb in ("-h", "--help"):
        _print(overview())
        return
    try:
        if verb not in MODULES:
            close = difflib.get_close_matches(verb, MODULES, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{verb}: no such verb; {guess}choose one of {', '.join(MODULES)}")
        if any(word in ("-h", "--help") for word in rest):
            from holdfast.settings.help import help_of

            given = [word for word in rest if word not in ("-h", "--help")]
            told = [docstring(name) for name in (MODULES[verb], *[MEASURE] * (verb == "evaluate"))]
            _print(help_of(verb, "\n\n".join(told), MODULES[verb], given))
            return
        said = importlib.import_module(_module(verb, rest)).main(rest)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("holdfast"):
            raise
        sys.exit(f"holdfast {verb}: {error.name} is not installed; pip install 'holdfast[study]'")
    except UserError as error:
        if os.environ.get("HOLDFAST_DEBUG"):
            error.__suppress_context__ = False  # what it was made of
            raise
        from holdfast.runtime.ranks import first

        if first():
            print(f"holdfast {verb}: {error}", file=sys.stderr)
        sys.exit(error.status)
    if said:
        _print(said)


def _module(verb: str, arguments: list[str]) -> str:
    if verb == "evaluate" and any(word.startswith(("model=", "against=")) for word in arguments):
        from holdfast.commands.own_model import measures

        return MEASURE if measures(arguments) else MODULES[verb]
    return MODULES[verb]


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def overview() -> str:
    """Every verb with the first sentence of its docstring."""
    lines = [__doc__ or "", ""]
    for kind, verbs in (("stages", STAGES), ("commands", COMMANDS)):
        lines += [f"{kind}:", *(f"  {verb:<10} {_sentence(docstring(MODULES[verb]))}" for verb in verbs), ""]
    return "\n".join([*lines, "holdfast <verb> --help lists the keys of a verb."])


def docstring(module: str) -> str:
    """Of a module, which is read and not imported: help shall not wait for its libraries."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""


def _sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
