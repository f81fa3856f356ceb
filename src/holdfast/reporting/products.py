"""What the tables stage makes. Each product says itself what it needs, which studies have it, and which files it is.

A table of one's own is a function with the decorator `table`, in a module outside this package, and
`tables.make=[main,package.module.function]` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.reporting.options import PRODUCTS
from holdfast.reporting.product import ESTIMATES, Figures, Files, Product, Results, Texts, table, write
from holdfast.settings.options import Config
from holdfast.settings.paths import runs, shown

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


def _transcripts(results: Results) -> dict[str, str]:
    from holdfast.reporting.transcripts import page

    cfg, said = results.cfg, results.evidence.frame("responses")
    return {"transcripts.html": page(said, results.setting, cfg.study.name, cfg.tables.transcripts)}


def _logs(results: Results) -> dict[str, str]:
    from holdfast.reporting.inspect_log import logs

    cfg, said = results.cfg, results.evidence.frame("responses")
    made = logs(said, results.setting, cfg.study.name, cfg.judge.name)
    return {f"inspect/{name}.json": log for name, log in made.items()}


PRODUCTS.register("transcripts")(
    Texts(
        "transcripts",
        "transcripts",
        _transcripts,
        ("responses",),
        wanted=lambda cfg: cfg.tables.source is None and cfg.tables.transcripts > 0,
        named=lambda cfg: ["transcripts.html"],
    )
)
PRODUCTS.register("inspect")(
    Texts(
        "inspect",
        "logs of inspect_ai",
        _logs,
        ("responses",),
        wanted=lambda cfg: cfg.tables.source is None,
        named=lambda cfg: [f"inspect/{model}-{recipe}-{method}.json" for model, recipe, method, _ in shown(cfg.study)],
    )
)


def _before_after(results: Results) -> dict[str, Figure]:
    from holdfast.reporting.before_after import before_after_figure

    table = PRODUCTS["main"].make(results).frame
    return {"before_after": before_after_figure(table, results.cfg.study.reference)}


def _names(cfg: Config) -> list[str]:
    names = ["dose_response", "sensitivity", "cost", *["trade_off"] * (cfg.evaluate.margin_draws > 0)]
    return names + ["lengths"] * (len(cfg.claims.lengths) > 1) + ["steps"] * bool(cfg.claims.budgets)


def _figures(results: Results) -> dict[str, Figure]:
    from holdfast.reporting import figures as draw
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


PRODUCTS.register("before_after")(
    Figures("before_after", "before and after", _before_after, named=lambda cfg: ["before_after"])
)
PRODUCTS.register("figures")(
    Figures("figures", "figures", _figures, ("records", "sensitivity", "costs"), named=_names)
)


PRODUCTS.register("estimates")(Files("estimates", "estimates", lambda results: None, beside=ESTIMATES))
PRODUCTS.register("evidence")(
    Files(
        "evidence",
        "compact records",
        lambda results: None,
        ("sensitivity", "online", "outcomes", "costs", "timing", "tasks"),
    )
)
