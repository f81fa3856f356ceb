"""Zeroth-order engine: counter-based noise, exact perturbation, two-point refinement, layer sensitivity.

Stands alone: it imports torch and nothing else of holdfast; numba and Triton inside its kernels, transformers
inside its trainer mixin.
"""

from holdfast.zo.control import sign_shuffled
from holdfast.zo.digest import fingerprint
from holdfast.zo.directions import alignment_directions
from holdfast.zo.layers import weight_groups
from holdfast.zo.online import online_sensitivity
from holdfast.zo.perturb import PerturbationError
from holdfast.zo.refiner import StepReport, ZeroOrderRefiner
from holdfast.zo.sensitivity import Sides, sensitivity
from holdfast.zo.subspace import SubspaceRefiner
from holdfast.zo.trajectory import TrajectoryError, replay

__all__ = [
    "PerturbationError",
    "Sides",
    "StepReport",
    "SubspaceRefiner",
    "TrajectoryError",
    "ZeroOrderRefiner",
    "alignment_directions",
    "fingerprint",
    "online_sensitivity",
    "replay",
    "sensitivity",
    "sign_shuffled",
    "weight_groups",
]
