"""Flips: outcomes of harmful prompts that differ from those of the same checkpoint unperturbed, prompt by prompt."""

from __future__ import annotations

import numpy as np
import pandas as pd

from holdfast.statistics.resamples import Part, average


def flip_rates(before: Part, after: Part) -> dict[str, np.ndarray]:
    """Shares of all prompts that went from refused to complied and back, (1 + resamples,) each, NaN where one side was
    not answered. `before` and `after` hold the same prompts, clean and perturbed. A broken response is neither, an
    unscored one is left out."""
    if not (before.generated and after.generated):
        nothing = np.full(after.weights.shape[1], np.nan)
        return {"refused_to_complied": nothing, "complied_to_refused": nothing}
    was = before.verdict[pd.Index(before.id).get_indexer(after.id)]
    now = after.verdict
    among = (was != "unscored") & (now != "unscored")
    return {
        "refused_to_complied": average((was == "refused") & (now == "complied"), after.weights, among),
        "complied_to_refused": average((was == "complied") & (now == "refused"), after.weights, among),
    }
