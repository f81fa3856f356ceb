"""A study's measurements in compact form, from its runs' own folders or from files that hold them.

Margins and rises are rounded to half precision, ids to numbers, responses left out. Tables see nothing else, so that
they are the same from either place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError
from holdfast.runtime.files import read_frame, replacing
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout, runs, shown
from holdfast.settings.schema import Study

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("records", "sensitivity", "online", "outcomes", "costs", "timing", "tasks")
HEAD = ("model", "recipe", "method")
WORDS = (*HEAD, "perturbation", "family", "ran", "id", "split", "label", "pair", "source", "category", "verdict")
RECORDS = (*WORDS, "seed", "level", "draw", "margin", "utility")
SAID = ("response", "ended", "verdict", "reason")
RESPONSES = (*HEAD, "seed", "id", "label", "source", "category", "perturbation", "family", "level", "draw", *SAID)
SAME = ["id", "perturbation", "level", "draw", "response"]  # what tells whether two judges read the same
DISTANCES = ("moved", "moved_by_alignment", "rounding")
COSTS = ("steps", "forwards", "sequences", "stability", "rise", *DISTANCES)
TIMES = ("seconds", "peak_rss_mib", "method_seconds", "method_peak_mib")


class Evidence:
    """The parts of a study as frames; `source` is a folder of `<part>.parquet`, None the runs' own folders; `others`:
    judges whose verdicts on the same responses the records hold too, as `verdict:<judge>`, and `score:<judge>`."""

    def __init__(self, layout: Layout, study: Study, source: str | None = None, others: Sequence[str] = ()) -> None:
        self.layout, self.study, self.source, self.others = layout, study, source, others

    @classmethod
    def of(cls, layout: Layout, cfg: Config) -> Evidence:
        # The estimates are of the study's own judge: another one has nothing of them computed anew.
        others = [] if cfg.tables.make == ["estimates"] else cfg.tables.other_judges
        return cls(layout, cfg.study, cfg.tables.source, others)

    def files(self, part: str) -> dict[Path, str]:
        """The files that a part is read from, and the stage that makes each. Of costs those of refinement are left
        out: a method's records could not be there without them, and the reference has none."""
        if self.source is not None:
            return {Path(self.source, f"{part}.parquet"): "tables"}
        if part == "responses":
            said = [self.layout.judged(*run) / "records.parquet" for run in shown(self.study)]
            return {self.layout.data / "prompts.parquet": "data"} | dict.fromkeys(said, "judge")
        if part == "records":
            judged = [self.layout, *map(self.layout.by, self.others)]
            return {path: "judge" for one in judged for path in one.records(self.study)}
        if part == "tasks":
            return {self.layout.evaluate(*run) / "metrics.json": "evaluate" for run in runs(self.study)}
        probes = self.layout.probes(self.study)
        if part not in ("costs", "timing"):
            return dict.fromkeys([folder / f"{part}.parquet" for folder in probes], "probe")
        name = "metrics.json" if part == "costs" else "timing.json"
        aligns = [self.layout.align(m, a, s) for m, a, _, s in runs(self.study)]
        return {folder / name: "align" for folder in aligns} | {folder / name: "probe" for folder in probes}

    @cache  # noqa: B019 - lives as long as its stage
    def frame(self, part: str) -> pd.DataFrame:
        if self.source is not None:
            found = read_frame(Path(self.source, f"{part}.parquet"))
            found = self._chosen(found) if part == "records" else found
        else:
            found = READERS[part](self)
        return found.assign(model=found["model"].astype(str) + "/" + found["recipe"].astype(str)).drop(
            columns="recipe"
        )

    def _chosen(self, records: pd.DataFrame) -> pd.DataFrame:
        """Records without the judges that are not asked for. Raises `UserError` for one that they do not hold."""
        held = {str(name).partition(":")[2] for name in records} - {""}
        if missing := [judge for judge in self.others if judge not in held]:
            raise UserError(f"tables.other_judges={missing[0]}: {self.source} has no verdicts of that judge")
        return records.drop(columns=[c for c in records if str(c).partition(":")[2] in held.difference(self.others)])

    def write(self, folder: Path) -> None:
        """Every part as `<part>.parquet`, packed as small as it goes."""
        for part in PARTS:
            found = READERS[part](self)
            halves = [name for name, kind in found.dtypes.items() if kind == "float16"]
            with replacing(folder / f"{part}.parquet") as path:
                found.to_parquet(
                    path,
                    index=False,
                    compression="zstd",
                    compression_level=19,
                    use_dictionary=[name for name in found.columns if name not in halves],
                    column_encoding=dict.fromkeys(halves, "BYTE_STREAM_SPLIT"),
                )


