"""Layer sensitivity from a refinement's own evaluations: the rises of random subsets, regressed on their masks."""

from __future__ import annotations

import torch
from torch import Tensor


def online_sensitivity(rises: Tensor, masks: Tensor) -> Tensor:
    """How much each group adds to the rise ½(L₊ + L₋) − L₀ when it is perturbed: float64, shape (L,).

    rises: (m,), one a query; masks: (m, L), bool, the groups that were in. Least squares with an intercept. The
    second-order terms between layers have mean zero over the noise, so they average out as m grows; a group that
    was always in, or never, is not identified and gets the solution of least norm. Bootstrap intervals by
    resampling the rows. Raises `ValueError` unless m > L.
    """
    m, groups = masks.shape
    if m <= groups:
        raise ValueError(f"{m} evaluations cannot tell {groups} groups apart; more than {groups} are needed")
    design = torch.cat([masks.double(), torch.ones(m, 1, dtype=torch.float64, device=masks.device)], dim=1).cpu()
    solved = torch.linalg.lstsq(design, rises.double().cpu()[:, None], driver="gelsd").solution  # of any rank
    return solved[:groups, 0]
