"""One checkpoint's answers: margins, responses, utility and verdicts of a fixed set of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.runtime.memory import Parts
from holdfast.settings.options import Config

if TYPE_CHECKING:
    from holdfast.perturbations import Arm


class Scorer:
    """Encodes the prompts once, and takes every arm through the same batches."""

    def __init__(self, tokenizer: Any, prompts: Any, cfg: Config) -> None:
        from holdfast.datasets.local import acknowledgement
        from holdfast.datasets.tokens import check_lengths, prompts_ids, response_ids

        self.tokenizer, self.cfg = tokenizer, cfg
        self.frame = prompts[["id", "split", "label", "pair"]]
        self.asked = dict(zip(prompts["id"], prompts["prompt"], strict=True))
        self.prompts = prompts_ids(tokenizer, prompts)
        self.references = [response_ids(tokenizer, r, end=True) for r in prompts["response"]]
        self.refusals = [response_ids(tokenizer, o, end=False) for o in cfg.openings.score.refusal]
        self.compliances = [response_ids(tokenizer, o, end=False) for o in cfg.openings.score.compliance]
        yes = cfg.openings.loss.compliance[0]
        self.begun = [response_ids(tokenizer, acknowledgement(p, yes), end=False) for p in prompts["prompt"]]
        room = max(cfg.evaluate.max_new_tokens, *map(len, [*self.refusals, *self.compliances]))
        check_lengths(prompts, (len(p) + room for p in self.prompts), tokenizer.model_max_length)
        self.parts = Parts("evaluate.batch_size", cfg.evaluate.batch_size)
        self.generated = prompts.index[prompts["split"] == "test"].tolist()
        self.useful = prompts.index[(prompts["split"] == "test") & (prompts["label"] == "benign")].tolist()

    def batched(self, rows: list[int], work: Callable[[list[int]], None]) -> None:
        """`work` on a batch after another: rows of similar length together, in an order that depends on the prompts
        alone."""
        self.parts.each(sorted(rows, key=lambda i: len(self.prompts[i])), work)

    def outcomes(self, arm: Arm, generate: bool) -> Any:
        """One row per prompt: margin for all, utility for benign test prompts, response for test prompts."""
        found = self.frame.copy()
        found["margin"], found["response"], found["utility"] = float("nan"), None, float("nan")
        given = [p + b[: arm.prefill] for p, b in zip(self.prompts, self.begun, strict=True)]
        found["margin"] = self.margins_of(arm)

        def answered(rows: list[int]) -> None:
            answers = self.generate(arm, [given[i] for i in rows])
            begun = [self.begun[i][: arm.prefill] for i in rows]
            found.loc[rows, "response"] = self.texts([b + a for b, a in zip(begun, answers, strict=True)])

        def scored(rows: list[int]) -> None:
            found.loc[rows, "utility"] = self.utility(arm.model, rows)

        self.batched(self.generated if generate else [], answered)
        self.batched(self.useful, scored)
        return found

    def margins_of(self, arm: Arm) -> Any:
        """(prompts,) refusal margins."""
        import numpy as np

        from holdfast.models.likelihood import refusal_margin

        found, pad = np.empty(len(self.prompts)), self.tokenizer.pad_token_id

        def scored(rows: list[int]) -> None:
            given = [self.prompts[i] + self.begun[i][: arm.prefill] for i in rows]
            found[rows] = refusal_margin(arm.model, given, self.refusals, self.compliances, pad).tolist()

        self.batched(list(range(len(found))), scored)
        return found

    def generate(self, arm: Arm, prompts: list[list[int]]) -> list[list[int]]:
        """New tokens, greedy unless the arm samples; a model's own generation settings are never inherited."""
        from holdfast.datasets.tokens import stops
        from holdfast.models.likelihood import greedy, left_padded

        pad = self.tokenizer.pad_token_id
        ids, attention, _ = left_padded(prompts, pad, arm.model.device)
        most, ends = self.cfg.evaluate.max_new_tokens, stops(self.tokenizer)
        sampler = [arm.sampler] if arm.sampler else []
        return greedy(arm.model, ids, attention, pad=pad, stops=ends, most=most, processors=sampler).tolist()

    def texts(self, responses: list[list[int]]) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]

    def utility(self, model: Any, rows: list[int]) -> list[float]:
        """Exact match with the reference answer, or the NLL per token of the prompt where none exists."""
        from holdfast.models.likelihood import exact_match, mean_nll, sequences

        prompts, pad = [self.prompts[i] for i in rows], self.tokenizer.pad_token_id
        if self.cfg.evaluate.utility == "exact_match":
            return exact_match(model, prompts, [self.references[i] for i in rows], pad).tolist()
        return mean_nll(model, sequences([(p[:1], p[1:]) for p in prompts], pad, model.device)).tolist()

    def judged(self, records: Any, model: Any) -> Any:
        """Add the verdict: coherence is what the unperturbed `model` says of each distinct response."""
        import numpy as np

        nll = self.response_nll(records, model)
        clean = nll[(records["family"] == "clean") & np.isfinite(nll)]
        judge = self.cfg.judge.ready(clean.to_numpy(), str(model.device))
        said = records[records["response"].notna()]
        records["verdict"] = None
        records.loc[said.index, "verdict"] = judge.verdicts(
            [self.asked[key] for key in said["id"]],
            said["response"].tolist(),
            said["label"].tolist(),
            nll[said.index].tolist(),
        )
        return records

    def response_nll(self, records: Any, model: Any) -> Any:
        """NLL per token of every response under `model`; NaN where nothing was generated."""
        from holdfast.datasets.tokens import response_ids
        from holdfast.models.likelihood import mean_nll, sequences

        place = {key: index for index, key in enumerate(self.frame["id"])}
        texts = records[["id", "response"]].dropna().drop_duplicates()
        pairs = [
            (self.prompts[place[r.id]], response_ids(self.tokenizer, r.response, end=True)) for r in texts.itertuples()
        ]
        costs: list[float] = []

        def scored(some: list[tuple[list[int], list[int]]]) -> None:
            costs.extend(mean_nll(model, sequences(some, self.tokenizer.pad_token_id, model.device)).tolist())

        self.parts.each(pairs, scored)
        return records[["id", "response"]].merge(texts.assign(nll=costs), how="left", on=["id", "response"])["nll"]
