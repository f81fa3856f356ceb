"""T3: every quantizer, what it ran on, and which prompts flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.estimates import compare, estimate, sampled
from holdfast.reporting.render import Table, dagger, percent, points
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import CLEAN, NAMES
from holdfast.statistics.rates import Metrics

QUANTITIES = {  # (metric, whether its difference to clean) -> how a row reads
    ("asr_matched", False): NAMES["asr_matched"],
    ("asr_matched", True): "Δ to clean (points)",
    ("asr", False): NAMES["asr"],
    ("asr", True): "Δ raw to clean (points)",
    ("refused_to_complied", False): "refused → complied (%) ↓",
    ("complied_to_refused", False): "complied → refused (%)",
}
CAPTION = (
    "Quantization. Flips: harmful prompts whose outcome differs from that of the same checkpoint unquantized, in % of "
    "all of them, by verdicts where responses were generated on both sides, else by margins at the threshold matched "
    "on each side; a response that is or becomes broken is neither. Their noise floor is 0 where kernels are "
    "deterministic, for decoding is greedy and batches are fixed; a jitter without direction flips both ways alike. "
    "† not significantly different from clean (paired by seed and prompt, unadjusted). Raw ASR stands where responses "
    "were generated. "
)


def quantization(metrics: Metrics, setting: Setting) -> Table:
    """T3: scheme × bits against method."""
    rows, shown = [], []
    schemes = [p[2:] for p in metrics if setting.quantizes(p.perturbation)]
    for model in dict.fromkeys(point.model for point in metrics):
        for at in dict.fromkeys([CLEAN, *schemes]):
            judged = _judged(sampled(metrics, model, setting.methods[0], at, "asr"))
            head = {"model": model, "scheme": setting.label(at[0], at[2])}
            head |= {"ran": setting.ran.get(at[0], ""), "flips by": "" if at == CLEAN else judged}
            for (metric, minus_clean), name in QUANTITIES.items():
                if at == CLEAN and (minus_clean or metric not in NAMES):
                    continue
                found = {m: _quantity(metrics, (model, m), at, metric, minus_clean, setting) for m in setting.methods}
                rows += [
                    {**head, "bits": at[2], "metric": metric, "minus_clean": minus_clean, "method": m, **numbers}
                    for m, (_, numbers) in found.items()
                ]
                if any(not np.isnan(numbers["estimate"]) for _, numbers in found.values()):
                    shown.append({**head, "quantity": name} | {m: cell for m, (cell, _) in found.items()})
    return Table(pd.DataFrame(rows), pd.DataFrame(shown), CAPTION + setting.caption(), "tab:quantization")


def _judged(asr: np.ndarray) -> str:
    return "verdicts" if len(asr) and not np.isnan(asr[:, 0]).any() else "margins"


def _quantity(
    metrics: Metrics,
    checkpoint: tuple[str, str],
    at: tuple[str, str, float],
    metric: str,
    minus_clean: bool,
    setting: Setting,
) -> tuple[str, dict[str, Any]]:
    """A cell and its numbers."""
    values = sampled(metrics, *checkpoint, at, metric)
    if not minus_clean:
        e = estimate(values, metric, setting)
        return percent(e), {"estimate": e.mean, "low": e.low, "high": e.high, "p": np.nan, "seeds": len(values)}
    # Like with like: where nothing was generated, the clean side counts by margins alone too.
    by_margins = metric == "asr_matched" and _judged(sampled(metrics, *checkpoint, at, "asr")) == "margins"
    clean = sampled(metrics, *checkpoint, CLEAN, "asr_margin" if by_margins else metric)
    d = compare(values, clean, metric, setting)
    numbers = {"estimate": d.mean, "low": d.low, "high": d.high, "p": d.p, "seeds": len(values)}
    return points(d) + dagger(d.p, setting.confidence), numbers
