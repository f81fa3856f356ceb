"""Where everything of a study lies; the stages and the workflow both ask here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.settings.options import Config
    from holdfast.settings.schema import Block, Study

REPOSITORY = Path(__file__).resolve().parents[3]
# Where the Snakefile and conf/ are: in a checkout at its top, in an installed package beside the rooms.
SHARE = REPOSITORY if (REPOSITORY / "Snakefile").is_file() else Path(__file__).resolve().parents[1] / "share"
CONF = SHARE / "conf"


@dataclass(frozen=True)
class Layout:
    """The folders of one study. Arguments may be Snakemake wildcards such as `"{model}"`."""

    results: str
    study: str
    judge: str = "rules"

    @classmethod
    def of(cls, cfg: Config) -> Layout:
        return cls(cfg.results, cfg.study.name, *([cfg.judge.name] if "judge" in cfg else []))

    @property
    def root(self) -> Path:
        return Path(self.results, self.study)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def tables(self) -> Path:
        return Path(self.results, "tables", self.study)

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    def pretrain(self, model: str) -> Path:
        return self.root / model / "pretrain"

    def answer(self, model: str) -> Path:
        return self.root / model / "answer"

    def align(self, model: str, recipe: str, seed: int | str) -> Path:
        return self.root / model / recipe / "align" / f"s{seed}"

    def elicit(self, model: str, recipe: str, seed: int | str) -> Path:
        return self.root / model / recipe / "elicit" / f"s{seed}"

    def probe(self, model: str, recipe: str, seed: int | str) -> Path:
        return self.root / model / recipe / "probe" / f"s{seed}"

    def refine(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        return self.root / model / recipe / "refine" / method / f"s{seed}"

    def evaluate(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        return self.root / model / recipe / "evaluate" / method / f"s{seed}"

    def judged(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        return self.root / model / recipe / "judge" / self.judge / method / f"s{seed}"

    def by(self, judge: str) -> Layout:
        """With what another judge said of the same answers."""
        return replace(self, judge=judge)

    def checkpoint(self, model: str, recipe: str, method: str, refines: bool, seed: int | str) -> Path:
        """The run folder whose model a method's evaluation loads."""
        return self.refine(model, recipe, method, seed) if refines else self.align(model, recipe, seed)

    def records(self, study: Study) -> list[Path]:
        """The judged answers of a study's grid."""
        return [self.judged(*run) / "records.parquet" for run in runs(study)]

    def probes(self, study: Study) -> list[Path]:
        """The folders of the probes of a study's main grid, and of the blocks that ask for it; elsewhere only what a
        method selects by is probed."""
        blocks: list[Study | Block] = [study, *(block for block in study.also.values() if block.probe)]
        return list(dict.fromkeys(self.probe(m, a, s) for block in blocks for m, a, _, s in _runs(study, block)))


def runs(study: Study) -> list[tuple[str, str, str, int]]:
    """Every (model, recipe of alignment, method, seed) of a study."""
    blocks: list[Study | Block] = [study, *study.also.values()]
    return list(dict.fromkeys(run for block in blocks for run in _runs(study, block)))


def models_of(study: Study) -> list[str]:
    """Each once, in the order of the runs."""
    return list(dict.fromkeys(model for model, *_ in runs(study)))


def shown(study: Study) -> list[tuple[str, str, str, int]]:
    """The runs of the first seed, whose responses are shown."""
    return [run for run in runs(study) if run[-1] == study.seeds[0]]


def _runs(study: Study, block: Study | Block) -> Iterator[tuple[str, str, str, int]]:
    return product(block.models or study.models, block.aligns, block.methods, block.seeds or study.seeds)
