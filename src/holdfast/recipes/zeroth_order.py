"""Alignment without a gradient at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast.methods.method import Noise, Normalize
from holdfast.recipes.recipe import RECIPES, Stepwise, Trained
from holdfast.settings.options import Count, Positive

if TYPE_CHECKING:
    from holdfast.runtime.run import Run


@RECIPES.register("zo")
class ZerothOrderAlignment(Stepwise):
    """Two-point steps on the decoder's matrices from the base model, on the likelihood of the responses."""

    mu: Positive = Field(description="smoothing radius, relative to each matrix's rms")
    queries: Count = Field(description="random directions of a step")
    noise: Noise = Field(description="how they are drawn")
    normalize: Normalize = Field(description="rms: divide by the rms of a step's projected gradients")

    def align(self, run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> Trained:
        """The steps cut their batches themselves where memory runs out: `parts` is not read."""
        from holdfast.methods.batches import Batches
        from holdfast.methods.losses import nll
        from holdfast.methods.task import Task
        from holdfast.methods.zeroth_order import ZerothOrder
        from holdfast.runtime.files import code_digest
        from holdfast.zo import weight_groups
        from holdfast.zo.layers import decoder_layers

        own = {key: getattr(self, key) for key in ("mu", "lr", "queries", "noise", "normalize")}
        method = ZerothOrder(name="zo", kind="zeroth_order", sigma=0.0, rounding=None, **own)
        batches = Batches(rows, tokenizer, run.cfg.openings.loss, nll, model.device)
        context: dict[str, object] = {"align": self.model_dump(), "tokens": batches.digest()}
        context["code"] = code_digest("zo", "methods", "models", "datasets", "recipes")
        task = Task(
            model,
            nll,
            batches,
            decoder_layers(weight_groups(model)),
            2 * self.queries * self.steps,
            self.batch_size,
            run.seed,
            context,
            lambda: model,
            run.out / "trajectory.jsonl",
            None,
            run.progress,
            run.tracker.log,
        )
        outcome = method.refine(task)
        return Trained(outcome.losses, outcome.forwards, outcome.forwards * self.batch_size)
