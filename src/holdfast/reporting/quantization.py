"""T3: every quantizer, what it ran on, and which prompts flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.estimates import CLEAN, At, compare, estimate, sampled
from holdfast.reporting.render import Table, percent, points
from holdfast.reporting.setting import Setting
from holdfast.statistics.rates import Metrics

QUANTITIES = {  # (metric, whether its difference to clean) -> how a row reads
    ("asr", False): "ASR (%) ↓",
    ("asr", True): "Δ to clean (points)",
    ("over_refusal", False): "over-refusal (%) ↓",
    ("broken_benign", False): "broken (%) ↓",
    ("utility", False): "utility (%) ↑",
    ("refused_to_complied", False): "refused → complied (%) ↓",
    ("complied_to_refused", False): "complied → refused (%)",
}
CAPTION = (
    "Quantization: harmful prompts answered, and what it does to benign ones. Flips: harmful prompts whose verdict "
    "differs from that of the same checkpoint unquantized, in % of all of them; a response that is or becomes broken "
    "is neither. Their noise floor is 0 where kernels are deterministic, for decoding is greedy and batches are "
    "fixed; a jitter without direction flips both ways alike. * decided: the interval of the difference to clean, "
    "paired by seed and prompt, excludes 0 (unadjusted). "
)


def quantization(metrics: Metrics, setting: Setting) -> Table:
    """T3: scheme × bits against method."""
    rows, shown = [], []
    schemes = [p[2:] for p in metrics if setting.quantizes(p.perturbation)]
    for model in dict.fromkeys(point.model for point in metrics):
        for at in dict.fromkeys([CLEAN, *schemes]):
            head = {"model": model, "scheme": setting.label(at[0], at[2]), "ran": setting.ran.get(at[0], "")}
            for (metric, minus_clean), name in QUANTITIES.items():
                if at == CLEAN and (minus_clean or "_to_" in metric):
                    continue
                found = {m: _quantity(metrics, (model, m), at, metric, minus_clean, setting) for m in setting.methods}
                rows += [
                    {**head, "bits": at[2], "metric": metric, "minus_clean": minus_clean, "method": m, **numbers}
                    for m, (_, numbers) in found.items()
                ]
                if any(not np.isnan(numbers["estimate"]) for _, numbers in found.values()):
                    shown.append({**head, "quantity": name} | {m: cell for m, (cell, _) in found.items()})
    return Table(pd.DataFrame(rows), pd.DataFrame(shown), CAPTION + setting.caption(), "tab:quantization")


def _quantity(
    metrics: Metrics, checkpoint: tuple[str, str], at: At, metric: str, minus_clean: bool, setting: Setting
) -> tuple[str, dict[str, Any]]:
    """A cell and its numbers."""
    values = sampled(metrics, *checkpoint, at, metric)
    if not minus_clean:
        e = estimate(values, metric, setting)
        return percent(e), {"estimate": e.mean, "low": e.low, "high": e.high, "p": np.nan, "seeds": len(values.value)}
    d = compare(values, sampled(metrics, *checkpoint, CLEAN, metric), metric, setting)
    numbers = {"estimate": d.mean, "low": d.low, "high": d.high, "p": d.p, "seeds": len(values.value)}
    return points(d) + " *" * (d.p < 1 - setting.confidence), numbers
