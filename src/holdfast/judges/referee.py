"""Whether a response is broken, told in one way for all methods: by what it says, and by its NLL under one model."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast.judges.reading import BLOCK, INLINE, SCANNED, SENTENCE_END, answer
from holdfast.settings.options import AtLeastZero, Count, Options, Share, section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from holdfast.runtime.memory import Parts

EMPTY, REPEATS, NO_WORDS, UNLIKELY = "empty", "repeats", "no words", "unlikely"
LISTS = ("en", "de", "es", "fr", "it", "pt", "nl", "eu", "lv")  # in Latin letters, of the package; English first
WORD_LENGTH = 6  # characters, about
NUMBER = re.compile(r"(?<!\S)\d+[.):](?=\s)")  # of an item: items that differ by it alone are a loop too
SPOKEN = r"[\u3040-\u9fff]|[^\W_\u3040-\u9fff]+"  # Chinese and Japanese have no spaces
ITEM = re.compile(SPOKEN)
MARKED = re.compile(rf"{SPOKEN}|([^\w\s])\1*")  # a ruling line is one item
LETTERS = "a-zß-öø-ɏ"
WORD = re.compile(rf"[{LETTERS}]+(?:['-][{LETTERS}]+)*")
PART = re.compile(rf"[{LETTERS}]{{2,}}")
EDGES = "\"'“”‘’«»„()[]{}*_~#`|<>.,;:!?…—–-"
REPLACED = "\ufffd"  # stands for bytes that are no character


@section("referee")
class Referee(Options):
    """Who tells a broken response from a whole one."""

    path: str | None = Field(
        description="the model under which the NLL is taken: folder, GGUF file or Hub id; null: the study's base model"
    )
    batch_size: Count = Field(description="responses of a batch")
    quantile: Share = Field(description="of the NLL of the study's own answers; with the slack, the ceiling")
    slack: AtLeastZero = Field(description="nats per token")
    repeated_words: Count = Field(description="a phrase of so many words at most")
    max_repeats: Count = Field(description="may stand so often again in a row; what goes on is a loop")
    phrase_words: Count = Field(description="a phrase of so many words that stands more often, anywhere, recurs")
    looped_words: Count = Field(description="a loop is of so many words at least, all its turns together")
    looped: Share = Field(description="of the words: broken if more of them are in loops, or in phrases that recur")
    known_words: Share = Field(description="of the words: broken if fewer of them are in a list")
    counted_words: Count = Field(description="a response of fewer words is not judged by the lists")

    def ready(self, reference_nll: Sequence[float], vocabulary: Iterable[str] = ()) -> ReadyReferee:
        """`reference_nll` are `spoken_nll` of the study's own answers, refusals and compliances alike; without any
        there is no ceiling. `vocabulary` are words that the study's data use, or texts of such."""
        import numpy as np

        ceiling = float(np.quantile(reference_nll, self.quantile) + self.slack) if len(reference_nll) else float("inf")
        return ReadyReferee(self, ceiling, vocabulary)


class ReadyReferee:
    """Reads the answer of a response, without its reasoning. `ceiling`: nats per token."""

    def __init__(self, referee: Referee, ceiling: float, vocabulary: Iterable[str]) -> None:
        self.referee, self.ceiling = referee, ceiling
        self.own = frozenset(part for text in vocabulary for part in PART.findall(text.lower()))
        self.read: dict[str, tuple[str, bool]] = {}  # under noise too, many answers say the same

    def reason(self, response: str, nll: float) -> str:
        """Why the response is broken; "" for a whole one.

        *empty*: there is no answer. *no words*: it has no letter, digit or sign; or too few of its words are in the
        study's vocabulary or a language's list. *repeats*: loops of a phrase, a sentence or characters make up most
        of it. *unlikely*: `nll` is above the ceiling; NaN, where it is not known, is not.
        """
        if response not in self.read:
            self.read[response] = self._read(answer(response)[:SCANNED])
        reason, worded = self.read[response]
        return reason or (UNLIKELY if nll > self.ceiling else "" if worded else NO_WORDS)

    def _read(self, text: str) -> tuple[str, bool]:
        """Why a text is broken, whatever its NLL, and whether enough of its words are words."""
        if not text:
            return EMPTY, False
        if not any(map(_says, text)):
            return NO_WORDS, False
        if self._repeats(text):
            return REPEATS, False
        return "", self._worded([word for word in _words(text) if word and len(word) > 1])

    def _repeats(self, text: str) -> bool:
        rules = self.referee
        text = NUMBER.sub("", text.lower())
        words, marked = ITEM.findall(text), [found[0] for found in MARKED.finditer(text)]
        sentences = [tuple(ITEM.findall(one)) for one in SENTENCE_END.split(text)]
        units: tuple[tuple[Sequence[Any], int], ...] = (
            (words, rules.looped_words),
            (marked, rules.looped_words),
            ([one for one in sentences if one], 1),
            ("".join(words), rules.looped_words * WORD_LENGTH),
        )
        shares = chain((self._looped(items, least) for items, least in units), [self._recurring(text)])
        return any(share > rules.looped for share in shares)

    def _looped(self, items: Sequence[Any], least: int) -> float:
        """The share of items in loops of `least` items or more."""
        import numpy as np

        seen: dict[Any, int] = {}
        # A number is like no other: tables and lists of numbers go on and on.
        codes = np.array([-k if _counts(item) else seen.setdefault(item, k) for k, item in enumerate(items, 1)])
        inside = np.zeros(len(codes), dtype=bool)
        for period in range(1, min(self.referee.repeated_words, len(codes) - 1) + 1):
            same = codes[period:] == codes[:-period]
            for start, end in _runs(same) if same.any() else ():
                if end - start > period * self.referee.max_repeats and end - start + period >= least:
                    inside[start : end + period] = True
        return float(inside.mean()) if len(inside) else 0.0

    def _recurring(self, text: str) -> float:
        """The share of words in phrases that recur, wherever they stand."""
        size, words = self.referee.phrase_words, list(_words(text))
        phrases = [tuple(words[k : k + size]) for k in range(len(words) - size + 1)]
        times = Counter(phrases)
        inside = {
            k + place
            for k, phrase in enumerate(phrases)
            if None not in phrase and times[phrase] > self.referee.max_repeats + 1
            for place in range(size)
        }
        return len(inside) / len(words) if words else 0.0

    def _worded(self, words: list[str]) -> bool:
        # The study's own words first: most responses need no list, and each takes a second to load.
        return any(self._known(words, language) for language in (None, *LISTS))

    def _known(self, words: list[str], language: str | None) -> bool:
        listed = _listed(language) if language else frozenset()
        found = [_is_word(word.lower(), listed, self.own) for word in words]
        # A word with a capital that no list has may be a name, or one of a program.
        judged = [known for word, known in zip(words, found, strict=True) if known or word.islower()]
        return len(judged) < self.referee.counted_words or sum(judged) >= self.referee.known_words * len(judged)


