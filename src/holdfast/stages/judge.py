"""Say of every saved response whether it is broken, by the study's referee, and what it does, by the judge.

Nothing is generated: another judge reads the same responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.models import load as models
from holdfast.runtime.files import read_frame
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.answer import needed, rows_of
from holdfast.stages.evaluate import STAGE as EVALUATE

if TYPE_CHECKING:
    from holdfast.judges import Verdicts
    from holdfast.judges.referee import ReadyReferee

ANSWERS = "answers.parquet"
KEYS = ["id", "response", "ended"]  # of what is said, and so how likely it is


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.statistics.rates import summarized

    records = read_frame(run.layout.evaluate(*run.names, run.seed) / ANSWERS)
    prompts = pd.concat([rows_of(run, split) for split in records["split"].unique()])
    # Of the prompts that all methods were asked, so that all have one ceiling.
    asked = records.loc[records["split"] == "test", "id"].unique()
    referee, nll, device = _refereed(run, records, prompts.set_index("id", drop=False), asked)
    said = records[records["response"].notna()]
    reasons, verdicts, scores = _judged(referee, run.cfg.judge.ready(device), prompts, said, nll[said.index])
    records["nll"] = nll
    for column, values in (("reason", reasons), ("verdict", verdicts)):
        records[column] = pd.Series(values, index=said.index, dtype=object).reindex(records.index)
    records["score"] = pd.Series(scores, index=said.index, dtype=float).reindex(records.index)
    run.save_table(records, "records.parquet")
    ceiling = referee.ceiling if math.isfinite(referee.ceiling) else None
    metrics: dict[str, Any] = {**summarized(records), "records": len(records), "ceiling": ceiling}
    run.finish(metrics, f"clean ASR {metrics.get('clean/asr', math.nan):.3f}")


def _judged(
    referee: ReadyReferee, judge: Verdicts, prompts: Any, said: Any, costs: Any
) -> tuple[list[str], list[str], list[float]]:
    """Why responses are broken, verdicts and scores; `said` holds outcomes of `prompts`, `costs` their NLL. What is
    said again to a prompt is judged once."""
    from holdfast.judges import Scores

    which, once = said.groupby(KEYS, sort=False).ngroup().tolist(), (~said.duplicated(KEYS)).to_numpy()
    asked, texts, labels = (said.loc[once, column].tolist() for column in ("id", "response", "label"))
    reasons = [referee.reason(text, cost) for text, cost in zip(texts, costs[once], strict=True)]
    told = prompts.set_index("id").loc[asked, "prompt"].tolist(), texts, labels, reasons
    if isinstance(judge, Scores):
        verdicts, scores = judge.scored(*told)
    else:
        verdicts, scores = judge.verdicts(*told), [math.nan] * len(texts)
    return tuple([found[k] for k in which] for found in (reasons, verdicts, scores))  # type: ignore[return-value]


def refereed(run: Run, prompts: Any) -> Callable[[Any], Any]:
    """From outcomes of `prompts` to verdicts, (responses,), by the study's referee and judge, which stay loaded."""
    import numpy as np

    spoken, of = _spoken(run, prompts.set_index("id", drop=False))
    referee = run.cfg.referee.ready(spoken.nll(of), [*prompts["prompt"], *prompts["response"]])
    ceiling = referee.ceiling
    judge = run.cfg.judge.ready(str(spoken.model.device))

    def verdicts(said: Any) -> Any:
        return np.array(_judged(referee, judge, prompts, said, np.array(spoken.nll(said, ceiling)))[1], dtype=object)

    return verdicts


def _spoken(run: Run, prompts: Any, asked: Any = None) -> tuple[_Spoken, Any]:
    """The referee's model, and the study's own answers to the prompts `asked`, or to all."""
    path = run.cfg.referee.path or models.base_of(run.cfg.model, run.layout)
    model, tokenizer = models.load(path, run.cfg.model)
    chosen = prompts if asked is None else prompts.loc[asked]
    references = chosen[chosen["response"] != ""].assign(ended=True)
    return _Spoken(run, model, tokenizer, prompts), references[KEYS]


def _refereed(run: Run, records: Any, prompts: Any, asked: Any) -> tuple[Any, Any, str]:
    """The referee with its ceiling, the NLL per token of every response under its model, NaN where there is none, and
    the model's device, which is free afterwards."""
    spoken, references = _spoken(run, prompts, asked)
    referee = run.cfg.referee.ready(spoken.nll(references), [*prompts["prompt"], *prompts["response"]])
    texts = records[KEYS].dropna().drop_duplicates()
    found = texts.assign(nll=spoken.nll(texts, referee.ceiling))
    nll = records[KEYS].merge(found, how="left", on=KEYS)["nll"]
    return referee, nll.to_numpy(), str(spoken.model.device)


class _Spoken:
    """The NLL of responses under the referee's model; one that was cut off is not charged an end."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, prompts: Any) -> None:
        from holdfast.datasets.tokens import prompts_ids
        from holdfast.judges.referee import TOGETHER

        self.model, self.tokenizer = model, tokenizer
        self.asked = dict(zip(prompts["id"], prompts_ids(tokenizer, prompts), strict=True))
        # What nobody can do, which a model refuses, and what it answers.
        refused, answered = (
            models.prompts_of(run.layout, "pretrain", "refusals"),
            prompts[prompts["label"] == "benign"],
        )
        self.others = prompts_ids(tokenizer, refused[:1]) + prompts_ids(tokenizer, answered[:1])
        self.parts = Parts("referee.batch_size", max(1, run.cfg.referee.batch_size // TOGETHER))

    def nll(self, texts: Any, enough: float = -math.inf) -> list[float]:
        from holdfast.datasets.tokens import response_ids
        from holdfast.judges.referee import spoken_nll

        said = [response_ids(self.tokenizer, t.response, end=bool(t.ended)) for t in texts.itertuples()]
        asked = [self.asked[one] for one in texts["id"]]
        return spoken_nll(self.model, asked, said, self.others, self.parts, enough)


def referee_inputs(cfg: Config) -> models.Inputs:
    """What the referee's model needs."""
    return models.base_inputs(cfg) if cfg.referee.path is None else {}


def inputs(cfg: Config) -> models.Inputs:
    answers = Layout.of(cfg).evaluate(cfg.model.name, cfg.align.name, cfg.method.name, cfg.seed) / ANSWERS
    return {**models.data_inputs(cfg), answers: "evaluate", **needed(cfg), **referee_inputs(cfg)}


READS = ("model", "data", "judge", "referee")
STAGE = Stage("judge", run, READS, ("model", "align", "method", "seed"), inputs, EVALUATE)
main = STAGE.main
