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

    def align(self, model: str, seed: int | str) -> Path:
        return self.root / model / "align" / f"s{seed}"

    def probe(self, model: str, seed: int | str) -> Path:
        return self.root / model / "probe" / f"s{seed}"

    def refine(self, model: str, method: str, seed: int | str) -> Path:
        return self.root / model / "refine" / method / f"s{seed}"

    def evaluate(self, model: str, method: str, seed: int | str) -> Path:
        return self.root / model / "evaluate" / method / f"s{seed}"

    def checkpoint(self, model: str, method: str, kind: str, seed: int | str) -> Path:
        """The run folder whose model a method's evaluation loads; `kind: none` means no refinement at all."""
        return self.align(model, seed) if kind == "none" else self.refine(model, method, seed)

    def records(self, study: DictConfig) -> list[Path]:
        """What every evaluation of a study's grid writes."""
        runs = [(m, d, s) for m in study.models for d in study.methods for s in study.seeds]
        return [self.evaluate(*run) / "records.parquet" for run in runs]

    def rises(self, study: DictConfig) -> list[Path]:
        """What every probe of a study's grid writes."""
        return [self.probe(m, s) / "sensitivity.parquet" for m in study.models for s in study.seeds]
