"""What a model answers under a perturbation, and how its answers are scored."""

from holdfast.evaluation.options import EvaluateOptions

__all__ = ["EvaluateOptions"]
