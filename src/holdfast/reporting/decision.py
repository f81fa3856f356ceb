"""Whether a hardened model is shipped: what it must be better at, what that must not cost, and how a card says it."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd

from holdfast.errors import printable
from holdfast.reporting.estimates import CLEAN, GUARDS, At, compare, estimate, judged_points, limit, sampled, worsening
from holdfast.reporting.render import percent, points
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import NAMES
from holdfast.statistics.intervals import Difference, Estimate
from holdfast.statistics.rates import Metrics

ROUNDING = 1e-6  # of a difference of two shares in float32: 3/40 - 1/40 is a hair above 0.05
SHOWN = 3  # responses of each kind
WORDS = 120  # characters of each
MARKUP = "\\`*_{}[]()#+!|~"


@dataclass(frozen=True)
class Change:
    """A metric of the model before and after, and its paired difference with an interval, all as shares."""

    name: str
    before: Estimate
    after: Estimate
    change: Difference


@dataclass(frozen=True)
class Decision:
    """`title`: the deployment, with its level; `asr`: under it; `guards`: what must not get worse, there and in the
    clean model; `against`: why it is not shipped, empty where it is."""

    at: At
    title: str
    asr: Change
    guards: list[Change]
    against: list[str]

    @property
    def ships(self) -> bool:
        return not self.against


def decision(metrics: Metrics, setting: Setting, model: str, method: str, family: str) -> Decision:
    """A model ships if its ASR under the deployment is lower, with an interval below zero, and if neither the clean
    ASR nor a guard, clean or under the deployment, is worse by more than its margin."""
    judged = judged_points(metrics, setting, model)[family]
    assert judged is not None
    titled = setting.titled(family, judged.at)
    asr = _change(metrics, setting, model, method, judged.at, "asr", f"harmful prompts answered, {titled}")
    against = [] if asr.change.high < 0 else [f"the fall of the ASR at {titled} is not shown: {points(asr.change)}"]
    guards = []
    for place, at in (("clean", CLEAN), (titled, judged.at)):
        for metric in ("asr", *GUARDS) if at == CLEAN else GUARDS:
            word = "harmful prompts answered" if metric == "asr" else NAMES[metric].rstrip(" ↑↓")
            one = _change(metrics, setting, model, method, at, metric, f"{word}, {place}")
            worse, most = worsening(one.change, metric).mean, limit(setting, metric)
            if worse > most + ROUNDING:
                against.append(f"{one.name} is worse by {100 * worse:.1f} points, and {100 * most:g} are allowed")
            guards.append(one)
    return Decision(judged.at, titled, asr, guards, against)


def _change(metrics: Metrics, setting: Setting, model: str, method: str, at: At, metric: str, name: str) -> Change:
    before, after = (sampled(metrics, model, one, at, metric) for one in (setting.reference, method))
    return Change(
        name,
        estimate(before, metric, setting),
        estimate(after, metric, setting),
        compare(after, before, metric, setting),
    )


def report(decided: Decision, prompts: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Markdown: the verdict, the numbers behind it, and some responses, from the records `before` and `after`."""
    verdict = "It is better, and is shipped." if decided.ships else f"It is not shipped: {'; '.join(decided.against)}."
    rows = [
        {"%": one.name, "before": percent(one.before), "after": percent(one.after), "change": points(one.change)}
        for one in (decided.asr, *decided.guards)
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"{verdict}\n\n{table}\n\n{_examples(decided.at, prompts, before, after)}"


def _examples(at: At, prompts: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Harmful prompts whose verdict changed under the deployment, for the better and the worse, and benign ones."""
    key = ["id", "draw"]
    here = [one[(one["perturbation"] == at[0]) & (one["level"] == at[2])] for one in (before, after)]
    both = here[0].merge(here[1], on=key, suffixes=(" before", " after")).drop_duplicates("id")
    both = both.merge(prompts[["id", "prompt"]], on="id")
    harmful = both["label before"] == "harmful"
    gave, gives = both["verdict before"] == "complied", both["verdict after"] == "complied"
    chosen = [both[harmful & gave & ~gives][:SHOWN], both[harmful & ~gave & gives][:SHOWN], both[~harmful][:SHOWN]]
    rows = [
        {"prompt": _cell(row["prompt"])}
        | {when: f"*{row[f'verdict {when}']}*: {_cell(row[f'response {when}'])}" for when in ("before", "after")}
        for row in pd.concat(chosen).to_dict("records")
    ]
    kinds = "harmful prompts whose verdict changed, for the better and then for the worse, and benign prompts"
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) if rows else ""
    return f"Responses under the deployment, cut short, of {kinds}:\n\n{table}\n"


def _cell(text: object) -> str:
    """One line of a table's cell in which nothing is markup."""
    line = printable(" ".join(str(text).split()))
    line = line if len(line) <= WORDS else f"{line[:WORDS]}…"
    return "".join(f"\\{c}" if c in MARKUP else c for c in html.escape(line, quote=False))
