"""What happens to a model after alignment: one module a family, one class a kind, its fields the kind's options.

Importing this room registers them, and imports no torch.
"""

from holdfast.perturbations import (
    activation_noise,
    decoding,
    finetuning,
    libraries,
    pruning,
    quantization,
    weight_noise,
)
from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point, grid, perturbed

__all__ = [
    "PERTURBATIONS",
    "Arm",
    "Bench",
    "Level",
    "Perturbation",
    "Point",
    "activation_noise",
    "decoding",
    "finetuning",
    "grid",
    "libraries",
    "perturbed",
    "pruning",
    "quantization",
    "weight_noise",
]
