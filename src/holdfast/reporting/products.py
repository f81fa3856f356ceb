"""What the tables stage makes. Each product says itself what it needs, which studies have it, and which files it is.

A table of one's own is a function with the decorator `table`, in a module outside this package, and
`tables.make=[main,package.module.function]` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.reporting.options import PRODUCTS
from holdfast.reporting.product import ESTIMATES, Files, Product, Results, table, write
from holdfast.runtime.files import replacing, write_text
from holdfast.settings.options import Config
from holdfast.settings.paths import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from holdfast.reporting.render import Table
    from holdfast.reporting.setting import Setting


def _main_text(frame: Any, setting: Setting) -> str:
    from holdfast.reporting.tables import terminal

    return terminal(frame, setting)


def _claims_text(frame: Any, setting: Setting) -> str:
    from holdfast.reporting.claims import terminal_claims

    return terminal_claims(frame, setting)


def _with_controls(cfg: Config) -> bool:
    return any(method in cfg.claims.methods.controls for _, _, method, _ in runs(cfg.study))


@table("T1 main", terminal=_main_text)
def main(results: Results) -> Table:
    from holdfast.reporting.tables import main_table

    return main_table(results.measured.metrics, results.setting)


@table("controls", wanted=_with_controls)
def controls(results: Results) -> Table:
    from holdfast.reporting.tables import main_table

    return main_table(results.measured.metrics, results.setting, controls=True)


@table("the detector's view", wanted=lambda cfg: cfg.evaluate.margin_draws > 0)
def detector(results: Results) -> Table:
    from holdfast.reporting.detector import detector as made

    return made(results.measured.metrics, results.setting, results.cfg.evaluate.margin_draws)


@table("sources and categories", "records")
def sources(results: Results) -> Table:
    from holdfast.reporting.sources import sources as made

    return made(results.evidence.frame("records"), results.measured.metrics, results.setting)


@table("T2 dose and response")
def dose_response(results: Results) -> Table:
    from holdfast.reporting import tables

    return tables.dose_response(results.measured.metrics, results.setting)


@table("T3 quantization")
def quantization(results: Results) -> Table:
    from holdfast.reporting.quantization import quantization

    return quantization(results.measured.metrics, results.setting)


@table("T4 selection of layers", "sensitivity", "online", "outcomes", "costs")
def selection(results: Results) -> Table:
    from holdfast.reporting.selection import selection as made

    return made(results.measured.metrics, results.setting, results.frames(selection), results.cfg)


@dataclass(frozen=True)
class Cost(Product):
    """With the times of the machine that ran the study in a table of their own: not reproducible to the byte."""

    def write(self, results: Results, folder: Path, figures: Path) -> Table:
        from holdfast.reporting.cost import timing

        made: Table = super().write(results, folder, figures)
        times = timing(results.evidence.frame("timing"), results.cfg.tables.confidence)
        write(times, folder, "timing", ("csv", "md"))
        return made


def _cost(results: Results) -> Table:
    from holdfast.reporting.cost import cost

    return cost(results.measured.metrics, results.setting, results.evidence.frame("costs"), results.cfg)


PRODUCTS.register("cost")(
    Cost("cost", "T5 steps and cost", _cost, ("costs", "timing"), beside=("timing.csv", "timing.md"))
)


@table("T7 claims", "sensitivity", "online", "costs", terminal=_claims_text)
def claims(results: Results) -> Table:
    from holdfast.reporting.claims import claims_table

    return claims_table(results.measured.metrics, results.setting, results.frames(claims), results.cfg)


@table("base optimizers", "sensitivity", "costs", wanted=lambda cfg: bool(cfg.claims.optimizers))
def optimizers(results: Results) -> Table:
    from holdfast.reporting.optimizers import optimizers as made

    return made(results.measured.metrics, results.setting, results.frames(optimizers), results.cfg)


@table("T6 judges", "records")
def judges(results: Results) -> Table:
    from holdfast.reporting.judges import judges

    return judges(results.evidence.frame("records"), results.setting)


@table("tasks of lm-eval", "tasks", wanted=lambda cfg: bool(cfg.evaluate.tasks))
def tasks(results: Results) -> Table:
    from holdfast.reporting.tasks import tasks

    return tasks(results.evidence.frame("tasks"), results.setting)


def _has_responses(cfg: Config) -> bool:
    return cfg.tables.source is None


@dataclass(frozen=True)
class Transcripts(Product):
    """What was said, for reading: the records in compact form have no responses."""

    def files(self, cfg: Config) -> list[str]:
        return [f"{self.name}.html"]

    def write(self, results: Results, folder: Path, figures: Path) -> None:
        write_text(folder / f"{self.name}.html", self.make(results))


def _transcripts(results: Results) -> str:
    from holdfast.reporting.transcripts import page

    cfg, said = results.cfg, results.evidence.frame("responses")
    return page(said, results.setting, cfg.study.name, cfg.tables.transcripts)


PRODUCTS.register("transcripts")(
    Transcripts(
        "transcripts",
        "transcripts",
        _transcripts,
        ("responses",),
        wanted=lambda cfg: _has_responses(cfg) and cfg.tables.transcripts > 0,
    )
)


@dataclass(frozen=True)
class Logs(Product):
    """The same responses as logs of inspect_ai, one a model and method, to be read by `inspect view`."""

    def files(self, cfg: Config) -> list[str]:
        first = [run for run in runs(cfg.study) if run[-1] == cfg.study.seeds[0]]
        return [f"{self.name}/{model}-{recipe}-{method}.json" for model, recipe, method, _ in first]

    def write(self, results: Results, folder: Path, figures: Path) -> None:
        for name, log in self.make(results).items():
            write_text(folder / self.name / f"{name}.json", log)


def _logs(results: Results) -> dict[str, str]:
    from holdfast.reporting.inspect_log import logs

    cfg, said = results.cfg, results.evidence.frame("responses")
    return logs(said, results.setting, cfg.study.name, cfg.judge.name)


PRODUCTS.register("inspect")(Logs("inspect", "logs of inspect_ai", _logs, ("responses",), wanted=_has_responses))


@dataclass(frozen=True)
class Figures(Product):
    """All figures of a study, as PNG and PDF."""

    def files(self, cfg: Config) -> list[str]:
        names = [
            "before_after",
            "dose_response",
            "sensitivity",
            "cost",
            *["trade_off"] * (cfg.evaluate.margin_draws > 0),
        ]
        names += ["lengths"] * (len(cfg.claims.lengths) > 1) + ["steps"] * bool(cfg.claims.budgets)
        return [f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")]

    def write(self, results: Results, folder: Path, figures: Path) -> dict[str, Figure]:
        from holdfast.reporting.figures import save

        made: dict[str, Figure] = self.make(results)
        for name, figure in made.items():
            for suffix in ("png", "pdf"):
                with replacing(figures / f"{name}.{suffix}") as path:
                    save(figure, path, suffix)
        return made


def _figures(results: Results) -> dict[str, Figure]:
    from holdfast.reporting import figures as draw
    from holdfast.reporting.before_after import before_after_figure
    from holdfast.reporting.estimates import judged_points
    from holdfast.reporting.trade_off import trade_off_figure

    cfg, setting, evidence = results.cfg, results.setting, results.evidence
    metrics, judged = results.measured.metrics, list(cfg.claims.judged)
    models = [m for m in dict.fromkeys(p.model for p in metrics) if m.rpartition("/")[2] in judged]
    points = dict.fromkeys(
        one.at for model in models for one in judged_points(metrics, setting, model).values() if one
    )
    spent, reference = _cost(results).frame, cfg.study.reference
    rises = evidence.frame("sensitivity")
    doses = PRODUCTS["dose_response"].make(results).frame
    made = {
        "before_after": before_after_figure(PRODUCTS["main"].make(results).frame, reference),
        "dose_response": draw.dose_response_figure(doses, reference),
        "sensitivity": draw.sensitivity_figure(
            rises[(rises["kind"] == "weights") & (rises["sigma"] == cfg.probe.sigma)]
        ),
        "cost": draw.cost_figure(spent, reference, judged),
    }
    if cfg.evaluate.margin_draws:
        made["trade_off"] = trade_off_figure(evidence.frame("records"), setting, list(points), judged)
    if len(cfg.claims.lengths) > 1:
        made["lengths"] = draw.lengths_figure(spent, evidence.frame("costs"), list(cfg.claims.lengths))
    if cfg.claims.budgets:
        made["steps"] = draw.steps_figure(spent, reference, {k: list(v) for k, v in cfg.claims.budgets.items()})
    return made


PRODUCTS.register("figures")(Figures("figures", "figures", _figures, ("records", "sensitivity", "costs")))


PRODUCTS.register("estimates")(Files("estimates", "estimates", lambda results: None, beside=ESTIMATES))
PRODUCTS.register("evidence")(
    Files(
        "evidence",
        "compact records",
        lambda results: None,
        ("sensitivity", "online", "outcomes", "costs", "timing", "tasks"),
    )
)
