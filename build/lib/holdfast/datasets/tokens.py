"""From prompts and responses to token ids, always through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
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


def check_template(tokenizer: Any) -> None:
    """Raise `UserError` for a tokenizer without a chat template."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; use a chat model, or model.chat_template"
        )


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as one user turn, up to where the assistant begins; exactly one BOS."""
    check_template(tokenizer)
    turns = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def response_ids(tokenizer: Any, response: str, end: bool) -> list[int]:
    """A response, or an opening of one (`end=False`), as the assistant's turn."""
    ids = list(tokenizer.encode(response, add_special_tokens=False))
    return [*ids, *turn_end(tokenizer, tokenizer.chat_template)] if end else ids


@cache
def turn_end(tokenizer: Any, template: str) -> tuple[int, ...]:
    """What the chat template writes after a response, and alignment teaches as its end: Gemma's is <end_of_turn> and a
    line break where its tokenizer's end of text is <eos>. The latter, where the template writes nothing."""
    turns = [[{"role": "user", "content": "1"}, {"role": "assistant", "content": digit}] for digit in "23"]
    one, other = (tokenizer.apply_chat_template(t, chat_template=template, return_dict=False) for t in turns)
    same = next(count for count, pair in enumerate(zip(one[::-1], other[::-1], strict=False)) if pair[0] != pair[1])
    return tuple(one[len(one) - same :]) or (tokenizer.eos_token_id,)


def stops(tokenizer: Any) -> list[int]:
    """The tokens that end a response: the end of text, and every special token of `turn_end`."""
    known = tokenizer.added_tokens_decoder
    end = turn_end(tokenizer, tokenizer.chat_template)
    return sorted({tokenizer.eos_token_id, *(token for token in end if token in known and known[token].special)})
