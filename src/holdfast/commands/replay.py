"""Make the refined weights again, bitwise, from the base weights and a trajectory.

holdfast replay base=<name, Hub id or folder> trajectory=<file> out=<folder>

A log of refinement within the alignment subspace also needs origin=<Hub id or folder>, the model before alignment.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from holdfast.errors import UserError

KEYS = ("base", "trajectory", "out")
OPTIONAL = ("origin",)


def main(arguments: list[str]) -> str:
    """Write the refined model and its tokenizer; gives what to tell the user."""
    asked = _parsed(arguments)
    trajectory, out = Path(asked["trajectory"]), Path(asked["out"])
    if not trajectory.is_file():
        raise UserError(f"trajectory={trajectory}: no such file")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty; give a new folder")

    from holdfast.models import load as models
    from holdfast.models.package import dressed
    from holdfast.runtime.run import quiet
    from holdfast.settings.compose import composed
    from holdfast.zo import Trajectory, TrajectoryError, replay

    quiet()
    try:
        dtypes = {t["dtype"] for t in Trajectory.read(trajectory).header["tensors"].values()}
        base = composed([f"model={asked['base']}"]).model  # a name of conf/model, a folder or a Hub id
        if base.source is None:
            raise UserError(f"base={asked['base']}: is made in a run; give the folder of its weights")
        kind = base.model_copy(update={"dtype": dtypes.pop()})
        model, tokenizer = models.load(base.source, kind)
        origin = models.load(asked["origin"], kind)[0] if "origin" in asked else None
        steps = replay(model, trajectory, origin)
    except TrajectoryError as error:
        raise UserError(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as made:  # where there is room for weights
        models.save(model, tokenizer, Path(made))
        dressed(Path(made) / "model", models.fetched(base.source, base.revision), out)
    return f"replay   {steps} steps, the hash of the refined weights agrees; wrote {out}"


def _parsed(arguments: list[str]) -> dict[str, str]:
    asked = dict(argument.partition("=")[::2] for argument in arguments)
    for key in asked:
        if key not in KEYS + OPTIONAL:
            raise UserError(f"{key}: no such key; choose one of {', '.join(KEYS + OPTIONAL)}")
    for key in KEYS:
        if not asked.get(key):
            raise UserError(f"{key}: no value is given; set {key}=…")
    return asked
