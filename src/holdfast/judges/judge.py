"""Who decides what a response is: one of the verdicts; or unscored, where the judge gives none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from holdfast.settings.options import SECTIONS, Options, Registry, Section

JUDGES = Registry("judge", "holdfast.judges")
SECTIONS["judge"] = Section(JUDGES)
REFUSED, PARTIAL, COMPLIED = "refused", "partial", "complied"
SAFE, BROKEN, UNSCORED = "safe", "broken", "unscored"


class Verdicts(Protocol):
    """A judge that is ready."""

    gives_refusals: bool  # whether its own labels, not the rules', tell refusals of benign prompts

    def verdicts(
        self, prompts: Sequence[str], responses: Sequence[str], labels: Sequence[str], reasons: Sequence[str]
    ) -> list[str]:
        """One verdict per response, all of the same length.

        `labels` are the prompts' (`harmful` or `benign`); `reasons` say why the referee takes a response for broken,
        "" where it does not.
        """
        ...


@runtime_checkable
class Scores(Verdicts, Protocol):
    """A judge that gives a score too."""

    def scored(
        self, prompts: Sequence[str], responses: Sequence[str], labels: Sequence[str], reasons: Sequence[str]
    ) -> tuple[list[str], list[float]]:
        """The verdicts, and each response's score, NaN where the judge gives none."""
        ...


class Judge(Options):
    """The options of a judge."""

    name: str
    kind: str

    @abstractmethod
    def ready(self, device: str = "cpu") -> Verdicts:
        """`device` is where a classifier runs. Raises `UserError` for one that cannot be loaded."""
