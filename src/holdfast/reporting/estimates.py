"""The estimate of a metric, and of its difference to another, with what its interval depends on."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

from holdfast.reporting.setting import Setting
from holdfast.statistics import intervals
from holdfast.statistics.intervals import NOTHING, Difference, Estimate
from holdfast.statistics.rates import DETECTOR, UNMEASURED, Metrics, Point, Sampled

GUARDS = ("over_refusal", "broken_benign", "utility")  # what a lower ASR must not cost
HIGHER = ("utility", "auroc")  # is better
LABEL = dict.fromkeys(GUARDS, "benign")  # of the prompts that a metric is a share of; of all others harmful
At = tuple[str, str, float]  # perturbation, family and level
CLEAN: At = ("none", "clean", 0.0)


@dataclass(frozen=True)
class Judged:
    """The point at which a family is judged; `measurable`: whether the reference gives way there at all."""

    at: At
    measurable: bool


def at_of(one: Judged | None) -> At | None:
    return one.at if one else None


def sampled(metrics: Metrics, model: str, method: str, at: At | None, metric: str) -> Sampled:
    """A metric at a point; without seeds where it was not measured."""
    found = metrics.get(Point(model, method, *at)) if at else None
    return found[metric] if found else UNMEASURED


def is_share(metric: str) -> bool:
    return metric != "margin"


def estimate(values: Sampled, metric: str, setting: Setting) -> Estimate:
    """A metric over seeds."""
    prompts = setting.prompts(LABEL.get(metric, "harmful"), threshold=metric in DETECTOR)
    if is_share(metric):
        return intervals.share(values, prompts, setting.confidence)
    return intervals.difference(values, prompts, setting.confidence)


def compare(values: Sampled, others: Sampled, metric: str, setting: Setting) -> Difference:
    """`values` − `others`, paired by seed, draw and prompt."""
    if values.missing or others.missing or values.redrawn.shape != others.redrawn.shape:
        return NOTHING
    prompts = setting.prompts(LABEL.get(metric, "harmful"), threshold=metric in DETECTOR)
    return intervals.difference(values - others, prompts, setting.confidence, shares=is_share(metric))


def worsening(change: Difference, metric: str) -> Difference:
    """Of what should be high, its fall."""
    return -change if metric in HIGHER else change


def limit(setting: Setting, metric: str) -> float:
    """How much worse the ASR, or a guard, may be."""
    return setting.margin if metric == "asr" else float(getattr(setting.guards, metric))


def judged_points(metrics: Metrics, setting: Setting, model: str) -> dict[str, Judged | None]:
    """Family of the claims -> where it is judged for a model and recipe: at the level that the claims give, or the
    mildest at which the reference's ASR on the tuning split reaches `headline_asr`, else where that is highest. At a
    given level that no tuning prompt was asked at, nothing says that the reference holds. None where the study lacks
    the family."""
    found: dict[str, Judged | None] = {}
    for family, wanted in setting.families.items():
        levels = {
            point[2:]: nan if measured["asr_tune"].missing else float(measured["asr_tune"].value.mean())
            for point, measured in metrics.items()
            if point[:3] == (model, setting.reference, wanted.perturbation) and wanted.level in (None, point.level)
        }
        given = wanted.level is not None
        enough = {at: asr for at, asr in levels.items() if asr >= setting.headline_asr or (given and isnan(asr))}
        if enough:
            found[family] = Judged(min(enough, key=enough.__getitem__), True)
        else:
            found[family] = Judged(max(levels, key=levels.__getitem__), False) if levels else None
    return found
