"""Zeroth-order engine: counter-based noise, exact perturbation, two-point refinement, layer sensitivity.

Stands alone: it imports torch and nothing else of holdfast.
"""

from holdfast.zo.layers import weight_groups
from holdfast.zo.noise import rademacher
from holdfast.zo.refiner import StepReport, ZeroOrderRefiner
from holdfast.zo.sensitivity import sensitivity

__all__ = ["StepReport", "ZeroOrderRefiner", "rademacher", "sensitivity", "weight_groups"]
