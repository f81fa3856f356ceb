"""Fetch the models, judges and tasks of a study from the Hub, for jobs on machines without a network.

holdfast fetch study=paper
HF_HOME=/shared/hf holdfast fetch study=paper 'study.models=[llama-3.1-8b-instruct]'

All lies where the Hub's client keeps it: below HF_HOME, which has to be the same folder for the jobs, with
HF_HUB_OFFLINE=1. The data set is the first job's, which Snakemake runs on the machine that it is called on.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.errors import UserError
from holdfast.runtime.run import quiet
from holdfast.settings.choices import Choices, choices_of

READS = ("study", "model", "judge", "referee", "evaluate", "tables")
GB = 1e9


def main(arguments: list[str]) -> str:
    """Raises `UserError` where anything is missing, after the rest was fetched."""
    quiet()
    from holdfast.models.load import downloaded

    choices, missing = choices_of(arguments), []
    for what, path, revision in dict.fromkeys(_wanted(choices)):
        try:
            folder = downloaded(path, revision)
        except UserError as error:
            missing.append(f"{what} {error}")
            continue
        files = [folder] if folder.is_file() else [one for one in folder.rglob("*") if one.is_file()]
        print(f"fetch    {what} {path}: {sum(one.stat().st_size for one in files) / GB:.2f} GB in {folder}")
    missing += _without_tasks(choices)
    if missing:
        raise UserError(f"{len(missing)} of the study could not be had: {'; '.join(missing)}")
    return "fetch    all is here; give the jobs HF_HUB_OFFLINE=1"


def _wanted(choices: Choices) -> Iterator[tuple[str, str, str | None]]:
    """(what it is, Hub id or path, revision) of each model that a job loads from elsewhere than the run."""
    for name in choices.models:
        model = choices.of(model=name).model
        for path in (model.source, model.origin):
            if path:
                yield f"model {name}", path, model.revision if path == model.path else None
    cfg = choices.of(model=choices.models[0])
    if cfg.referee.path:
        yield "referee", cfg.referee.path, None
    for name in dict.fromkeys([cfg.judge.name, *cfg.tables.other_judges]):
        judge = choices.of(model=choices.models[0], judge=name).judge
        if path := getattr(judge, "path", None):
            yield f"judge {name}", path, getattr(judge, "revision", None)


def _without_tasks(choices: Choices) -> list[str]:
    """What is wrong with the tasks of lm-eval, whose data their loading fetches."""
    options = choices.of(model=choices.models[0]).evaluate
    if not options.tasks:
        return []
    from holdfast.evaluation.harness import known

    try:
        known(list(options.tasks), options.task_folder).load(list(options.tasks))
    except (OSError, ValueError) as error:
        return [f"evaluate.tasks: {error}"]
    except UserError as error:
        return [str(error)]
    print(f"fetch    tasks {', '.join(options.tasks)}")
    return []
