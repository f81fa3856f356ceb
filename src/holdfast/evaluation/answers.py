"""One checkpoint's answers: margins, responses and utility of a fixed set of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.runtime.memory import Parts
from holdfast.settings.options import Config
from holdfast.settings.schema import Openings

if TYPE_CHECKING:
    from holdfast.models.reading import Reader, Reply, Request
    from holdfast.perturbations import Arm


class Scorer:
    """Encodes the prompts once, and takes every arm through them."""

    def __init__(self, tokenizer: Any, prompts: Any, cfg: Config, score: Openings) -> None:
        from holdfast.datasets.local import acknowledgement
        from holdfast.datasets.tokens import check_lengths, prompts_ids, response_ids, stops

        self.tokenizer, self.most, self.stops = tokenizer, cfg.evaluate.max_new_tokens, stops(tokenizer)
        self.frame = prompts.reindex(columns=["id", "split", "label", "pair", "source", "category"])
        self.prompts = prompts_ids(tokenizer, prompts)
        self.references = [response_ids(tokenizer, r, end=True) for r in prompts["response"]]
        self.refusals = [response_ids(tokenizer, o, end=False) for o in score.refusal]
        self.compliances = [response_ids(tokenizer, o, end=False) for o in score.compliance]
        yes = cfg.openings.loss.compliance[0]
        complying = (r.rejected or acknowledgement(r.prompt, yes) for r in prompts.itertuples())
        self.begun = [response_ids(tokenizer, text, end=False) for text in complying]
        room = max(self.most, *map(len, [*self.refusals, *self.compliances]))
        check_lengths(prompts, (len(p) + room for p in self.prompts), tokenizer.model_max_length)
        self.parts = Parts("evaluate.batch_size", cfg.evaluate.batch_size)
        # Threshold prompts are there for margins alone.
        useful = (prompts["split"] != "threshold") & (prompts["label"] == "benign") & (prompts["response"] != "")
        self.useful = frozenset(prompts.index[useful])

    def outcomes(self, arm: Arm, among: list[int], answered: list[int], margins: bool) -> Any:
        """One row per prompt of `among`: utility for benign prompts with a reference, the margin if asked for, and for
        those `answered` the response, and whether it ended by itself. Every prompt is read once."""
        places, said = sorted(among), frozenset(answered)
        openings = [*self.refusals, *self.compliances] if margins else []
        requests = [self._request(place, arm, openings, place in said) for place in places]
        replies = self._reader(arm).replies(requests)
        found = self.frame.loc[places].copy()
        found["margin"] = [self._margin(reply) for reply in replies] if margins else float("nan")
        scored = [reply.branches[len(openings) :] for reply in replies]
        # exp(−NLL per token): the tokens' mean probability, a geometric mean in [0, 1]
        found["utility"] = [one[0].mean().exp().item() if one else float("nan") for one in scored]
        begun = [self.begun[place][: arm.prefill] for place in places]
        texts = self.texts([b + reply.tokens for b, reply in zip(begun, replies, strict=True)])
        found["response"] = [text if place in said else None for place, text in zip(places, texts, strict=True)]
        found["ended"] = [reply.ended if place in said else None for place, reply in zip(places, replies, strict=True)]
        return found

    def _request(self, place: int, arm: Arm, openings: list[list[int]], answered: bool) -> Request:
        """An answer that has already begun says nothing about the reference's."""
        from holdfast.models.reading import Request

        branches = [*openings, self.references[place]] if place in self.useful and not arm.prefill else openings
        return Request(self.prompts[place] + self.begun[place][: arm.prefill], branches, answered)

    def _reader(self, arm: Arm) -> Reader:
        from holdfast.models.reading import Reader

        return Reader(arm.model, self.parts, most=self.most, stops=self.stops, sampler=arm.sampler, shared=arm.shared)

    def _margin(self, reply: Reply) -> float:
        from holdfast.models.likelihood import margin

        openings = len(self.refusals) + len(self.compliances)
        return margin(reply.branches[:openings], len(self.refusals)).item()

    def texts(self, responses: list[list[int]]) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]
