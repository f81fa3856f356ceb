"""Set runs of one or several studies side by side: what differs in their settings, and what in their metrics.

holdfast compare results/tiny                     # the methods of one study
holdfast compare results/tiny results/mine --all  # several studies; rows without a difference too
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.reporting.records import Evidence, outcomes
from holdfast.runtime.files import read_frame
from holdfast.runtime.tracking import flatten
from holdfast.settings.compose import read
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout, runs
from holdfast.stages import align, data, elicit, evaluate, judge, pretrain, probe, refine

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.reporting.setting import Setting
    from holdfast.statistics.rates import Metrics

Settings = dict[str, Any]  # dotted key -> value
METRICS = {
    **{"asr": "ASR", "over_refusal": "over-refusal", "broken_benign": "broken", "utility": "utility"},
    "miss_rate": "miss rate of the margin",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A finished study: `cfg` is what its tables were made with."""

    name: str
    layout: Layout
    cfg: Config

    @classmethod
    def of(cls, folder: Path, name: str) -> Study:
        layout = Layout(str(folder.parent), folder.name)
        written = layout.root / "tables" / "estimates" / "config.yaml"
        if not written.is_file():
            raise UserError(f"{folder}: no tables of a study there ({written} is missing); give results/<study>")
        cfg = read(OmegaConf.to_container(OmegaConf.load(written)))  # type: ignore[arg-type]
        return cls(name, layout.by(cfg.judge.name), cfg)

    def settings(self, run: tuple[str, str, str, int]) -> Settings:
        """What one run's stages were given, as they wrote it; names, which tell runs apart anyway, aside."""
        model, recipe, _, seed = run
        lay, found = self.layout, Settings()
        folders = {
            lay.data: data.STAGE,
            lay.pretrain(model): pretrain.STAGE,
            lay.align(model, recipe, seed): align.STAGE,
            lay.elicit(model, recipe, seed): elicit.STAGE,
            lay.probe(model, recipe, seed): probe.STAGE,
            lay.refine(*run): refine.STAGE,
            lay.evaluate(*run): evaluate.STAGE,
            lay.judged(*run): judge.STAGE,
        }
        for folder, stage in folders.items():
            if (folder / "config.yaml").is_file():  # which holds the sections of other stages too
                written: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))  # type: ignore[assignment]
                found |= flatten({part: written[part] for part in stage.reads})
        return {key: value for key, value in found.items() if not key.endswith(".name")}


