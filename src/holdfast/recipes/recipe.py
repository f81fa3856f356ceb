"""What a recipe of alignment is."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field

from holdfast.settings.options import SECTIONS, Count, Options, Positive, Registry, Section

if TYPE_CHECKING:
    from holdfast.runtime.run import Run

RECIPES = Registry("recipe of alignment", "holdfast.recipes")
SECTIONS["align"] = Section(RECIPES)


class Trained(NamedTuple):
    """The loss of every step; forward-equivalents of one batch (a backward counts as two), and of one sequence."""

    losses: list[float]
    forwards: int
    sequences: int


class Recipe(Options):
    """How a base model is taught to refuse."""

    name: str
    kind: str

    trains: ClassVar[bool] = True

    @abstractmethod
    def align(self, run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> Trained:
        """Train `model` in place on `rows`, harmful and benign in equal parts; a batch in `parts` that fit memory."""


@RECIPES.register("none")
class Unaligned(Recipe):
    """The model comes aligned, as a -chat or -Instruct model does: nothing is trained."""

    trains = False

    def align(self, run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> Trained:
        return Trained([], 0, 0)


class Stepwise(Recipe):
    """Recipes that take steps on batches."""

    steps: Count = Field(description="of the optimizer")
    batch_size: Count = Field(description="rows of a step")
    lr: Positive = Field(description="learning rate")
