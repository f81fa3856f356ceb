"""Where everything of a study lies; the stages and the workflow both ask here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"


@dataclass(frozen=True)
class Layout:
    """The folders of one study. Arguments may be Snakemake wildcards such as `"{model}"`."""

    results: str
    study: str

    @classmethod
    def of(cls, cfg: DictConfig) -> Layout:
        return cls(cfg.results, cfg.study.name)

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

    def align(self, model: str, recipe: str, seed: int | str) -> Path:
        return self.root / model / recipe / "align" / f"s{seed}"

    def probe(self, model: str, recipe: str, seed: int | str) -> Path:
        return self.root / model / recipe / "probe" / f"s{seed}"

    def refine(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        return self.root / model / recipe / "refine" / method / f"s{seed}"

    def evaluate(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        return self.root / model / recipe / "evaluate" / method / f"s{seed}"

    def checkpoint(self, model: str, recipe: str, method: str, kind: str, seed: int | str) -> Path:
        """The run folder whose model a method's evaluation loads; `kind: none` means no refinement at all."""
        return self.align(model, recipe, seed) if kind == "none" else self.refine(model, recipe, method, seed)

    def records(self, study: DictConfig) -> list[Path]:
        """What every evaluation of a study's grid writes."""
        return [self.evaluate(*run, seed) / "records.parquet" for run in grid(study) for seed in study.seeds]

    def probes(self, study: DictConfig) -> list[Path]:
        """The folders of the probes of a study's main grid; beside it, only what a method selects by is probed."""
        return [self.probe(m, a, s) for m in study.models for a in study.aligns for s in study.seeds]


def grid(study: DictConfig) -> list[tuple[str, str, str]]:
    """Every (model, recipe of alignment, method) of a study, to be run at each of its seeds."""
    blocks = [study, *study.also.values()]
    runs = [
        (model, recipe, method)
        for block in blocks
        for model in block.models or study.models
        for recipe in block.aligns
        for method in block.methods
    ]
    return list(dict.fromkeys(runs))
