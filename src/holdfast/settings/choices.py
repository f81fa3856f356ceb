"""What the files that a grid chooses compose to: each once, for a compose takes a third of a second."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from holdfast.settings.compose import agreed, composed, composition
from holdfast.settings.options import Config
from holdfast.settings.paths import models_of

OF_MODEL = re.compile(r"\$\{[^}]*\bmodel\b")


class Choices:
    """Configurations of the same overrides, by the file chosen for each group. Models that differ from the first in
    their own section alone share all others with it."""

    def __init__(self, overrides: list[str], models: list[str]) -> None:
        self.overrides, self.models = overrides, models

    @cache  # noqa: B019 - one instance lives as long as the workflow
    def of(self, **chosen: str) -> Config:
        """Composed with these files: `model=…`, `method=…` and the like. Raises `UserError`."""
        model, others = chosen.get("model"), {group: name for group, name in chosen.items() if group != "model"}
        if not (model and others) or model == self.models[0] or not self._apart(model, **others):
            return self._composed(**chosen)[0]
        shared = self._composed(model=self.models[0], **others)[0]
        return agreed(shared.changed(model=self._composed(model=model)[0].model))

    def _apart(self, model: str, **others: str) -> bool:
        """Whether nothing but the model's section depends on which model it is."""
        own, first, both = (
            self._composed(**chosen)[1]
            for chosen in ({"model": model}, {"model": self.models[0]}, self._first(others))
        )
        return _without_model(own) == _without_model(first) and not OF_MODEL.search(str(_without_model(both)))

    def _first(self, others: dict[str, str]) -> dict[str, str]:
        return {"model": self.models[0], **others}

    @cache  # noqa: B019 - one instance lives as long as the workflow
    def _composed(self, **chosen: str) -> tuple[Config, dict[str, Any]]:
        return composition([*self.overrides, *(f"{group}={name}" for group, name in chosen.items())])


def _without_model(plain: dict[str, Any]) -> dict[str, Any]:
    return {section: value for section, value in plain.items() if section != "model"}


def choices_of(overrides: list[str]) -> Choices:
    """What a study's models, recipes and methods compose to."""
    # What models and methods are given may be wrong for the model that is chosen where no study names one.
    bare = composed([o for o in overrides if not o.startswith(("model.", "method."))])
    return Choices(overrides, models_of(bare.study))
