"""How long a study's prompts and responses are in tokens: by its data set where there is one, else as stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import TemplateError
from numpy.typing import NDArray

from holdfast.datasets.rows import COLUMNS
from holdfast.datasets.sampling import capped
from holdfast.datasets.tokens import prompt_ids
from holdfast.errors import UserError, first_line
from holdfast.methods import LOSSES
from holdfast.methods.losses import reads
from holdfast.models.checkpoints import check
from holdfast.models.gguf import local
from holdfast.planning.memory import Sizes
from holdfast.runtime.files import read_frame
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout

Lengths = NDArray[np.float64]
CHARACTERS = 4  # in a token of English, where no tokenizer is at hand
TEMPLATE = 8  # tokens of a chat template, where none is at hand
STATED_ROWS = 1000  # of a training split that is not made yet


@dataclass(frozen=True)
class Rows:
    """(n,) tokens of prompts, with their template, and of the responses to them."""

    prompts: Lengths
    responses: Lengths

    def __len__(self) -> int:
        return len(self.prompts)

    def __add__(self, other: Rows) -> Rows:
        prompts, responses = (self.prompts, other.prompts), (self.responses, other.responses)
        return Rows(np.concatenate(prompts), np.concatenate(responses))

    def batch(self, size: int, copies: int, answers: Lengths, draws: int) -> Sizes:
        """The longest of the batches that `draws` rows fill, each of `size` rows and `copies` sequences a row, their
        `answers` being (n,) tokens. Logits are taken from the end of the shortest prompt on."""
        longest = round(float(np.quantile(self.prompts + answers, draws / (draws + 1))))
        shortest = round(float(np.quantile(self.prompts, 1 / (size + 1))))
        return Sizes(size * copies, longest, max(1, longest - shortest))


class Texts:
    """The rows and openings of a study as composed, in tokens; `source` says by what they are counted, `made` whether
    there is a data set to count."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.tokens, self.template, counted, self.vocabulary = _counter(cfg)
        self.frame, made = _frame(cfg)
        self.made, p = self.frame is not None, cfg.plan
        stated = f"prompts of up to {p.prompt_tokens} tokens and responses of up to {p.response_tokens}, as stated"
        self.source = f"{made}, {counted}" if self.made else stated

    @cached_property
    def train(self) -> Rows:
        labels = [self._rows("train", label, None, STATED_ROWS) for label in ("harmful", "benign")]
        return labels[0] + labels[1]

    @cached_property
    def taught(self) -> Rows:
        """What probe and refinement read: of a model that is asked for its own answers these, which mostly end where
        they are cut."""
        e = self.cfg.elicit
        if e.prompts == 0:
            return self.train
        asked = self.trained("harmful", e.prompts) + self.trained("benign", e.prompts)
        return Rows(asked.prompts, np.full(len(asked), float(e.max_new_tokens)))

    @cached_property
    def loss(self) -> list[int]:
        """Tokens of the openings that losses know."""
        return self._openings(self.cfg.openings.loss)

    @cached_property
    def score(self) -> list[int]:
        """Tokens of the openings that margins are scored with."""
        return self._openings(self.cfg.openings.score)

    def evaluated(self, split: str, label: str) -> Rows:
        """Raises `UserError` where the number of prompts is neither known nor capped."""
        cap = self.cfg.evaluate.prompts.get(f"{split}/{label}")
        if cap is None and not self.made:
            raise UserError(
                f"evaluate.prompts: no cap for {split}/{label}, and the data set is not made; give one, or run "
                "holdfast data first"
            )
        return self._rows(split, label, cap, cap or 0)

    def trained(self, label: str, most: int) -> Rows:
        """Prompts of a label that refinement may learn from, so many of them."""
        rows = self._rows("refine", label, most, 0)
        return rows if len(rows) else self._rows("train", label, most, most)

    def waiting(self, split: str, most: int | None) -> Rows:
        """Benign prompts of a split that the model is asked before alignment, no more than that."""
        return self._rows(split, "benign", most, STATED_ROWS if most is None else most)

    def padded(self, loss: str, size: int, draws: int) -> Sizes:
        """A batch of a loss in TRL's trainers: see `Rows.batch`."""
        copies = self.copies(loss)
        rows, opening = self.train, max(self.loss)
        return rows.batch(size, copies, np.maximum(rows.responses, opening) if copies > 1 else rows.responses, draws)

    def packed(self, loss: str, size: int, draws: int, rows: Rows | None = None) -> Sizes:
        """The longest of the batches of ours that `draws` rows fill, by default of those that are taught: every prompt
        once, and each text after it but for its last token; logits where a prompt ends and after all of a text."""
        rows = rows or self.taught
        prompts, responses = rows.prompts, rows.responses
        fed: Lengths = {
            "response": responses - 1,
            "pair": responses - 1 + np.maximum(responses, max(self.loss)) - 1,
            "openings": np.full(len(prompts), float(sum(self.loss) - len(self.loss))),
        }[reads(LOSSES[loss])]
        each = prompts + fed
        above = float(
            np.sqrt(2 * np.log(max(1.0, draws / size)) / size) * each.std()
        )  # of the mean of so many batches
        return Sizes(
            size, round(min(float(each.mean()) + above, float(each.max()))), max(1, round(float(fed.mean()) + 1))
        )

    def copies(self, loss: str) -> int:
        """How many texts stand for one example."""
        return {"response": 1, "pair": 2, "openings": len(self.loss)}[reads(LOSSES[loss])]

    def _rows(self, split: str, label: str, cap: int | None, stated: int) -> Rows:
        if self.frame is None:
            longest = self.cfg.plan.prompt_tokens, self.cfg.plan.response_tokens
            return Rows(*(np.linspace(1, most, stated) for most in longest))
        frame = self.frame
        found = frame[(frame["split"] == split) & (frame["label"] == label)]
        found = capped(found, cap, self.cfg.evaluate.seed)
        prompts, responses = (np.array(self.tokens(found[part].tolist())) for part in ("prompt", "response"))
        if self.cfg.data.self_answered and label == "benign":  # some wait for the model's own
            responses[(found["response"] == "").to_numpy()] = self.cfg.answer.max_new_tokens - 1
        return Rows(prompts + self.template, responses + 1)

    def _openings(self, sides: Any) -> list[int]:
        return [round(found) for found in self.tokens([*sides.refusal, *sides.compliance])]


