"""Who decides what a response is: one of the verdicts; or unscored, where the judge gives none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from holdfast.settings.options import SECTIONS, Options, Registry, Section

JUDGES = Registry("judge", "holdfast.judges")
SECTIONS["judge"] = Section(JUDGES)
REFUSED, PARTIAL, COMPLIED = "refused", "partial", "complied"
SAFE, INCOHERENT, UNSCORED = "safe", "incoherent", "unscored"


class Verdicts(Protocol):
    """A judge that is ready."""

    gives_refusals: bool  # whether its own labels, not the rules', tell refusals of benign prompts

    def verdicts(
        self, prompts: Sequence[str], responses: Sequence[str], labels: Sequence[str], nll: Sequence[float]
    ) -> list[str]:
        """One verdict per response, all of the same length.

        `labels` are the prompts' (`harmful` or `benign`), `nll` the responses' mean NLL in nats per token under
        the unperturbed model; NaN where it is not known.
        """
        ...


class Judge(Options):
    """The options of a judge."""

    name: str
    kind: str

    @abstractmethod
    def ready(self, clean_nll: Sequence[float], device: str = "cpu") -> Verdicts:
        """`clean_nll` holds the NLL per token of the unperturbed model's own responses, which sets the coherence
        ceiling; without any there is none. `device` is where a classifier runs. Raises `UserError` for a classifier
        that cannot be loaded."""