TOGETHER = 8  # responses for which a prompt is read once


def spoken_nll(
    model: Any,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    others: Sequence[list[int]],
    parts: Parts,
    enough: float = -math.inf,
) -> list[float]:
    """Nats per token of each response (ids), NaN for one without tokens. Every token counts as after that prompt, its
    own or one of `others`, after which it is least surprising: a refusal of what the model would do is language too,
    and so is an answer to another question. Where no more than `enough` is counted after its own prompt, the others
    are not asked.

    A response has its end tokens only where it ended by itself: one that was cut off is not charged with them.
    `others` hold a prompt that the model refuses and one that it answers. What was said before costs nothing: under
    noise too many prompts get the same response.
    """
    import torch

    own = [(tuple(prompt), tuple(response)) for prompt, response in zip(prompts, responses, strict=True)]
    costs = _token_costs(model, list(dict.fromkeys(own)), parts)
    unsure = dict.fromkeys(said for (_, said), cost in costs.items() if cost.mean() > enough)
    costs |= _token_costs(model, [(tuple(other), said) for other in others for said in unsure], parts)

    def least(asked: tuple[int, ...], said: tuple[int, ...]) -> Tensor:
        after = [asked, *map(tuple, others)] if said in unsure else [asked]
        return torch.stack([costs[one, said] for one in after]).amin(0)

    return [float(least(*pair).mean()) for pair in own]


Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prompt and of a response


def _token_costs(model: Any, pairs: Sequence[Pair], parts: Parts) -> dict[Pair, Tensor]:
    """Nats of each token of each response after its prompt."""
    from holdfast.models.reading import Reader, Request

    after: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, response in pairs:
        after.setdefault(prompt, []).append(response)
    some = [(p, said[k : k + TOGETHER]) for p, said in after.items() for k in range(0, len(said), TOGETHER)]
    requests = [Request(list(prompt), [list(one) for one in said], answered=False) for prompt, said in some]
    replies = Reader(model, parts).replies(requests)
    return {
        (prompt, one): -logprobs
        for (prompt, said), reply in zip(some, replies, strict=True)
        for one, logprobs in zip(said, reply.branches, strict=True)
    }


def _says(character: str) -> bool:
    sign = not character.isascii() and character != REPLACED and unicodedata.category(character)[0] == "S"
    return sign or character.isalnum()


def _counts(item: Any) -> bool:
    return isinstance(item, str) and item.isdecimal()


def _runs(same: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Where `same` is true without a break: (first, after the last)."""
    import numpy as np

    edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _words(text: str) -> Iterator[str | None]:
    """What stands between spaces, if it is of Latin letters alone; None for code, links, paths or numbers."""
    for one in INLINE.sub(" ", BLOCK.sub(" ", text)).split():
        word = one.strip(EDGES).replace("’", "'")
        yield word if WORD.fullmatch(word.lower()) else None


def _is_word(word: str, listed: frozenset[str], own: frozenset[str]) -> bool:
    return word in listed or all(part in listed or part in own for part in PART.findall(word))


@cache
def _listed(language: str) -> frozenset[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language=language).word_frequency.words())
