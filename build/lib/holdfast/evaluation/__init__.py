"""What a model answers under a perturbation, and what its answers are worth."""

from holdfast.evaluation.options import EvaluateOptions

__all__ = ["EvaluateOptions"]
