"""From prompts and responses to token ids, always through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterable
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


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as one user turn, up to where the assistant begins; exactly one BOS."""
    if tokenizer.chat_template is None:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; use a chat or instruct model")
    turns = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def response_ids(tokenizer: Any, response: str, end: bool) -> list[int]:
    """A response, or an opening of one (`end=False`), as the assistant's turn."""
    ids = list(tokenizer.encode(response, add_special_tokens=False))
    return [*ids, tokenizer.eos_token_id] if end else ids
