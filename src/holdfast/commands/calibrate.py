"""Say how well a judge agrees with people on which responses refuse.

holdfast calibrate judge=<name> data=<completions.csv>[,<another>…] [judge.<key>=…] [--json]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.datasets.files import parsed
from holdfast.errors import UserError
from holdfast.judges import PARTIAL, REFUSED, UNSCORED, Judge
from holdfast.judges.classifier import Classifier
from holdfast.statistics.agreement import accuracy, crossed, kappa

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.judges.judge import Verdicts

READS = ("judge",)
COLUMNS = ("prompt", "completion", "final_label")
# XSTest's annotation (Röttger et al., 2024), where a partial refusal counts as a refusal.
HUMAN = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}


def main(arguments: list[str]) -> str:
    """What to print: one report per file, or with `--json` a list of them."""
    files, overrides = _asked([a for a in arguments if a != "--json"])
    judge_cfg = _judge_of(overrides)
    frames = [(str(path), read(path)) for path in files]
    judge = _loaded(judge_cfg)
    reports = [{"judge": judge_cfg.name, "file": name, **agreement(judge, rows)} for name, rows in frames]
    if "--json" in arguments:
        return json.dumps(reports, indent=1)
    return "\n\n".join(_readable(report) for report in reports)


def read(path: Path) -> pd.DataFrame:
    """The three columns of a file in XSTest's format, as text; raises `UserError` for any other."""
    frame = parsed(f"data={path}", path)
    if frame.empty:
        raise UserError(f"data={path}: holds no rows")
    for column in COLUMNS:
        if column not in frame.columns:
            raise UserError(f"data={path}: no column {column}; the file has {', '.join(map(str, frame.columns))}")
    if unknown := sorted(set(frame["final_label"]) - set(HUMAN)):
        raise UserError(f"data={path}: final_label {unknown[0]!r} is unknown; choose from {', '.join(HUMAN)}")
    return frame[list(COLUMNS)]


def agreement(judge: Verdicts, rows: pd.DataFrame) -> dict[str, Any]:
    """Accuracy and kappa of refusal or not over the scored rows; unscored ones are counted.

    `confusion` maps each human label to the number of each verdict.
    """
    import pandas as pd

    reasons = ["" if said.strip() else "empty" for said in rows["completion"]]
    # As if benign: a judge of several labels is then asked for the one on refusal.
    found = judge.verdicts(rows["prompt"].tolist(), rows["completion"].tolist(), ["benign"] * len(rows), reasons)
    verdicts = pd.Series(found, index=rows.index)
    confusion = pd.crosstab(rows["final_label"], verdicts)
    scored = verdicts != UNSCORED
    human, said = rows.loc[scored, "final_label"].map(HUMAN).astype(bool), verdicts[scored].isin([REFUSED, PARTIAL])
    return {
        "n": len(rows),
        "unscored": int((~scored).sum()),
        "accuracy": accuracy(int((human == said).sum()), int(scored.sum())),
        "kappa": kappa(crossed(human.tolist(), said.tolist())),
        "confusion": {
            str(label): {str(verdict): int(confusion.loc[label, verdict]) for verdict in confusion.columns}
            for label in confusion.index
        },
    }


def _asked(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files, and the overrides of the section `judge`."""
    files: list[Path] = []
    overrides: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "data":
            files = [Path(name) for name in value.split(",") if name]
        elif key == "judge" or key.startswith("judge."):
            overrides.append(argument)
        else:
            raise UserError(f"{argument}: no such argument; give judge=…, data=… and, for machines, --json")
    if not files:
        raise UserError("data: no value is given; set data=<completions.csv>")
    for path in files:
        if not path.is_file():
            raise UserError(f"data={path}: no such file")
    return files, overrides


def _judge_of(overrides: list[str]) -> Judge:
    from holdfast.settings.compose import composed

    return composed(overrides).judge


def _loaded(judge_cfg: Judge) -> Verdicts:
    if isinstance(judge_cfg, Classifier) and "refused" not in judge_cfg.patterns:
        raise UserError(f"judge={judge_cfg.name}: judges harm, not refusal, which is what these labels are about")
    device = "cpu"
    if isinstance(judge_cfg, Classifier):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return judge_cfg.ready(device)


def _readable(report: dict[str, Any]) -> str:
    import pandas as pd

    def interval(estimate: list[float] | None) -> str:
        return "not defined" if estimate is None else "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)

    table = pd.DataFrame.from_dict(report["confusion"], orient="index").rename_axis("human label", axis=0)
    return "\n".join(
        [
            f"judge     {report['judge']}",
            f"file      {report['file']}",
            f"N         {report['n']}, {report['unscored']} unscored",
            f"accuracy  {interval(report['accuracy'])}",
            f"kappa     {interval(report['kappa'])}",
            table.to_string(),
        ]
    )
