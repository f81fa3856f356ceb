"""Refinement methods. Each is one function from a `Task` to its `Outcome`, named by `kind` in its YAML."""

from holdfast.methods.first_order import first_order
from holdfast.methods.task import Outcome, Task
from holdfast.methods.zeroth_order import zeroth_order

METHODS = {"zeroth_order": zeroth_order, "first_order": first_order}

__all__ = ["METHODS", "Outcome", "Task"]
