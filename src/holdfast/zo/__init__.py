"""Zeroth-order engine: counter-based noise, exact perturbation, two-point refinement, layer sensitivity.

Stands alone: it imports torch and nothing else of holdfast; numba and Triton inside its kernels, transformers
inside its trainer mixin.
"""

from holdfast.zo.control import sign_shuffled
from holdfast.zo.deployment import Deployed, Deployment
from holdfast.zo.digest import fingerprint
from holdfast.zo.directions import Factors, Span, alignment_directions, singular_directions
from holdfast.zo.layers import decoder_layers, vector_groups, weight_groups
from holdfast.zo.low_rank import LowRank
from holdfast.zo.perturb import Draws, Masters, Moves, PerturbationError
from holdfast.zo.refiner import Estimate, ZeroOrderRefiner
from holdfast.zo.replaying import replay
from holdfast.zo.sensitivity import Race, Sides, online_sensitivity, sensitivity
from holdfast.zo.step_size import Cosine, Curvature
from holdfast.zo.trainer import ZOArguments, ZOMixin
from holdfast.zo.trajectory import Trajectory, TrajectoryError, read_directions, write_directions

__all__ = [
    "Cosine",
    "Curvature",
    "Deployed",
    "Deployment",
    "Draws",
    "Estimate",
    "Factors",
    "LowRank",
    "Masters",
    "Moves",
    "PerturbationError",
    "Race",
    "Sides",
    "Span",
    "Trajectory",
    "TrajectoryError",
    "ZOArguments",
    "ZOMixin",
    "ZeroOrderRefiner",
    "alignment_directions",
    "decoder_layers",
    "fingerprint",
    "online_sensitivity",
    "read_directions",
    "replay",
    "sensitivity",
    "sign_shuffled",
    "singular_directions",
    "vector_groups",
    "weight_groups",
    "write_directions",
]
