"""Judges: each is a class whose fields are its options, named by `kind` in its YAML.

Importing this room registers them, and imports no torch.
"""

from holdfast.judges import classifier, referee, rules
from holdfast.judges.judge import BROKEN, COMPLIED, JUDGES, PARTIAL, REFUSED, SAFE, UNSCORED, Judge, Scores, Verdicts

__all__ = [
    "BROKEN",
    "COMPLIED",
    "JUDGES",
    "PARTIAL",
    "REFUSED",
    "SAFE",
    "UNSCORED",
    "Judge",
    "Scores",
    "Verdicts",
    "classifier",
    "referee",
    "rules",
]
