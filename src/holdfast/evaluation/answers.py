"""One checkpoint's answers: margins, responses and utility of a fixed set of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.runtime.memory import Parts
from holdfast.settings.options import Config
from holdfast.settings.schema import Openings

if TYPE_CHECKING:
    from holdfast.perturbations import Arm


class Scorer:
    """Encodes the prompts once, and takes every arm through the same batches."""

    def __init__(self, tokenizer: Any, prompts: Any, cfg: Config, score: Openings) -> None:
        from holdfast.datasets.local import acknowledgement
        from holdfast.datasets.tokens import check_lengths, prompts_ids, response_ids

        self.tokenizer, self.cfg = tokenizer, cfg
        self.frame = prompts.reindex(columns=["id", "split", "label", "pair", "source", "category"])
        self.prompts = prompts_ids(tokenizer, prompts)
        self.references = [response_ids(tokenizer, r, end=True) for r in prompts["response"]]
        self.refusals = [response_ids(tokenizer, o, end=False) for o in score.refusal]
        self.compliances = [response_ids(tokenizer, o, end=False) for o in score.compliance]
        yes = cfg.openings.loss.compliance[0]
        complying = (r.rejected or acknowledgement(r.prompt, yes) for r in prompts.itertuples())
        self.begun = [response_ids(tokenizer, text, end=False) for text in complying]
        room = max(cfg.evaluate.max_new_tokens, *map(len, [*self.refusals, *self.compliances]))
        check_lengths(prompts, (len(p) + room for p in self.prompts), tokenizer.model_max_length)
        self.parts = Parts("evaluate.batch_size", cfg.evaluate.batch_size)
        answered = (prompts["split"] == "test") & (prompts["label"] == "benign") & (prompts["response"] != "")
        self.useful = prompts.index[answered].tolist()

    def batched(self, rows: list[int], work: Callable[[list[int]], None]) -> None:
        """`work` on a batch after another: rows of similar length together, in an order that depends on the prompts
        alone."""
        self.parts.each(sorted(rows, key=lambda i: len(self.prompts[i])), work)

    def outcomes(self, arm: Arm, among: list[int], answered: list[int], margins: bool) -> Any:
        """One row per prompt of `among`: utility for benign test prompts, the margin if asked for, and for those
        `answered` the response, and whether it ended by itself."""
        chosen = sorted(among)
        found = self.frame.loc[chosen].copy()
        found["margin"], found["utility"] = self.margins_of(arm, chosen) if margins else float("nan"), float("nan")
        found["response"], found["ended"] = None, None

        def answer(rows: list[int]) -> None:
            begun = [self.begun[i][: arm.prefill] for i in rows]
            answers, ended = self.generate(arm, [self.prompts[i] + b for i, b in zip(rows, begun, strict=True)])
            found.loc[rows, "response"] = self.texts([b + a for b, a in zip(begun, answers, strict=True)])
            found.loc[rows, "ended"] = ended

        def scored(rows: list[int]) -> None:
            found.loc[rows, "utility"] = self.utility(arm.model, rows)

        mine = set(chosen)
        self.batched([i for i in answered if i in mine], answer)
        self.batched([i for i in self.useful if i in mine], scored)
        return found

    def margins_of(self, arm: Arm, among: list[int] | None = None) -> Any:
        """Refusal margins of all prompts, or of those `among`, in their order."""
        import numpy as np

        from holdfast.models.likelihood import refusal_margin

        rows = list(range(len(self.prompts))) if among is None else among
        found, pad = np.empty(len(self.prompts)), self.tokenizer.pad_token_id

        def scored(some: list[int]) -> None:
            given = [self.prompts[i] + self.begun[i][: arm.prefill] for i in some]
            found[some] = refusal_margin(arm.model, given, self.refusals, self.compliances, pad).tolist()

        self.batched(rows, scored)
        return found[rows]

    def generate(self, arm: Arm, prompts: list[list[int]]) -> tuple[list[list[int]], list[bool]]:
        """New tokens, greedy unless the arm samples, and whether each answer ended; a model's own generation settings
        are never inherited."""
        from holdfast.models.likelihood import generated

        sampler = [arm.sampler] if arm.sampler else []
        return generated(arm.model, self.tokenizer, prompts, self.cfg.evaluate.max_new_tokens, sampler)

    def texts(self, responses: list[list[int]]) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]

    def utility(self, model: Any, rows: list[int]) -> list[float]:
        """exp(−NLL per token) of the reference answers: their tokens' mean probability, a geometric mean in [0, 1]."""
        from holdfast.models.likelihood import mean_nll, sequences

        told = [(self.prompts[i], self.references[i]) for i in rows]
        return (-mean_nll(model, sequences(told, self.tokenizer.pad_token_id, model.device))).exp().tolist()
