"""What a chat template is given beside the prompt: a day, variables, a system turn; and what it must make of it."""

from __future__ import annotations

import time

import pandas as pd
import pytest
from conftest import random_llama

from holdfast.datasets.tokens import check_lengths, prompt_ids, prompts_ids, train_tokenizer
from holdfast.datasets.turns import conversation
from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.settings.compose import composed
from holdfast.settings.schema import Model

CHATML = (
    "{{ bos_token }}{{ before }}{% for m in messages %}<user>{{ m['role'] }} {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<user>assistant {% endif %}"
)
TODAY = "{{ bos_token }}{{ strftime_now('%d %b %Y %H:%M:%S') }}"
REST = (
    "{% for m in messages %}<user>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<user>{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}<bos>{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% else %}<assistant>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKING = PLAIN.replace(
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "{% if add_generation_prompt %}<assistant>{% if not think %}<pad>{% endif %}{% endif %}",
).replace("<assistant>{{ m", "<assistant><pad>{{ m")
SPACED = PLAIN.replace("<assistant>{{ m", "<assistant>\n\n{{ m")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def base(texts, tmp_path):
    """A folder with a model and a tokenizer whose template the test sets."""

    def made(template: str):
        tokenizer = train_tokenizer(texts, 500)
        tokenizer.chat_template = template
        random_llama(tokenizer).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return made


def loaded(folder, **settings):
    return models.load(folder, Model(name="x", path=str(folder), dtype="float32", **settings))[1]


def test_a_template_that_asks_for_today_is_told_one_day(base):
    folder = base(TODAY + REST.replace("<user>{{", "<user> {{").replace("<user> {{ m", "<user>{{ m"))
    one = prompt_ids(loaded(folder), "What?")
    time.sleep(1.1)
    tokenizer = loaded(folder)
    assert prompt_ids(tokenizer, "What?") == one
    assert "26 Jul 2024 00:00:00" in tokenizer.decode(one)
    assert "05 Jan 2026" in tokenizer.decode(prompt_ids(loaded(folder, template_date="2026-01-05"), "What?"))


def test_the_day_is_in_the_settings_and_checked():
    assert composed([]).model.template_date == "2024-07-26"
    with pytest.raises(UserError, match=r"model.template_date=tomorrow: give a day as 2024-07-26"):
        composed(["model.template_date=tomorrow"])


def test_variables_of_the_template(base):
    folder = base(THINKING)
    with pytest.raises(UserError, match=r"writes a whole conversation as .* set model.template_variables") as error:
        loaded(folder, template_variables={"think": True})
    assert "\n" not in str(error.value)
    assert loaded(folder).decode(prompt_ids(loaded(folder), "What?")).endswith("<pad>")
    assert composed(["+model.template_variables.enable_thinking=false"]).model.template_variables == {
        "enable_thinking": False
    }


def test_a_system_turn_where_a_conversation_has_none(base):
    tokenizer = loaded(base(PLAIN), system="Be kind.")
    assert tokenizer.decode(prompt_ids(tokenizer, "What?")).count("Be kind.") == 1
    own = '[{"role": "system", "content": "Be a person."}]'
    text = tokenizer.decode(prompt_ids(tokenizer, "What?", own))
    assert "Be a person." in text
    assert "Be kind." not in text
    turns = [conversation("What?", ""), conversation("Stop", "")]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert batch == [prompt_ids(tokenizer, p) for p in ("What?", "Stop")]


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (SPACED, {}, "writes a whole conversation as"),
        (NO_SYSTEM + PLAIN, {"system": "Be kind."}, "takes no such turns .System role not supported"),
    ],
)
def test_a_template_that_would_teach_what_is_never_read_is_refused(base, template, settings, message):
    with pytest.raises(UserError, match=message) as error:
        loaded(base(template), **settings)
    assert "\n" not in str(error.value)


def test_turns_that_a_template_does_not_take_are_said_with_their_row(base):
    tokenizer = loaded(base(NO_SYSTEM + PLAIN))
    turns = ["", '[{"role": "system", "content": "Be kind."}]']
    rows = pd.DataFrame({"prompt": ["What?", "Who?"], "turns": turns, "source": "mine", "row": [1, 7]})
    assert prompts_ids(tokenizer, rows[:1]) == [prompt_ids(tokenizer, "What?")]
    with pytest.raises(UserError, match=r"data.sources.mine: row 7: the chat template does not take its turns"):
        prompts_ids(tokenizer, rows)


def test_a_prompt_longer_than_the_context_is_said_with_row_and_limit(base):
    tokenizer = loaded(base(PLAIN))
    assert tokenizer.model_max_length == 64  # the model's positions
    rows = pd.DataFrame({"prompt": ["What?", "What? " * 400], "turns": "", "source": "mine", "row": [1, 7]})
    lengths = [len(ids) for ids in prompts_ids(tokenizer, rows)]
    with pytest.raises(UserError, match=r"data.sources.mine: row 7 takes .* tokens .* the model reads 64"):
        check_lengths(rows, lengths, tokenizer.model_max_length)
