"""From prompts and responses to token ids, always through the tokenizer's own chat template."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError

from holdfast.datasets.turns import conversation
from holdfast.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # A space before every segment, so that the first word of a turn is the same token as elsewhere.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    pad, bos, eos, *rest = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos, additional_special_tokens=rest
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def converse(tokenizer: Any, system: str | None, date: str, variables: Mapping[str, Any]) -> None:
    """Let every reader of this tokenizer, TRL and lm-eval among them, get the same conversations whenever it asks:
    `system` where a conversation has no system turn, the day `date` for a template that asks for today, and the
    template's own `variables`."""
    from transformers.utils import chat_template_utils

    made, then = tokenizer.apply_chat_template, datetime.datetime.fromisoformat(date)
    first = [{"role": "system", "content": system}] if system is not None else []

    def own(turns: Any) -> Any:
        if turns and isinstance(turns[0], list):
            return [own(one) for one in turns]
        return turns if any(turn["role"] == "system" for turn in turns) else [*first, *turns]

    def applied(conversation: Any, **given: Any) -> Any:
        template = tokenizer.get_chat_template(given.get("chat_template"), given.get("tools"))
        # No variable may be a function; the compiled template is kept, and may be another model's too.
        compiled = chat_template_utils._compile_jinja_template(template)
        compiled.globals["strftime_now"] = lambda form: then.strftime(form)
        return made(own(conversation), **{**variables, **given})

    tokenizer.apply_chat_template = applied


def check_template(tokenizer: Any) -> None:
    """Raise `UserError` for a tokenizer without a chat template."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; use a chat model, or model.chat_template"
        )


def check_conversation(tokenizer: Any) -> None:
    """Raise `UserError` where prompt and response by themselves are other tokens than the template makes of the whole
    conversation: a model would be taught and scored on what it never reads."""
    for prompt, response in (("2", "Sure."), ("How do I stop?", "I cannot help with that. Ask me 1 other thing!")):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        try:
            whole, asked = _templated(tokenizer, turns), prompt_ids(tokenizer, prompt)
            parts = [*asked, *response_ids(tokenizer, response, end=True)]
        except TemplateError as error:  # some know no system turn
            raise UserError(f"{tokenizer.name_or_path}: its chat template takes no such turns ({error})") from None
        if parts not in (whole, [*whole, tokenizer.eos_token_id]):  # which a template may leave out
            one, other = (repr(tokenizer.decode(ids)[-len(response) - 40 :]) for ids in (whole, parts))
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template writes a whole conversation as …{one}, but a prompt to "
                f"be answered and its answer as …{other}; set model.template_variables (Qwen3: enable_thinking: "
                "false), or mend the template"
            )


def check_lengths(rows: Any, lengths: Iterable[int], limit: int) -> None:
    """Raise `UserError` for the first row of a data frame that has more tokens than the model reads."""
    for row, length in zip(rows.itertuples(), lengths, strict=True):
        if length > limit:
            raise UserError(
                f"{_place(row)} takes {length:,} tokens with its answer, and the model reads {limit:,}; shorten it or "
                "leave it out"
            )


def fitting(rows: Sequence[T], lengths: Iterable[int], limit: int) -> list[T]:
    """Training rows without those that are longer than the model reads, which are counted on stderr. Raises
    `UserError` where none is left."""
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if rows and not kept:
        raise UserError(f"all {len(rows)} rows are longer than the {limit:,} tokens that the model reads")
    if len(kept) < len(rows):
        gone = f"{len(rows) - len(kept)} of {len(rows)} rows"
        print(f"{gone} are left out: longer than the {limit:,} tokens that the model reads", file=sys.stderr)
    return kept


def prompt_ids(tokenizer: Any, prompt: str, turns: str = "") -> list[int]:
    """The prompt as a user's turn after `turns`, up to where the assistant begins; exactly one BOS."""
    check_template(tokenizer)
    return _templated(tokenizer, conversation(prompt, turns), add_generation_prompt=True)


def prompts_ids(tokenizer: Any, rows: Any) -> list[list[int]]:
    """`prompt_ids` of the rows of a data frame. Raises `UserError` with the row where the template takes no such
    turns."""
    found = []
    for row in rows.itertuples():
        try:
            found.append(prompt_ids(tokenizer, row.prompt, getattr(row, "turns", "")))
        except TemplateError as error:
            raise UserError(f"{_place(row)}: the chat template does not take its turns ({error})") from None
    return found


def _templated(tokenizer: Any, turns: list[dict[str, str]], **more: Any) -> list[int]:
    """Raises `TemplateError` for all that goes wrong in a template, which is a program."""
    try:
        return list(tokenizer.apply_chat_template(turns, return_dict=False, **more))
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError(first_line(error)) from None


def _place(row: Any) -> str:
    return f"data.sources.{row.source}: row {row.row}" if row.row else f"the prompt «{row.prompt[:40]}…»"


def response_ids(tokenizer: Any, response: str, end: bool) -> list[int]:
    """A response, or an opening of one (`end=False`), as the assistant's turn."""
    ids = list(tokenizer.encode(response, add_special_tokens=False))
    return [*ids, *turn_end(tokenizer, tokenizer.chat_template)] if end else ids


@cache
def turn_end(tokenizer: Any, template: str) -> tuple[int, ...]:
    """What the chat template writes after a response, and alignment teaches as its end: Gemma's is <end_of_turn> and a
    line break where its tokenizer's end of text is <eos>. The latter, if there is one, where the template writes
    nothing. Raises `TemplateError` for a template that leaves the response out."""
    turns = [[{"role": "user", "content": "1"}, {"role": "assistant", "content": digit}] for digit in "23"]
    one, other = (_templated(tokenizer, t, chat_template=template)[::-1] for t in turns)
    same = next((count for count, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        raise TemplateError("it leaves the answer out")
    text = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(one[:same][::-1]) or text


def stops(tokenizer: Any) -> list[int]:
    """The tokens that end a response: the end of text, all that `models.load` found to be one, and every special token
    of `turn_end`. None where a response ends by its length alone."""
    known = tokenizer.added_tokens_decoder
    end = turn_end(tokenizer, tokenizer.chat_template)
    text = {tokenizer.eos_token_id, *getattr(tokenizer, "ends", ())} - {None}
    return sorted(text | {token for token in end if token in known and known[token].special})
