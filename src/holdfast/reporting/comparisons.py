"""The comparisons that each claim, and our own goal, comes down to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting import verdicts
from holdfast.reporting.cost import overheads
from holdfast.reporting.estimates import (
    CLEAN,
    GUARDS,
    At,
    Judged,
    at_of,
    compare,
    judged_points,
    limit,
    sampled,
    worsening,
)
from holdfast.reporting.sensitivity import ONLINE, PROBE, agreement, profiles
from holdfast.reporting.setting import Setting
from holdfast.reporting.verdicts import Test
from holdfast.settings.options import Config
from holdfast.statistics.intervals import NOTHING, Difference, Estimate, student
from holdfast.statistics.rates import Metrics, Sampled

CLAIMS = ("C1", "C2", "C3", "C4", "C5", "O1", "K1")
Side = tuple[str, At | None]
"""A method at a point; None for a point that the study lacks."""


@dataclass(frozen=True)
class Row:
    """One comparison: the difference of the ASR, or of what the family names, and the worsening of each guard at the
    same point. `whole`: part of what the claim as a whole is judged by."""

    claim: str
    model: str
    family: str
    comparison: str
    effect: Estimate
    test: Test
    guards: dict[str, Difference] = field(default_factory=lambda: dict.fromkeys(GUARDS, NOTHING))
    whole: bool = True
    unit: str = "points"


class Comparisons:
    """Makes the rows of one study; `setting` has the claims' confidence."""

    def __init__(self, metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> None:
        self.metrics, self.frames, self.cfg, self.claims = metrics, frames, cfg, cfg.claims
        self.setting = replace(setting, confidence=cfg.claims.confidence)
        self.reference, self.spent = setting.reference, overheads(frames["costs"], cfg)
        self.costs = {name: limit(setting, name) for name in GUARDS}

    def rows(self) -> list[Row]:
        """Every claim for every base model, at the judged recipes; C1 and C2 at each length of alignment too."""
        c, made = self.claims, []
        bases = dict.fromkeys(point.model.rpartition("/")[0] for point in self.metrics)
        measured = {point.model for point in self.metrics}
        for recipe in dict.fromkeys([*c.lengths, *c.judged]):
            for base in bases:
                model = f"{base}/{recipe}"
                if model in measured:
                    made += list(self.of(model, recipe in c.judged))
        return sorted(made, key=lambda row: CLAIMS.index(row.claim))

    def of(self, model: str, judged: bool) -> Iterator[Row]:
        m, at = self.claims.methods, judged_points(self.metrics, self.setting, model)
        fragile = {family: self.fragile(model, family, at[family]) for family in at}
        yield from fragile.values()
        broken = {family for family, row in fragile.items() if row.test.verdict == verdicts.SUPPORTED}

        def asked(row: Row) -> Row:
            """C2, C4 and C5 are of families in which alignment is fragile."""
            if row.family in broken or row.test.verdict in verdicts.SILENT:
                return row
            return replace(row, test=Test(nan, verdicts.NOT_FRAGILE))

        for family, one in at.items():
            yield asked(self.better("C2", model, family, one, m.paper, self.reference))
        if not judged:
            return
        yield from self.kept(model)
        for method in (m.paper, m.online):
            for family, one in at.items():
                yield asked(self.better("C4", model, family, one, method, m.random))
        yield from self.stable(model)
        for family, one in at.items():
            yield asked(self.as_good("C5", model, family, one, m.paper, m.all))
        yield self.overhead(model)
        yield from self.own(model, at)

    def fragile(self, model: str, family: str, at: Judged | None) -> Row:
        sides = ((self.reference, at_of(at)), (self.reference, CLEAN))
        row = self.difference(model, *sides)
        test = verdicts.fragile(row, self.claims.margin)
        if at and at.measurable is False and test.verdict != verdicts.SUPPORTED:
            test = Test(nan, verdicts.NOT_MEASURABLE)
        name = f"{self.reference}: {self.named(at)} − clean"
        return Row("C1", model, family, name, row, test if row.mean == row.mean else Test(nan, verdicts.NOT_RUN))

    def better(self, claim: str, model: str, family: str, at: Judged | None, one: str, other: str) -> Row:
        return self.against(
            claim, model, family, at, one, other, lambda d, g: verdicts.better(d, self.claims.margin, g, self.costs)
        )

    def as_good(self, claim: str, model: str, family: str, at: Judged | None, one: str, other: str) -> Row:
        return self.against(claim, model, family, at, one, other, lambda d, _: verdicts.as_good(d, self.claims.margin))

    def against(self, claim: str, model: str, family: str, at: Judged | None, one: str, other: str, rule: Any) -> Row:
        """Two methods where a family is judged; *not measurable* where the reference hardly gives way there."""
        effect, guards = self.beside(model, (one, at_of(at)), (other, at_of(at)))
        test = Test(nan, verdicts.NOT_RUN)
        if at and effect.mean == effect.mean:
            test = rule(effect, guards) if at.measurable else Test(nan, verdicts.NOT_MEASURABLE)
        name = f"{one} − {other}" + f" at {self.named(at)}" * bool(at)
        return Row(claim, model, family, name, effect, test, guards)

    def kept(self, model: str) -> Iterator[Row]:
        """C3, of the clean model; where the weights hardly moved it says nothing."""
        paper, spent = self.claims.methods.paper, self.frames["costs"]
        mine = spent[(spent["model"] == model) & (spent["stage"] == "evaluate")]
        of = {m: mine[mine["method"] == m] for m in (paper, self.reference)}
        way = of[self.reference]["moved_by_alignment"].mean()
        share = of[paper]["moved"].mean() / way if way > 0 else nan
        still = share < self.claims.moved
        for name, metric in (("clean ASR", "asr"), *((cost.replace("_", " "), cost) for cost in GUARDS)):
            effect = self.difference(model, (paper, CLEAN), (self.reference, CLEAN), metric)
            test = verdicts.as_good(worsening(effect, metric), limit(self.setting, metric))
            if effect.mean != effect.mean:
                test = Test(nan, verdicts.NOT_RUN)
            elif still:
                test = Test(nan, verdicts.NOT_MOVED)
            yield Row("C3", model, name, f"{paper} − {self.reference}", effect, test)
        far = Estimate(100 * share, nan, nan)
        verdict = verdicts.NOT_RUN if share != share else "told"
        yield Row(
            "C3", model, "all", f"moved by {paper}, of alignment's way", far, Test(nan, verdict), whole=False, unit="%"
        )

    def stable(self, model: str) -> Iterator[Row]:
        parts = {n: self.frames[n][self.frames[n]["model"] == model] for n in ("sensitivity", "online")}
        found = profiles(parts["sensitivity"], parts["online"], self.cfg.probe, self.setting.resamples)
        none = pd.DataFrame(columns=["seed", "group", "asr", "auroc"])
        for source in (PROBE, ONLINE):
            stable = Estimate(nan, nan, nan)
            if source in found:
                stable = agreement(found[source], none, self.claims.top_k, self.claims.confidence).seeds
            verdict = verdicts.NOT_RUN if np.isnan(stable.mean) else verdicts.above(stable, self.claims.stable)
            name = f"rank correlation of seeds, {source}"
            yield Row("C4", model, "all", name, stable, Test(nan, verdict), unit="ρ")

    def overhead(self, model: str) -> Row:
        paper = self.claims.methods.paper
        spent = self.spent[(self.spent["model"] == model) & (self.spent["method"] == paper)]
        spent = spent[np.isfinite(spent["overhead"])]  # there is none over an alignment that was not ours
        over = student(100 * spent["overhead"].to_numpy(), self.claims.confidence)
        verdict = verdicts.NOT_RUN if spent.empty else verdicts.within(over, 100 * self.claims.overhead)
        name = f"overhead of {paper}, by forward-equivalents"
        return Row("C5", model, "all", name, over, Test(nan, verdict), unit="%")

    def own(self, model: str, at: dict[str, Judged | None]) -> Iterator[Row]:
        m, best = self.claims.methods, self.best_first_order(model, at)
        for method in m.forward_only:
            for family, one in at.items():
                yield self.as_good("O1", model, family, one, method, best)
                for control in (m.extrapolate, m.shuffled):
                    yield self.better("O1", model, family, one, method, control)
        for family, one in at.items():
            yield self.against(
                "K1",
                model,
                family,
                one,
                m.shuffled,
                self.reference,
                lambda d, _: verdicts.equivalent(d, self.claims.margin),
            )

    def best_first_order(self, model: str, at: dict[str, Judged | None]) -> str:
        """The first-order method whose ASR is lowest on average over families."""
        means = {}
        for method in self.claims.methods.first_orders:
            found = [self.values(model, (method, at_of(one)), "asr") for one in at.values()]
            if found and not any(values.missing for values in found):
                means[method] = np.mean([values.value.mean() for values in found])
        return min(means, key=means.__getitem__) if means else self.claims.methods.first_orders[0]

    def beside(self, model: str, one: Side, other: Side) -> tuple[Difference, dict[str, Difference]]:
        """The difference of the ASR, and of each guard as a worsening."""
        found = {name: self.difference(model, one, other, name) for name in ("asr", *GUARDS)}
        return found.pop("asr"), {name: worsening(change, name) for name, change in found.items()}

    def difference(self, model: str, one: Side, other: Side, metric: str = "asr") -> Difference:
        return compare(self.values(model, one, metric), self.values(model, other, metric), metric, self.setting)

    def values(self, model: str, side: Side, metric: str) -> Sampled:
        return sampled(self.metrics, model, *side, metric)

    def named(self, at: Judged | None) -> str:
        return self.setting.label(at.at[0], at.at[2]) if at else "a level that was not run"