def _frame(cfg: Config) -> tuple[pd.DataFrame | None, str]:
    """The rows, and where they are from."""
    path = Layout.of(cfg).data / "prompts.parquet"
    if path.is_file():
        return read_frame(path).reindex(columns=COLUMNS, fill_value=""), str(path)
    if cfg.data.kind == "world":
        return pd.DataFrame(cfg.data.build(cfg.openings)[0]), "the embedded world"
    return None, ""


def _counter(cfg: Config) -> tuple[Callable[[Sequence[str]], list[float]], int, str, int]:
    """Tokens of texts, by the model's own tokenizer if a folder has it, and of its chat template; the words that say
    so; and its vocabulary."""
    from transformers import AutoTokenizer

    place = local(cfg.model.source) or str(Layout.of(cfg).data / "tokenizer")
    if not Path(place).is_dir():
        known = f"{CHARACTERS} characters a token"
        return lambda texts: [max(1.0, len(t) / CHARACTERS) for t in texts], TEMPLATE, known, cfg.data.vocabulary
    if cfg.model.source:
        check(place, Path(place))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers each raise their own kinds
        raise UserError(f"{place}: its tokenizer could not be loaded ({first_line(error)})") from None

    def tokens(texts: Sequence[str]) -> list[float]:
        if not texts:  # which a tokenizer does not take
            return []
        return [float(len(ids)) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return tokens, _template(tokenizer), f"by the tokenizer of {place}", len(tokenizer)


def _template(tokenizer: Any) -> int:
    """Tokens that a chat template puts around a prompt."""
    try:
        return len(prompt_ids(tokenizer, ""))
    except (UserError, TemplateError):  # it has none, or it takes no empty prompt
        return TEMPLATE
