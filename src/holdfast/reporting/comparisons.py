"""The comparisons that each claim, and our own goal, comes down to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import nan

import numpy as np
import pandas as pd

from holdfast.reporting import verdicts
from holdfast.reporting.cost import overheads
from holdfast.reporting.estimates import compare, judged_points, sampled
from holdfast.reporting.sensitivity import ONLINE, PROBE, agreement, profiles
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import CLEAN
from holdfast.settings.options import Config
from holdfast.statistics.intervals import NOTHING, Difference, Estimate, student
from holdfast.statistics.rates import Metrics

CLAIMS = ("C1", "C2", "C3", "C4", "C5", "O1", "K1")
P: dict[verdicts.Rule | None, str] = {
    verdicts.fragile: "p",
    verdicts.better: "p",
    verdicts.as_good: "inferiority",
}  # the others' p: of equivalence
BESIDE = ("asr", "asr_margin", "auroc", "utility")
"""What stands beside the primary metric: were it low because answers broke, margins and utility would tell."""
At = tuple[str, str, float]
Side = tuple[str, At | None]
"""A method at a point; None for a point that the study lacks."""


@dataclass(frozen=True)
class Row:
    """One comparison, before its verdict: differences of the primary metric, and of those beside it. `judged`: in the
    Holm family. `rule` None where the verdict is given already."""

    claim: str
    model: str
    family: str
    comparison: str
    effect: Difference
    beside: dict[str, Difference] = field(default_factory=lambda: dict.fromkeys(BESIDE, NOTHING))
    rule: verdicts.Rule | None = None
    judged: bool = False
    verdict: str = ""
    unit: str = "points"

    @property
    def p(self) -> float:
        return getattr(self.effect, P.get(self.rule, "equivalence")) if self.rule else nan


class Comparisons:
    """Makes the rows of one study; `setting` has the claims' margin and confidence."""

    def __init__(self, metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> None:
        self.metrics, self.frames, self.cfg, self.claims = metrics, frames, cfg, cfg.claims
        self.setting = replace(setting, confidence=cfg.claims.confidence, margin=cfg.claims.margin)
        self.reference, self.judged_at = setting.reference, judged_points(metrics, cfg.claims)
        self.spent = overheads(frames["costs"], cfg)

    def rows(self) -> list[Row]:
        """Every claim for every base model, at the judged recipes; C1 and C2 at each length of alignment too."""
        c, made = self.claims, []
        bases = dict.fromkeys(point.model.rpartition("/")[0] for point in self.metrics)
        for recipe in dict.fromkeys([*c.lengths, *c.judged]):
            for base in bases:
                model, judged = f"{base}/{recipe}", recipe in c.judged
                made += self.robustness(model, judged)
                if judged:
                    made += [*self.preserved(model), *self.layers(model), *self.selected(model), *self.own(model)]
        return sorted(made, key=lambda row: CLAIMS.index(row.claim))

    def robustness(self, model: str, judged: bool) -> list[Row]:
        ref, paper, rows = self.reference, self.claims.methods.paper, []
        for family, at in self.judged_at.items():
            clean = self.difference("C1", model, family, (ref, at), (ref, CLEAN), verdicts.fragile)
            rows.append(replace(clean, judged=judged, comparison=f"{ref}: headline − clean"))
            rows.append(replace(self.against("C2", model, family, paper, ref, verdicts.better), judged=judged))
        return rows

    def preserved(self, model: str) -> list[Row]:
        paper, rows = self.claims.methods.paper, []
        for name, metric, rule in (
            ("clean ASR", self.claims.primary, verdicts.kept_low),
            ("over-refusal", "over_refusal", verdicts.kept_low),
            ("utility", "utility", verdicts.kept_low if self.setting.utility == "perplexity" else verdicts.kept_high),
        ):
            row = self.difference("C3", model, name, (paper, CLEAN), (self.reference, CLEAN), rule, metric)
            rows.append(replace(row, judged=row.verdict == ""))
        return rows

    def layers(self, model: str) -> list[Row]:
        m, rows = self.claims.methods, []
        for method in (m.paper, m.online):
            for family in self.judged_at:
                rows.append(replace(self.against("C4", model, family, method, m.random, verdicts.better), judged=True))
        parts = {n: self.frames[n][self.frames[n]["model"] == model] for n in ("sensitivity", "online")}
        found = profiles(parts["sensitivity"], parts["online"], self.cfg.probe, self.setting.resamples)
        none = pd.DataFrame(columns=["seed", "group", "asr", "auroc"])
        for source in (PROBE, ONLINE):
            stable = Estimate(nan, nan, nan)
            if source in found:
                stable = agreement(found[source], none, self.claims.top_k, self.claims.confidence).seeds
            verdict = verdicts.NOT_RUN if np.isnan(stable.mean) else verdicts.above(stable, self.claims.stable)
            rows.append(self.estimated("C4", model, f"rank correlation of seeds, {source}", stable, verdict, "ρ"))
        return rows

    def selected(self, model: str) -> list[Row]:
        m = self.claims.methods
        rows = [self.against("C5", model, family, m.paper, m.all, verdicts.as_good) for family in self.judged_at]
        spent = self.spent[(self.spent["model"] == model) & (self.spent["method"] == m.paper)]
        spent = spent[np.isfinite(spent["overhead"])]  # there is none over an alignment that was not ours
        over = student(100 * spent["overhead"].to_numpy(), self.claims.confidence)
        verdict = verdicts.NOT_RUN if spent.empty else verdicts.within(over, 100 * self.claims.overhead)
        name = f"overhead of {m.paper}, by forward-equivalents"
        return [replace(row, judged=True) for row in rows] + [self.estimated("C5", model, name, over, verdict, "%")]

    def own(self, model: str) -> list[Row]:
        m, best = self.claims.methods, self.best_first_order(model)
        rows = []
        for method in m.forward_only:
            for family in self.judged_at:
                rows.append(self.against("O1", model, family, method, best, verdicts.as_good))
                for control in (m.extrapolate, m.shuffled):
                    rows.append(self.against("O1", model, family, method, control, verdicts.better))
        for family, at in self.judged_at.items():
            sides = ((m.shuffled, at), (self.reference, at))
            rows.append(self.difference("K1", model, family, *sides, verdicts.equivalent))
        return rows

    def best_first_order(self, model: str) -> str:
        """The first-order method whose primary metric is lowest on average over families."""
        means = {}
        for method in self.claims.methods.first_orders:
            found = [self.primary(model, (method, at)) for at in self.judged_at.values()]
            if all(map(len, found)):
                means[method] = np.mean([values[:, 0].mean() for values in found])
        return min(means, key=means.__getitem__) if means else self.claims.methods.first_orders[0]

    def against(self, claim: str, model: str, family: str, one: str, other: str, rule: verdicts.Rule) -> Row:
        """Two methods at a family's headline level; *not measurable* where the reference hardly fails there."""
        at = self.judged_at[family]
        row = self.difference(claim, model, family, (one, at), (other, at), rule)
        tuned = sampled(self.metrics, model, self.reference, at, "asr_margin_tune") if at else np.empty((0, 1))
        if row.verdict or tuned[:, 0].mean() >= self.setting.headline_asr:
            return row
        return replace(row, rule=None, verdict=verdicts.NOT_MEASURABLE)

    def difference(
        self, claim: str, model: str, family: str, one: Side, other: Side, rule: verdicts.Rule, metric: str = ""
    ) -> Row:
        """`one` − `other`; *not run* where either is missing."""
        metric = metric or self.claims.primary
        found = {
            name: compare(self.primary(model, one, name), self.primary(model, other, name), name, self.setting)
            for name in (metric, *BESIDE)
        }
        effect, beside = found[metric], {name: found[name] for name in BESIDE}
        verdict, applied = (verdicts.NOT_RUN, None) if np.isnan(effect.mean) else ("", rule)
        return Row(claim, model, family, f"{one[0]} − {other[0]}", effect, beside, applied, False, verdict)

    def primary(self, model: str, side: Side, metric: str = "") -> np.ndarray:
        method, at = side
        return sampled(self.metrics, model, method, at, metric or self.claims.primary) if at else np.empty((0, 1))

    def estimated(self, claim: str, model: str, what: str, e: Estimate, verdict: str, unit: str) -> Row:
        effect = Difference(e.mean, e.low, e.high, nan, nan, nan)
        return Row(claim, model, "all", what, effect, verdict=verdict, unit=unit)
