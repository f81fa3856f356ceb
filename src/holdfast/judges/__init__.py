"""Judges: each is a class whose fields are its options, named by `kind` in its YAML.

Importing this room registers them, and imports no torch.
"""

from holdfast.judges import classifier, rules
from holdfast.judges.judge import COMPLIED, INCOHERENT, JUDGES, PARTIAL, REFUSED, SAFE, UNSCORED, Judge, Verdicts

__all__ = [
    "COMPLIED",
    "INCOHERENT",
    "JUDGES",
    "PARTIAL",
    "REFUSED",
    "SAFE",
    "UNSCORED",
    "Judge",
    "Verdicts",
    "classifier",
    "rules",
]