def report(folders: list[Path], everything: bool = False) -> str:
    """All blocks. Raises `UserError` where a folder holds no finished study."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    studies = [Study.of(folder, name) for folder, name in zip(folders, names, strict=True)]
    parts = [_runs(studies)]
    parts += [_differing(*one) for one in (_within(studies[0]) if len(studies) == 1 else [_between(studies)])]
    return "\n\n".join([*parts, *_metrics(studies, everything)])


def _runs(studies: list[Study]) -> str:
    from tabulate import tabulate

    rows = []
    for study in studies:
        for model, recipe in dict.fromkeys(run[:2] for run in runs(study.cfg.study)):
            mine = [run for run in runs(study.cfg.study) if run[:2] == (model, recipe)]
            methods, seeds = (list(dict.fromkeys(run[place] for run in mine)) for place in (2, 3))
            rows.append((study.name, f"{model}/{recipe}", ", ".join(map(str, methods)), ", ".join(map(str, seeds))))
    return str(tabulate(rows, headers=["study", "model", "methods", "seeds"], maxcolwidths=[None, None, 60, None]))


def _within(study: Study) -> Iterator[tuple[str, dict[str, Settings]]]:
    """Of a study the settings of its recipes, and of its methods by the first recipe."""
    found = runs(study.cfg.study)
    models = {f"{m}/{r}": (m, r, method, seed) for m, r, method, seed in reversed(found)}
    if len(models) > 1:
        columns = {name: study.settings(run) for name, run in reversed(models.items())}
        yield "models and recipes", columns
    methods = {method: (m, r, method, seed) for m, r, method, seed in reversed(found) if (m, r) == found[0][:2]}
    columns = {name: study.settings(run) for name, run in reversed(methods.items())}
    # What refinement was given counts where methods were not given the same; the aligned model was given none.
    given = {k for c in columns.values() for k in c if k.startswith("refine.")}
    varied = {k for k in given if len({str(c[k]) for c in columns.values() if k in c}) > 1}
    yield (
        "methods",
        {n: {k: v for k, v in c.items() if k.startswith("method.") or k in varied} for n, c in columns.items()},
    )


def _between(studies: list[Study]) -> tuple[str, dict[str, Settings]]:
    """Of several studies the settings of the runs that all have; a key that is not the same in all runs of a study
    stands once for each."""
    shared = [run[:3] for run in runs(studies[0].cfg.study)]
    for study in studies[1:]:
        theirs = {run[:3] for run in runs(study.cfg.study)}
        shared = [run for run in shared if run in theirs]
    columns: dict[str, Settings] = {}
    for study in studies:
        seeds = {run[:3]: run for run in reversed(runs(study.cfg.study))}
        each = {"/".join(run): study.settings(seeds[run]) for run in dict.fromkeys(shared)}
        columns[study.name] = {
            key if len({str(s[key]) for s in each.values() if key in s}) == 1 else f"{key} of {run}": value
            for run, settings in each.items()
            for key, value in settings.items()
        } | dict(flatten({"tables": study.cfg.tables.model_dump()}))
    return "studies", columns


def _differing(of: str, columns: Mapping[str, Settings]) -> str:
    from tabulate import tabulate

    keys = dict.fromkeys(key for settings in columns.values() for key in settings)
    rows = [(key, *(settings.get(key, "–") for settings in columns.values())) for key in keys]
    rows = [row for row in rows if len({str(value) for value in row[1:]}) > 1]
    if not rows:
        return f"settings of {of}: the same"
    cells = [[str("–" if value is None else value) for value in row] for row in rows]
    return f"settings that differ between {of}\n\n" + tabulate(cells, headers=["", *columns], disable_numparse=True)


def _metrics(studies: list[Study], everything: bool) -> Iterator[str]:
    """A table a model: a row a metric and point, a column a method or study, the first of them the reference."""
    from tabulate import tabulate

    metrics, setting, same = metrics_of(studies)
    for model in dict.fromkeys(point.model for point in metrics):
        points = [point for point in metrics if point.model == model]
        columns = [name for name in setting.methods if any(point.method == name for point in points)]
        rows, alike = [], 0
        for metric in METRICS:
            for at in dict.fromkeys(point[2:] for point in points):
                cells, differs = _cells(metrics, setting, (model, metric, at), columns, same)
                rows += [(METRICS[metric], setting.named(*at), *cells)] * (differs or everything)
                alike += not differs and any(cell != "–" for cell in cells)
        if len(columns) < 2:
            continue
        told = f"{alike} rows without a difference to {columns[0]}" + (" among them" if everything else " (--all)")
        body = tabulate(rows, headers=["", "", *columns], disable_numparse=True) if rows else "no metric differs"
        yield f"{model}\n\n{body}\n\n{told}"
    paired = "paired by seed and prompt" if same else "not compared: prompts or seeds are not the same"
    decided = "* decided: the interval of the difference to the first column excludes 0"
    yield f"% with {setting.confidence:.0%} intervals; {decided}, {paired}"


def _cells(
    metrics: Metrics, setting: Setting, row: tuple[str, str, tuple[str, str, float]], columns: list[str], same: bool
) -> tuple[list[str], bool]:
    """The cells of a row, and whether one differs from the first."""
    from holdfast.reporting.estimates import compare, estimate, sampled
    from holdfast.reporting.render import percent

    model, metric, at = row
    values = [sampled(metrics, model, column, at, metric) for column in columns]
    cells = [percent(estimate(found, metric, setting)) for found in values]
    ps = [compare(found, values[0], metric, setting).p for found in values[1:]] if same else []
    marks = ["", *(" *" * (p <= 1 - setting.confidence) for p in ps)] if same else [""] * len(cells)
    differs = any(p <= 1 - setting.confidence for p in ps) or (not same and len(set(cells)) > 1)
    return [cell + mark for cell, mark in zip(cells, marks, strict=True)], differs


def metrics_of(studies: list[Study]) -> tuple[Metrics, Setting, bool]:
    """Metrics on common redraws of the prompts, and whether studies may be compared pair by pair. Of one study its
    methods are compared, by model and recipe; of several the studies, by model, recipe and method: their
    names stand for methods, the first for the reference."""
    import pandas as pd

    from holdfast.reporting.measured import Measured
    from holdfast.reporting.setting import Setting

    first = studies[0]
    if len(studies) == 1:
        measured = Measured.load(first.layout.root / "tables" / "estimates")
        setting = Setting.of(measured, first.cfg)
        order = [setting.reference, *(m for m in setting.methods if m != setting.reference)]
        return measured.metrics, dataclasses.replace(setting, methods=order), True
    frames = []
    for study in studies:
        found = outcomes(Evidence(study.layout, study.cfg.study))
        model = found["model"].astype(str) + "/" + found["recipe"].astype(str) + "/" + found["method"].astype(str)
        frames.append(found.assign(model=model, method=study.name).drop(columns="recipe"))
    measured = Measured.of(pd.concat(frames, ignore_index=True), first.cfg, simulate=False)
    setting = Setting.of(measured, first.cfg)
    perturbations = {name: p for study in studies for name, p in study.cfg.perturb.items()}
    asked = [_asked(study) for study in studies]
    seeds = [list(study.cfg.study.seeds) for study in studies]
    same = all(one.equals(asked[0]) for one in asked) and all(one == seeds[0] for one in seeds)
    names = [study.name for study in studies]
    setting = dataclasses.replace(setting, methods=names, reference=names[0], perturbations=perturbations)
    return measured.metrics, setting, same


def _asked(study: Study) -> pd.DataFrame:
    """The prompts of the study's evaluation."""
    found = read_frame(study.layout.data / "prompts.parquet")
    return found[found["split"].isin(["test", "threshold"])][["id", "prompt", "label"]].reset_index(drop=True)


def main(arguments: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="holdfast compare", description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, help="folders, results/<study>")
    parser.add_argument("--all", action="store_true", help="print the rows in which nothing differs, too")
    given = parser.parse_args(arguments)
    return report(given.studies, given.all)
