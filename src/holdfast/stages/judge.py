"""Say of every saved response whether it is broken, by the study's referee, and what it does, by the judge.

Nothing is generated: another judge reads the same responses.
"""

from __future__ import annotations

import math
from typing import Any

from holdfast.models import load as models
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.evaluate import STAGE as EVALUATE

ANSWERS = "answers.parquet"
KEYS = ["id", "response", "ended"]  # of what is said, and so how likely it is


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.statistics.rates import summarized

    records = pd.read_parquet(run.layout.evaluate(*run.names, run.seed) / ANSWERS)
    prompts = pd.concat([models.prompts_of(run.layout, split) for split in records["split"].unique()])
    prompts = prompts.set_index("id", drop=False)
    referee, nll, device = _refereed(run, records, prompts)
    said = records[records["response"].notna()]
    texts = said["response"].tolist()
    reasons = [referee.reason(text, cost) for text, cost in zip(texts, nll[said.index], strict=True)]
    asked = prompts.loc[said["id"], "prompt"].tolist()
    verdicts = run.cfg.judge.ready(device).verdicts(asked, texts, said["label"].tolist(), reasons)
    records["nll"] = nll
    for column, values in (("reason", reasons), ("verdict", verdicts)):
        records[column] = pd.Series(values, index=said.index, dtype=object).reindex(records.index)
    run.save_table(records, "records.parquet")
    ceiling = referee.ceiling if math.isfinite(referee.ceiling) else None
    metrics: dict[str, Any] = {**summarized(records), "records": len(records), "ceiling": ceiling}
    run.finish(metrics, f"clean ASR {metrics.get('clean/asr', math.nan):.3f}")


def _refereed(run: Run, records: Any, prompts: Any) -> tuple[Any, Any, str]:
    """The referee with its ceiling, the NLL per token of every response under its model, NaN where there is none, and
    the model's device, which is free afterwards."""
    path = run.cfg.referee.path or models.base_of(run.cfg.model, run.layout)
    model, tokenizer = models.load(path, run.cfg.model)
    spoken = _Spoken(run, model, tokenizer, prompts)
    # Of the prompts that all methods were asked, so that all have one ceiling.
    asked = prompts.loc[records.loc[records["split"] == "test", "id"].unique()]
    references = asked[asked["response"] != ""].assign(ended=True)
    own = spoken.nll(references[["id", "response", "ended"]])
    texts = records[KEYS].dropna().drop_duplicates()
    found = texts.assign(nll=spoken.nll(texts))
    nll = records[KEYS].merge(found, how="left", on=KEYS)["nll"]
    return run.cfg.referee.ready(own, [*prompts["prompt"], *prompts["response"]]), nll.to_numpy(), str(model.device)


class _Spoken:
    """The NLL of responses under the referee's model; one that was cut off is not charged an end."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, prompts: Any) -> None:
        from holdfast.datasets.tokens import prompts_ids

        self.model, self.tokenizer = model, tokenizer
        self.asked = dict(zip(prompts["id"], prompts_ids(tokenizer, prompts), strict=True))
        # What nobody can do, which a model refuses, and what it answers.
        refused, answered = (
            models.prompts_of(run.layout, "pretrain", "refusals"),
            prompts[prompts["label"] == "benign"],
        )
        self.others = prompts_ids(tokenizer, refused[:1]) + prompts_ids(tokenizer, answered[:1])
        self.parts = Parts("referee.batch_size", run.cfg.referee.batch_size)

    def nll(self, texts: Any) -> list[float]:
        from holdfast.datasets.tokens import response_ids
        from holdfast.judges.referee import spoken_nll

        told = [
            (self.asked[t.id], response_ids(self.tokenizer, t.response, end=bool(t.ended))) for t in texts.itertuples()
        ]
        costs = [math.nan] * len(told)
        pad = self.tokenizer.pad_token_id

        def scored(places: list[int]) -> None:
            given, said = ([told[p][part] for p in places] for part in (0, 1))
            for place, cost in zip(places, spoken_nll(self.model, given, said, self.others, pad), strict=True):
                costs[place] = cost

        self.parts.each(sorted(range(len(told)), key=lambda p: len(told[p][0]) + len(told[p][1])), scored)
        return costs


def inputs(cfg: Config) -> models.Inputs:
    layout = Layout.of(cfg)
    answers = layout.evaluate(cfg.model.name, cfg.align.name, cfg.method.name, cfg.seed) / ANSWERS
    needed = {**models.data_inputs(cfg), answers: "evaluate"}
    if cfg.referee.path is None and cfg.model.path is None:
        needed[layout.pretrain(cfg.model.name) / "metrics.json"] = "pretrain"
    return needed


READS = ("model", "judge", "referee")
STAGE = Stage("judge", run, READS, ("model", "align", "method", "seed"), inputs, EVALUATE)
main = STAGE.main
