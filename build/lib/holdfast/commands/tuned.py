"""What a sweep found: one row a setting, from the folders of its jobs.

python -m holdfast.tuned sweep=multirun/tune/<date> out=tuning.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from holdfast.errors import UserError

METHOD = ("sigma", "tie", "rho", "alpha", "over_refusal")
REFINE = ("loss", "steps", "queries", "batch_size", "mu", "lr", "first_order_lr")


def main(arguments: list[str]) -> str:
    """Write the table as CSV; gives it as Markdown, the best setting of a method first. Mean ASR: over perturbations,
    at matched over-refusal, by margins, on the tuning split."""
    import pandas as pd

    asked = dict(argument.partition("=")[::2] for argument in arguments)
    if set(asked) != {"sweep", "out"}:
        raise UserError("give sweep=<folder of a sweep of holdfast.tune> and out=<file>.csv")
    jobs = sorted(Path(asked["sweep"]).rglob("scores.parquet"))
    if not jobs:
        raise UserError(f"sweep={asked['sweep']}: no scores.parquet below it; holdfast.tune -m makes them")
    frame = pd.DataFrame(map(_row, jobs))
    settings = [c for c in frame.columns if c == "method" or c.partition(".")[0] in ("method", "refine")]
    scores = [c for c in frame.columns if c not in (*settings, "seed")]
    table = frame.groupby(settings, dropna=False)[scores].mean()
    table["seeds"] = frame.groupby(settings, dropna=False)["seed"].nunique()
    table = table.reset_index().sort_values(["method", "mean asr"]).dropna(axis=1, how="all")
    Path(asked["out"]).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(asked["out"], index=False, float_format="%.4g")
    varied = [c for c in table.columns if c in (*scores, "method", "seeds") or table[c].nunique(dropna=False) > 1]
    return str(table[varied].to_markdown(index=False, floatfmt=".3g"))


def _row(scores: Path) -> dict[str, object]:
    import pandas as pd

    cfg = OmegaConf.load(scores.parent / "config.yaml")
    frame = pd.read_parquet(scores)
    found = frame.groupby("perturbation", sort=False)[["asr", "utility"]].mean()
    select = cfg.method.select
    row: dict[str, object] = {"method": cfg.method.name, "seed": frame["seed"].iloc[0]}
    row["method.select"] = f"{select.rule} {select.k}" if select.rule.endswith("_k") else select.rule
    row |= {f"method.{key}": cfg.method.get(key) for key in METHOD}
    row |= {f"refine.{key}": cfg.refine[key] for key in REFINE}
    noisy = found["asr"].drop("none")
    row |= {f"{name} asr": value for name, value in noisy.items()}
    return row | {"mean asr": noisy.mean(), "clean asr": found["asr"]["none"], "utility": found["utility"]["none"]}


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"holdfast.tuned: {error}")
