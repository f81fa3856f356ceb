"""What the Snakefile asks Hydra: the grid of a study, the settings that a stage depends on, and the paths."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from holdfast.reporting.records import Evidence
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout, runs
from holdfast.settings.schema import BY_PROBE, ESTIMATES, PRODUCTS
from holdfast.stages import align, data, evaluate, pretrain, probe, refine, tables

TITLES = {
    "main": "T1 main",
    "dose_response": "T2 dose and response",
    "quantization": "T3 quantization",
    "selection": "T4 selection of layers",
    "cost": "T5 steps and cost",
    "judges": "T6 judges",
    "claims": "T7 claims",
    "optimizers": "base optimizers",
    "tasks": "tasks of lm-eval",
}
STAGES = {one.STAGE.name: one.STAGE for one in (data, pretrain, align, probe, refine, evaluate, tables)}
FIGURES = ("dose_response", "trade_off", "sensitivity", "cost")


class Workflow:
    """One study, as composed from `--config study=<name> set="<overrides>"`."""

    def __init__(self, config: dict[str, Any]) -> None:
        # A stage runs with the Python that runs Snakemake, whether or not its environment is activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.overrides = [f"study={config.get('study', 'tiny')}", *shlex.split(config.get("set", ""))]
        # By way of the environment: as `params` the string would re-run every stage whenever it changes.
        os.environ["HOLDFAST_OVERRIDES"] = shlex.join(self.overrides)
        self.cfg = self._composed()
        self.study = self.cfg.study
        self.layout = Layout.of(self.cfg)

    @property
    def composed(self) -> str:
        """The whole configuration, as the report shows it."""
        return OmegaConf.to_yaml(self.cfg)

    @property
    def gpu(self) -> int:
        """How many of the pool's GPUs a job takes: none on a machine without one, where jobs share the cores."""
        return int(shutil.which("nvidia-smi") is not None)

    def settings(self, stage: str, **chosen: str) -> dict[str, Any]:
        """The composed values that a stage reads with these `model`, `align` and `method`: its rule's `params`, so
        that a changed value re-runs it."""
        cfg = self._composed(**chosen)
        return {part: OmegaConf.to_container(cfg[part]) for part in STAGES[stage].reads if part in cfg}

    def pretrained(self, model: str) -> bool:
        """Whether the model is made in the run."""
        return self._composed(model=model).model.path is None

    def base(self, model: str) -> list[Path]:
        """What alignment needs beside the data: the model that the run itself pretrains, if it does."""
        return [self.layout.pretrain(model) / "metrics.json"] * self.pretrained(model)

    def needed(self, model: str, recipe: str, method: str, seed: int | str) -> list[Path]:
        """What refinement needs beside the aligned model: the probe, if the method selects its layers by it, and the
        refinement that it repeats, if it is that kind of control."""
        chosen = self._composed(model=model, method=method).method
        probe = [self.layout.probe(model, recipe, seed) / "metrics.json"] * (chosen.select.rule in BY_PROBE)
        source = [self.layout.refine(model, recipe, chosen.of, seed) / "metrics.json"] if chosen.of else []
        return probe + source

    def checkpoint_folder(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        """The run folder whose model is evaluated as `method`."""
        kind = self._composed(model=model, method=method).method.kind
        return self.layout.checkpoint(model, recipe, method, kind, seed)

    @property
    def estimates(self) -> Path:
        """The folder of what all tables share."""
        return self.layout.root / "tables" / "estimates"

    def measured(self, product: str) -> list[Path]:
        """What a product of the tables stage is computed from."""
        if product == "estimates":
            return self.layout.records(self.study)
        evidence = Evidence.of(self.layout, self.cfg)
        # A stage's times lie beside its metrics, and no rule promises them.
        found = [path for part in PRODUCTS[product] if part != "timing" for path in evidence.files(part)]
        for run in runs(self.study) if "costs" in PRODUCTS[product] else ():
            found += [self.checkpoint_folder(*run) / "metrics.json", *self.needed(*run)]
        return [self.estimates / name for name in ESTIMATES] + list(dict.fromkeys(found))

    def reported(self, product: str) -> dict[str, Any]:
        """The composed values that a product reads: the rules of the claims only where it is made of more than the
        estimates."""
        unread = () if PRODUCTS[product] else ("claims", "probe")
        return {part: values for part, values in self.settings("tables").items() if part not in unread}

    def products(self) -> dict[str, list[Path]]:
        """What the tables stage makes, a job for each."""
        lacking = {"optimizers"} if not self.cfg.claims.optimizers else set()
        lacking |= {"tasks"} if not self.cfg.evaluate.tasks else set()
        names = [name for name in TITLES if name not in lacking]
        figures = (
            *FIGURES,
            *["lengths"] * (len(self.cfg.claims.lengths) > 1),
            *["steps"] * bool(self.cfg.claims.budgets),
        )
        made = {
            name: [self.layout.tables / f"{name}.{suffix}" for suffix in ("csv", "md", "tex", "html")]
            for name in names
        }
        for name in ("main", "claims"):
            made[name].append(self.layout.tables / f"{name}.txt")
        made["cost"] += [self.layout.tables / f"timing.{suffix}" for suffix in ("csv", "md")]
        made["figures"] = [self.layout.figures / f"{f}.{s}" for f in figures for s in ("png", "pdf")]
        return {"estimates": [self.estimates / name for name in ESTIMATES]} | made

    def report(self, path: Path) -> dict[str, Any]:
        """How a file of the tables stage appears in the report: nothing of one that does not."""
        if path.suffix not in (".html", ".png"):
            return {}
        table = path.suffix == ".html"
        title = TITLES[path.stem] if table else path.stem.replace("_", " ")
        caption = f"../report/{'table' if table else path.stem}.rst"
        return {"caption": caption, "category": "Tables" if table else "Figures", "labels": {"name": title}}

    def targets(self) -> list[Path]:
        """The tables, and every stage's metrics beside them: were a stage to fail, Snakemake deletes its
        metrics, and a table that is older than the failure can no longer pass for current."""
        layout = self.layout
        made = [layout.data, *(layout.root / "tables" / name for name in self.products())]
        made += layout.probes(self.study)
        for model, recipe, method, seed in runs(self.study):
            made += [layout.pretrain(model)] * self.pretrained(model)
            made.append(layout.align(model, recipe, seed))
            made.append(self.checkpoint_folder(model, recipe, method, seed))
            made.append(layout.evaluate(model, recipe, method, seed))
        files = [path for paths in self.products().values() for path in paths]
        return files + [folder / "metrics.json" for folder in dict.fromkeys(made)]

    @cache  # noqa: B019 - one instance lives as long as the workflow
    def _composed(self, **chosen: str) -> DictConfig:
        return composed([*self.overrides, *(f"{group}={name}" for group, name in chosen.items())])
