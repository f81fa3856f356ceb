"""Draw docs/hybrid.svg: the stages from data to tables, and what the method is made of. `python docs/draw.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

STAGES = [
    ("data", "prompts of\nevery split"),
    ("answer", "own answers to\nbenign prompts"),
    ("align", "SFT or DPO,\nfirst order"),
    ("elicit", "own refusals\nand answers"),
    ("probe", "which layers\ngive way"),
    ("refine", "few steps there,\nunder noise"),
    ("evaluate", "noise, quantizers,\npruning"),
    ("judge", "refused, complied\nor broken"),
    ("tables", "intervals,\nclaims, figures"),
]
PARTS = [(0, 2, "1  align by first order"), (3, 5, "2  refine what gives way"), (6, 8, "3  show whether it holds")]
WIDE, HIGH, STEP = 1.5, 1.0, 1.75


def box(axis, left: float, name: str, does: str) -> None:
    shape = FancyBboxPatch((left, 0), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.12", fc="white", ec="black")
    axis.add_patch(shape)
    axis.text(left + WIDE / 2, HIGH * 0.78, name, ha="center", va="center", fontsize=11, weight="bold")
    axis.text(left + WIDE / 2, HIGH * 0.33, does, ha="center", va="center", fontsize=8, linespacing=1.3)


def arrow(axis, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": "black", "linewidth": 1}
    axis.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0, **style))


def drawn() -> Figure:
    figure = Figure(figsize=(11.5, 2.3))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.2, 8 * STEP + WIDE + 0.2), ylim=(-0.75, 1.75), aspect="equal")
    axis.axis("off")
    for place, (name, does) in enumerate(STAGES):
        box(axis, place * STEP, name, does)
        if place:
            arrow(axis, (place * STEP - STEP + WIDE, HIGH / 2), (place * STEP, HIGH / 2))
    for first, last, words in PARTS:
        left, right = first * STEP, last * STEP + WIDE
        axis.plot([left, left, right, right], [1.15, 1.25, 1.25, 1.15], color="black", linewidth=0.8)
        axis.text((left + right) / 2, 1.45, words, ha="center", va="center", fontsize=11)
    # The reference is evaluated as alignment left it.
    middle = [place * STEP + WIDE / 2 for place in (2, 6)]
    axis.plot([middle[0], middle[0], middle[1]], [0, -0.35, -0.35], color="black", linewidth=1)
    arrow(axis, (middle[1], -0.35), (middle[1], 0))
    axis.text(sum(middle) / 2, -0.52, "the aligned model, for comparison", ha="center", va="center", fontsize=8)
    return figure


def main() -> None:
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "holdfast"})
    drawn().savefig(Path(__file__).with_name("hybrid.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