def outcomes(evidence: Evidence) -> pd.DataFrame:
    """The records of every evaluation, as the study's judge wrote them; words as categories."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = []
    for path in evidence.layout.records(evidence.study):
        columns = [*RECORDS, *["score"] * ("score" in pq.read_schema(path).names)]
        read.append(pq.read_table(path, columns=columns, read_dictionary=list(WORDS)))
    words = pa.dictionary(pa.int32(), pa.string())
    for place, table in enumerate(read):
        for name in WORDS:  # a column of nulls alone has no words of its own
            if not table.schema.field(name).type.equals(words):
                at = table.schema.get_field_index(name)
                read[place] = table = table.set_column(at, name, table[name].cast(pa.string()).dictionary_encode())
    tables = [table.replace_schema_metadata() for table in read]
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries().to_pandas()


def _records(evidence: Evidence) -> pd.DataFrame:
    """A prompt without a pair becomes a pair of its own. Scores have a column only where the judge gives any."""
    import pandas as pd

    frame = outcomes(evidence)
    ids, pair = frame["id"].cat.codes, frame["pair"].cat.codes.astype(int)
    alone = frame["pair"].isna() | (frame["pair"] == "")
    pairs = len(frame["pair"].cat.categories)
    frame["id"], frame["pair"] = ids.astype("int32"), pair.mask(alone, pairs + ids).astype("int32")
    sizes = {"seed": "int32", "draw": "int16", "margin": "float16", "utility": "float16", "level": "float64"}
    told = {name: values for judge in evidence.others for name, values in _told(evidence, judge).items()}
    return pd.DataFrame(frame.astype(sizes)[list(RECORDS)].assign(**_scored("score", frame.get("score")), **told))


def _told(evidence: Evidence, judge: str) -> dict[str, pd.Series[Any]]:
    """What another judge says of the same responses, in the order of the records. Raises `UserError` where they are
    others."""
    import pandas as pd

    layout, found = evidence.layout, []
    for own, path in zip(layout.records(evidence.study), layout.by(judge).records(evidence.study), strict=True):
        ours, theirs = (read_frame(one, columns=SAME) for one in (own, path))
        if not ours.equals(theirs):
            raise UserError(f"{path}: is not of the answers that {own} is of; `holdfast judge judge={judge}` makes it")
        found.append(read_frame(path, columns=["verdict", "score"]))
    told = pd.concat(found, ignore_index=True)
    return {f"verdict:{judge}": told["verdict"].astype("category"), **_scored(f"score:{judge}", told["score"])}


def _scored(name: str, scores: pd.Series[Any] | None) -> dict[str, pd.Series[Any]]:
    return {} if scores is None or scores.isna().all() else {name: scores.astype("float16")}


def _probed(part: str) -> Callable[[Evidence], pd.DataFrame]:
    def read(evidence: Evidence) -> pd.DataFrame:
        import pandas as pd

        found = pd.concat(map(read_frame, evidence.files(part)), ignore_index=True)
        if part == "sensitivity":
            found = _rises(found)
        words = [name for name, kind in found.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
        return found.astype(dict.fromkeys(words, "category"))

    return read


def _rises(losses: pd.DataFrame) -> pd.DataFrame:
    """Per example the rise ½(L₊ + L₋) − L, of one side where there is one, and the tilt ½(L₊ − L₋)."""
    up, down, clean = losses["up"], losses["down"], losses["clean"]
    rise = ((up + down) / 2).where(down.notna(), up) - clean
    kept = losses.drop(columns=["clean", "up", "down"])
    kept = kept.assign(rise=rise.astype("float16"), tilt=((up - down) / 2).astype("float16"))
    return kept.astype({"seed": "int32", "parameters": "int64", "draw": "int16", "example": "int16"})


def _costs(evidence: Evidence) -> pd.DataFrame:
    """What alignment, the probe and each method spent, in forward-equivalents of a batch and of one sequence; the
    layers that a method refined, and how stable their choice was; how much its loss rose (see `rise`); and how far
    the weights moved."""
    from holdfast.reporting.cautions import rise

    def row(found: dict[str, Any]) -> dict[str, Any]:
        if "answers" in found:  # an evaluation
            return {"layers": "", **{name: found.get(name) for name in DISTANCES}}
        made = {"steps": len(found["loss"]), "layers": " ".join(found.get("layers", [])), "rise": rise(found["loss"])}
        return {key: found.get(key) for key in COSTS} | made

    def spent(stage: str, found: dict[str, Any]) -> list[dict[str, Any]]:
        if stage != "probe":
            return [{"stage": stage, **row(found)}]
        return [{"stage": source, "layers": "", "sequences": count} for source, count in found["sequences"].items()]

    return _stages(evidence, "metrics.json", ("layers", *COSTS), spent).astype(dict.fromkeys(COSTS, float))


def _timing(evidence: Evidence) -> pd.DataFrame:
    def spent(stage: str, found: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"stage": stage, **{name: found.get(name) for name in TIMES}}]

    return _stages(evidence, "timing.json", TIMES, spent).astype(dict.fromkeys(TIMES, float))


def _stages(
    evidence: Evidence,
    name: str,
    columns: tuple[str, ...],
    spent: Callable[[str, dict[str, Any]], list[dict[str, Any]]],
) -> pd.DataFrame:
    """The rows that `spent` makes of each stage's `name`; a stage that a run went without has none."""
    import pandas as pd

    layout, rows, seen = evidence.layout, [], set()
    for model, recipe, method, seed in runs(evidence.study):
        head = {"model": model, "recipe": recipe, "seed": seed}
        for stage, folder, of in (
            ("align", layout.align(model, recipe, seed), ""),
            ("probe", layout.probe(model, recipe, seed), ""),
            ("refine", layout.refine(model, recipe, method, seed), method),
            ("evaluate", layout.evaluate(model, recipe, method, seed), method),
        ):
            if folder not in seen and (folder / name).exists():
                found = json.loads((folder / name).read_text(encoding="utf-8"))
                rows += [{**head, "method": of, **row} for row in spent(stage, found)]
            seen.add(folder)
    return pd.DataFrame(rows, columns=[*HEAD, "seed", "stage", *columns])


