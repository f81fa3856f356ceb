"""What the Snakefile asks Hydra: the grid of a study, the settings that a stage depends on, and the paths."""

from __future__ import annotations

import base64
import html
import json
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.models.load import files_of
from holdfast.reporting.options import PRODUCTS
from holdfast.reporting.product import ESTIMATES, Figures, Files, Product, Texts
from holdfast.reporting.records import Evidence
from holdfast.runtime.devices import cards
from holdfast.settings.choices import Choices
from holdfast.settings.compose import composed
from holdfast.settings.options import Options
from holdfast.settings.paths import CONF, Layout, models_of, runs
from holdfast.stages import align, answer, data, elicit, evaluate, judge, pretrain, probe, refine, tables
from holdfast.workflow.overrides import overrides_of, refuse_without_effect

STAGES = {
    one.STAGE.name: one.STAGE
    for one in (data, pretrain, answer, align, elicit, probe, refine, evaluate, judge, tables)
}


class Workflow:
    """One study, as composed from `--config study=<name> set="<overrides>"`."""

    def __init__(self, config: dict[str, Any]) -> None:
        # A stage runs with the Python that runs Snakemake, whether or not its environment is activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if unknown := sorted(set(config) - {"study", "set"}):
            raise UserError(f'--config {unknown[0]}=…: no such key; write study=<name> or set="<overrides>"')
        own = overrides_of(config.get("set", ""))
        self.overrides = [f"study={config.get('study', 'tiny')}", *own]
        # By way of the environment: as `params` the string would re-run every stage whenever it changes.
        os.environ["HOLDFAST_OVERRIDES"] = json.dumps(self.overrides)
        self.cfg = composed(self.overrides)
        self.study = self.cfg.study
        self.choices = Choices(self.overrides, models_of(self.study))
        self.layout = Layout.of(self.cfg)
        refuse_without_effect(own, self.study, self.judges)

    @property
    def composed(self) -> str:
        """The whole configuration, as the report shows it."""
        return OmegaConf.to_yaml(OmegaConf.create(self.cfg.as_dict()))

    @property
    def opening(self) -> str:
        """What the report opens on: the main table and the figure of before and after; nothing where they are not."""
        table, figure = self.layout.tables / "main.txt", self.layout.figures / "before_after.png"
        if not (table.is_file() and figure.is_file()):
            return ""
        picture = base64.encodebytes(figure.read_bytes()).decode()  # in lines: docutils takes no long ones
        text = html.escape(table.read_text(encoding="utf-8"))
        shown = f'<img alt="before and after" src="data:image/png;base64,{picture}">'
        return f'<pre style="font-size: 0.75em">{text}</pre>\n{shown}'

    @property
    def on_gpu(self) -> bool:
        """Whether jobs take cards of the pool, or share the cores. With device=cuda they do where this machine has
        none too: it may be the one that others are reached from."""
        return self.cfg.device == "cuda" or (self.cfg.device == "auto" and bool(cards()))

    @property
    def judges(self) -> list[str]:
        """The study's own, and those whose verdicts stand beside it."""
        return list(dict.fromkeys([self.layout.judge, *self.cfg.tables.other_judges]))

    def gpus(self, model: str, processes: int = 1) -> int:
        """How many of the pool's cards a job takes."""
        return processes * self.choices.of(model=model).model.gpus if self.on_gpu else 0

    def threads(self, model: str, processes: int = 1) -> int:
        """Of a job. A card's host needs no more than one."""
        each = 1 if self.on_gpu else self.choices.of(model=model).model.threads or os.cpu_count() or 1
        return processes * each

    def processes(self, model: str, method: str = "") -> int:
        """That share out a job of probe or evaluation, or of refinement by this method."""
        cfg = self.choices.of(model=model, **({"method": method} if method else {}))
        return cfg.model.processes if not method or cfg.method.shares else 1

    def settings(self, stage: str, **chosen: str) -> dict[str, Any]:
        """The composed values that a stage reads with these `model`, `align`, `method` and `judge`: its rule's
        `params`, so that a changed value re-runs it."""
        return self.choices.of(**chosen).only(STAGES[stage].reads).as_dict()

    def code(self, stage: str, **chosen: str) -> list[str]:
        """The stage's own module, whose change re-runs it, and those outside the package that its options are of."""
        cfg = self.choices.of(**chosen).only(STAGES[stage].reads)
        parts = [one for name in cfg for one in _each(getattr(cfg, name))]
        modules = {type(one).__module__ for one in parts if not type(one).__module__.startswith("holdfast.")}
        return [_from_here(str(sys.modules[n].__file__)) for n in (STAGES[stage].run.__module__, *sorted(modules))]

    def pretrained(self, model: str) -> bool:
        """Whether the model is made in the run."""
        return self.choices.of(model=model).model.source is None

    def base(self, model: str) -> list[Path]:
        """What alignment needs beside the data: the model that the run itself pretrains, or the files of one that is
        on this machine, and of its chat template."""
        if self.pretrained(model):
            return [self.layout.pretrain(model) / "metrics.json"]
        chosen = self.choices.of(model=model).model
        template = CONF / chosen.chat_template if chosen.chat_template and "{" not in chosen.chat_template else None
        return files_of(chosen.source) + ([template] if template and template.is_file() else [])

    def tasks(self) -> list[Path]:
        """The files of tasks of one's own."""
        folder = self.cfg.evaluate.task_folder
        return sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []

    def referee(self, model: str, judge: str) -> list[Path]:
        """What judging needs beside the answers: the referee's model, the base where none is given, and the judge's,
        as far as they are on this machine."""
        own = self.cfg.referee.path
        judged = self.choices.of(judge=judge).judge
        return files_of(getattr(judged, "path", None)) + (files_of(own) if own else self.base(model))

    def needed(self, model: str, recipe: str, method: str, seed: int | str) -> list[Path]:
        """What refinement needs beside the aligned model: the probe, if the method selects its layers by it, and the
        refinement that it repeats, if it is that kind of control."""
        chosen = self.choices.of(model=model, method=method).method
        probe = [self.layout.probe(model, recipe, seed) / "metrics.json"] * chosen.select.probed
        probe += self.elicited(model, recipe, seed)
        source = [self.layout.refine(model, recipe, chosen.of, seed) / "metrics.json"] if chosen.of else []
        return probe + source

    def answered(self, model: str) -> list[Path]:
        """The model's own answers, where the data wait for them."""
        return [self.layout.answer(model) / answer.ANSWERS] * self.cfg.data.self_answered

    def elicited(self, model: str, recipe: str, seed: int | str) -> list[Path]:
        """The model's own answers, where probe and refinement learn from them."""
        own = self.choices.of(model=model).elicit.prompts
        return [self.layout.elicit(model, recipe, seed) / "own.parquet"] * bool(own)

    def checkpoint_folder(self, model: str, recipe: str, method: str, seed: int | str) -> Path:
        """The run folder whose model is evaluated as `method`."""
        refines = self.choices.of(model=model, method=method).method.refines
        return self.layout.checkpoint(model, recipe, method, refines, seed)

    @property
    def estimates(self) -> Path:
        """The folder of what all tables share."""
        return self.layout.root / "tables" / "estimates"

    @property
    def products(self) -> dict[str, Product]:
        """What the tables stage makes, a job for each."""
        return {product.name: product for product in map(PRODUCTS.__getitem__, self.asked.values())}

    @property
    def asked(self) -> dict[str, str]:
        """Name of each product that the study has -> what `tables.make` says for it."""
        found = {asked: PRODUCTS[asked] for asked in ("estimates", *self.cfg.tables.make)}
        return {product.name: asked for asked, product in found.items() if product.wanted(self.cfg)}

    def measured(self, product: str) -> list[Path]:
        """What a product of the tables stage is computed from."""
        if product == "estimates":
            return self.layout.records(self.study)
        evidence, parts = Evidence.of(self.layout, self.cfg), list(self.products[product].parts)
        # The study's own records were there for the estimates; those of other judges may not be.
        parts += ["records"] * (product == "evidence" and len(self.judges) > 1)
        # A stage's times lie beside its metrics, and no rule promises them.
        found = [path for part in parts if part != "timing" for path in evidence.files(part)]
        for run in runs(self.study) if "costs" in parts else ():
            found += [self.checkpoint_folder(*run) / "metrics.json", *self.needed(*run)]
        return [self.estimates / name for name in ESTIMATES] + list(dict.fromkeys(found))

    def reported(self, product: str) -> dict[str, Any]:
        """The composed values that a product reads. The estimates read neither the rules of the claims nor what other
        judges say."""
        unread = ("claims", "probe") if product == "estimates" else ()
        values = self.settings("tables")
        # More products re-run none that are there.
        values["tables"] = {**values["tables"], "make": [self.asked[product]]}
        if product == "estimates":
            del values["tables"]["other_judges"]
        return {part: found for part, found in values.items() if part not in unread}

    def files(self, product: str) -> list[Path]:
        """What a product is on disk."""
        made = self.products[product]
        folder = self.layout.figures if isinstance(made, Figures) else self.layout.tables
        return [(self.estimates if isinstance(made, Files) else folder) / name for name in made.files(self.cfg)]

    def report(self, path: Path) -> dict[str, Any]:
        """How a file of the tables stage appears in the report; empty for one that does not."""
        table = path.suffix == ".html"
        if not (table or path.suffix == ".png") or (table and isinstance(self.products[path.stem], Texts)):
            return {}
        title = self.products[path.stem].title if table else path.stem.replace("_", " ")
        caption = f"../report/{'table' if table else path.stem}.rst"
        return {"caption": caption, "category": "Tables" if table else "Figures", "labels": {"name": title}}

    def targets(self) -> list[Path]:
        """The tables, and every stage's metrics. Snakemake deletes the metrics of a stage that fails, so that a table
        from before the failure no longer counts as made."""
        layout = self.layout
        made = [layout.data, *(layout.root / "tables" / name for name in self.products)]
        made += layout.probes(self.study)
        for model, recipe, method, seed in runs(self.study):
            made += [layout.pretrain(model)] * self.pretrained(model)
            made.append(layout.align(model, recipe, seed))
            made.append(self.checkpoint_folder(model, recipe, method, seed))
            made.append(layout.evaluate(model, recipe, method, seed))
            made += [layout.by(judge).judged(model, recipe, method, seed) for judge in self.judges]
        files = [path for product in self.products for path in self.files(product)]
        return files + [folder / "metrics.json" for folder in dict.fromkeys(made)]


def _from_here(path: str) -> str:
    """A path below the working directory relative to it: a study that moves with its folder re-runs nothing."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _each(part: Any) -> list[Options]:
    """The options of a section, one or several by name."""
    return [one for one in (part.values() if isinstance(part, dict) else [part]) if isinstance(one, Options)]
