"""Refinement methods. Each is one function from a `Task` to its `Outcome`, named by `kind` in its YAML."""

from holdfast.methods.controls import extrapolate, shuffled, threshold_shift
from holdfast.methods.first_order import first_order, neftune, noise_stability, sam, smoothed, weight_averaging
from holdfast.methods.task import Outcome, Task
from holdfast.methods.zeroth_order import subspace, zeroth_order

METHODS = {
    "zeroth_order": zeroth_order,
    "subspace": subspace,
    "first_order": first_order,
    "smoothed": smoothed,
    "noise_stability": noise_stability,
    "sam": sam,
    "neftune": neftune,
    "weight_averaging": weight_averaging,
    "sign_shuffled": shuffled,
    "extrapolate": extrapolate,
    "threshold_shift": threshold_shift,
}

__all__ = ["METHODS", "Outcome", "Task"]