def _tasks(evidence: Evidence) -> pd.DataFrame:
    """What lm-eval's tasks gave, their own standard errors aside."""
    import pandas as pd

    rows = []
    for run in runs(evidence.study):
        path = evidence.layout.evaluate(*run) / "metrics.json"
        found = json.loads(path.read_text(encoding="utf-8")).get("tasks", {})
        rows += [(*run, task, value) for task, value in found.items() if "_stderr" not in task]
    kinds = {**dict.fromkeys(HEAD, str), "seed": int, "task": str, "value": float}
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def _responses(evidence: Evidence) -> pd.DataFrame:
    """What was said to test prompts at one seed, with the prompts."""
    import pandas as pd

    prompts, *said = map(read_frame, evidence.files("responses"))
    found = pd.concat([one[(one["split"] == "test") & one["response"].notna()] for one in said], ignore_index=True)
    return found[list(RESPONSES)].merge(prompts[["id", "prompt"]].drop_duplicates("id"), on="id", how="left")


READERS: dict[str, Callable[[Evidence], Any]] = {
    "records": _records,
    "responses": _responses,
    "sensitivity": _probed("sensitivity"),
    "online": _probed("online"),
    "outcomes": _probed("outcomes"),
    "costs": _costs,
    "timing": _timing,
    "tasks": _tasks,
}
