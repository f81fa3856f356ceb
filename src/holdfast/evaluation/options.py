"""The options of an evaluation."""

from __future__ import annotations

from pydantic import Field

from holdfast.errors import UserError
from holdfast.perturbations import Point, grid
from holdfast.settings.explain import choices
from holdfast.settings.options import Config, Count, Options, Whole, section

PARTS = [f"{split}/{label}" for split in ("test", "threshold", "tune") for label in ("harmful", "benign")]


@section("evaluate")
class EvaluateOptions(Options):
    """How prompts are answered and scored."""

    batch_size: Count = Field(description="prompts of a batch")
    max_new_tokens: Count = Field(description="of a response")
    margin_draws: Whole = Field(
        description="draws of a level at which margins are taken, for the detector's view; 0: nowhere"
    )
    tune_draws: Count = Field(
        description="further draws of a level, on the tuning split of the reference alone: headline levels are "
        "chosen on them"
    )
    tasks: list[str] = Field(default_factory=list, description="of lm-eval, on the clean model")
    tasks_at: list[str] = Field(
        default_factory=list, description="and at the first draw of these points of the grid, as weight_noise/0.1"
    )
    task_limit: Count | None = Field(default=None, description="documents a task")
    task_folder: str | None = Field(default=None, description="task files of one's own")
    prompts: dict[str, Whole | None] = Field(
        default_factory=dict, description="cap per split and label, spread over sources and categories"
    )
    seed: Whole = Field(default=0, description="of what a cap leaves out; the same prompts for every checkpoint")

    def agree(self, key: str, cfg: Config) -> None:
        if strange := next((part for part in self.prompts if part not in PARTS), None):
            raise UserError(f"{key}.prompts.{strange}: no such split and label; {choices(strange, PARTS)}")
        if "perturb" not in cfg:
            return
        known = task_points(cfg)
        if unknown := [at for at in self.tasks_at if at not in known]:
            raise UserError(
                f"{key}.tasks_at: {unknown[0]} is no point of the grid that tasks can be run at; choose among "
                f"{', '.join(known) or 'none'}"
            )


def task_points(cfg: Config) -> dict[str, Point]:
    """`<name>/<level>` -> the first draw there. An attack is aimed at harmful prompts alone: tasks do not meet it."""
    points = [point for point in grid(cfg.perturb) if point.draw == 0 and not point.perturbation.attacks]
    return {f"{point.name}/{point.level:g}": point for point in points}
