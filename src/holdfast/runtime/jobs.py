"""What Hydra calls for each run, and how the jobs of a sweep ended, which outlives those that fail."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from holdfast.errors import UserError
from holdfast.runtime.failures import is_expected, said
from holdfast.runtime.files import as_json, write_text
from holdfast.runtime.ranks import first
from holdfast.settings.paths import CONF

if TYPE_CHECKING:
    from holdfast.runtime.run import Stage


@dataclass(frozen=True)
class Job:
    """Can be pickled: a launcher may give it a process of its own. `place` holds the override by which further YAMLs
    are found; `outcomes` is a folder for a file of each job of a sweep, None of a single run."""

    stage: Stage
    place: list[str]
    outcomes: Path | None = None

    def __call__(self, given: DictConfig) -> float | None:
        """The run's score. A job of a sweep that fails has none; an exception would keep its model in memory."""
        own, score, reason = HydraConfig.get(), None, None
        try:
            score = self.stage.execute(given, self.place)
        except Exception as error:
            if self.outcomes is None and not is_expected(error):
                raise
            reason = said(error)
            if self.outcomes is None:
                # an exception Hydra would announce at length
                sys.exit(f"holdfast {self.stage.name}: {reason}" if first() else 1)
            if not is_expected(error):
                traceback.print_exc()
            print(f"holdfast {self.stage.name}: {' '.join(own.overrides.task)}: {reason}", file=sys.stderr)
        if self.outcomes:
            outcome = {"overrides": list(own.overrides.task), "score": score, "reason": reason}
            write_text(self.outcomes / f"{own.job.num}.json", as_json(outcome))
        return score

    def run(self) -> None:
        """Have Hydra compose the configurations and call this for each."""
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(self)
        if self.outcomes:
            return main()
        with _known_mode():
            main()

    def sweep(self) -> None:
        """Raises `UserError` at the end where jobs failed."""
        try:
            self.run()
        except Exception:
            found = self._found()
            if not found or any(one["score"] is not None for one in found):
                raise
            # A sweeper that optimises stumbles where no job has a score.
            raise UserError(_failed(found) or "no job has a score to optimise; those of holdfast tune have") from None
        if failed := _failed(self._found()):
            raise UserError(failed)

    def _found(self) -> list[dict[str, Any]]:
        assert self.outcomes
        files = sorted(self.outcomes.glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]


@contextmanager
def _known_mode() -> Iterator[None]:
    """Hydra composes the whole configuration a first time only to read `hydra.mode`. That a run is single is known."""
    own = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = own  # type: ignore[method-assign]


def _failed(jobs: list[dict[str, Any]]) -> str | None:
    """One line on the jobs that failed, each by the overrides that not all have."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    lines = [
        f"{' '.join(word for word in job['overrides'] if word not in common)}: {job['reason']}"
        for job in jobs
        if job["reason"]
    ]
    return f"{len(lines)} of {len(jobs)} jobs failed: {'; '.join(lines)}" if lines else None
