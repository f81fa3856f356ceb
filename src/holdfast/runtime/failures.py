"""Which errors one line can tell, and the line."""

from __future__ import annotations

import errno
import sys

from omegaconf.errors import OmegaConfBaseException

from holdfast.errors import UserError, first_line
from holdfast.runtime.memory import out_of_memory
from holdfast.settings.compose import explained

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # full, or not ours to write


def is_expected(error: Exception) -> bool:
    """Whether one line can say what is wrong: with the input, or with what the machine has left."""
    unwritable = isinstance(error, OSError) and error.errno in UNWRITABLE
    zo = sys.modules.get("holdfast.zo")  # whose import is torch's: what has not run raised nothing
    weights = zo is not None and isinstance(error, zo.PerturbationError)
    return unwritable or weights or out_of_memory(error) or isinstance(error, (OmegaConfBaseException, UserError))


def said(error: Exception) -> str:
    """One line for an error; with its kind for one that is not expected."""
    first = first_line(error)
    if out_of_memory(error):
        return f"memory ran out ({first}); lower the stage's batch_size, or take a smaller model or dtype"
    if isinstance(error, OmegaConfBaseException):
        return explained(error)
    return first if is_expected(error) else f"{type(error).__name__}: {first}"
