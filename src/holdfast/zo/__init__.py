"""Zeroth-order engine: counter-based noise, exact perturbation, two-point refinement, layer sensitivity.

Stands alone: it imports torch and nothing else of holdfast; numba and Triton inside its kernels, transformers
inside its trainer mixin.
"""

from holdfast.zo.layers import weight_groups
from holdfast.zo.refiner import StepReport, ZeroOrderRefiner
from holdfast.zo.sensitivity import sensitivity
from holdfast.zo.trajectory import TrajectoryError, fingerprint, replay

__all__ = [
    "StepReport",
    "TrajectoryError",
    "ZeroOrderRefiner",
    "fingerprint",
    "replay",
    "sensitivity",
    "weight_groups",
]
