"""What every model said, side by side, as one page of HTML that fetches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast.datasets.sampling import capped
from holdfast.reporting.setting import Setting

TEMPLATE = Path(__file__).with_suffix(".html")
LEVEL = ["perturbation", "family", "level"]
# Of a response, in the order in which the page reads them: column -> what the page calls its values.
CODED = {"model": "groups", "id": "prompts", "point": "points", "method": "methods", "response": "texts"}
CODED |= {"ended": "ends", "verdict": "verdicts", "reason": "reasons"}


def page(responses: pd.DataFrame, setting: Setting, study: str, most: int) -> str:
    """`responses`: of one seed, a row each, with `prompt`. Where they are more than `most`, prompts are left out."""
    kept = _capped(responses, most)
    asked, left = kept["id"].nunique(), responses["id"].nunique()
    told = f"Seed {kept['seed'].iat[0]}, {asked} prompts" + f" of {left}; the others are left out" * (asked < left)
    kept = kept.assign(point=points(kept, setting), ended=kept["ended"].astype(int))
    prompts = kept.drop_duplicates("id")
    (labels, labelled), (sources, sourced) = _coded(prompts["label"]), _coded(prompts["source"])
    codes, data = [], {"study": study, "told": f"{told}.", "labels": labels, "sources": sources}
    for column, name in CODED.items():
        data[name], code = _coded(kept[column])
        codes.append(code)
    data["rows"] = list(map(list, zip(*codes, strict=True)))
    data["prompts"] = list(map(list, zip(prompts["prompt"], labelled, sourced, strict=True)))
    return TEMPLATE.read_text(encoding="utf-8").replace("@data@", _inert(data))


def _capped(responses: pd.DataFrame, most: int) -> pd.DataFrame:
    """Whole prompts, of each label as many, over all sources and categories."""
    prompts = responses.drop_duplicates("id")
    share = max(1, int(most * len(prompts) / len(responses) / prompts["label"].nunique()))
    chosen = [capped(part, share, seed=0)["id"] for _, part in prompts.groupby("label", sort=False)]
    return responses[responses["id"].isin(pd.concat(chosen))]


def points(responses: pd.DataFrame, setting: Setting) -> list[str]:
    """How the point of each response reads; with its draw where a level has several."""
    names: dict[Any, str] = {}
    draws = responses.groupby(LEVEL)["draw"].nunique()
    for *level, draw in responses[[*LEVEL, "draw"]].drop_duplicates().itertuples(index=False, name=None):
        name = "clean" if level[0] == "none" else setting.named(*level)
        names[*level, draw] = f"{name}, draw {draw}" if draws[tuple(level)] > 1 else name
    return [names[at] for at in responses[[*LEVEL, "draw"]].itertuples(index=False, name=None)]


def _coded(column: pd.Series[Any]) -> tuple[list[Any], list[int]]:
    """The values of a column, and which of them each row has."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return values.tolist(), codes.tolist()


def _inert(data: dict[str, Any]) -> str:
    """JSON that cannot end the element that holds it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
