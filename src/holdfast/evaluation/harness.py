"""Utility by the tasks of lm-eval, on the model as it is in memory (extra `eval`)."""

from __future__ import annotations

from typing import Any

from holdfast.errors import UserError, first_line


def harness(
    model: Any, tokenizer: Any, tasks: list[str], limit: int | None, batch_size: int, folder: str | None
) -> dict[str, float]:
    """`<task>/<metric>` -> score, of every metric that a task reports; `limit` documents a task, `folder` with task
    files of one's own.

    Raises `UserError` where lm-eval is not installed, or a task or its data cannot be had.
    """
    manager = known(tasks, folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            apply_chat_template=tokenizer.chat_template is not None,
            bootstrap_iters=0,
        )
    except (OSError, ValueError) as error:  # what the Hub's client and datasets raise without a network
        raise UserError(f"evaluate.tasks={list(tasks)}: {first_line(error)}") from None
    return {
        f"{task}/{metric.removesuffix(',none')}": value
        for task, scores in found["results"].items()
        for metric, value in scores.items()
        if isinstance(value, float)
    }


def known(tasks: list[str], folder: str | None) -> Any:
    """lm-eval's manager of these tasks. Raises `UserError` where it is not installed, or knows one of them not."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("evaluate.tasks: lm-eval is not installed; pip install 'holdfast[eval]'") from None
    manager = TaskManager(include_path=folder)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UserError(f"evaluate.tasks={unknown}: lm-eval has no such task; `lm-eval ls tasks` lists them")
    return manager
