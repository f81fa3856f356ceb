"""Refinement methods: each is a class whose fields are its options, named by `kind` in its YAML.

Importing this room registers them, and imports no torch.
"""

from holdfast.methods import controls, coordinates, first_order, line_search, low_rank, zeroth_order
from holdfast.methods.method import LOSSES, METHODS, Method

__all__ = [
    "LOSSES",
    "METHODS",
    "Method",
    "controls",
    "coordinates",
    "first_order",
    "line_search",
    "low_rank",
    "zeroth_order",
]
