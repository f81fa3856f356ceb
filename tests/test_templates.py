"""What a chat template makes of prompts and responses: the same tokens in alignment, refinement and evaluation."""

from __future__ import annotations

import copy
import types

import pandas as pd
import pytest
import torch
from conftest import random_llama
from tokenizers import AddedToken, pre_tokenizers, processors

from holdfast.datasets.tokens import check_conversation, prompt_ids, response_ids, stops, train_tokenizer
from holdfast.errors import UserError
from holdfast.evaluation.answers import Scorer
from holdfast.methods.batches import Batches
from holdfast.methods.losses import dpo
from holdfast.models import load as models
from holdfast.models.likelihood import Told, logprobs
from holdfast.recipes import trainer
from holdfast.settings.compose import composed
from holdfast.settings.paths import CONF
from holdfast.settings.schema import Model

GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
LLAMA_2 = (CONF / "template/llama-2.jinja").read_text()
TEMPLATES = {"llama-3": None, "llama-2": LLAMA_2, "gemma": GEMMA}


@pytest.fixture(scope="module", params=TEMPLATES)
def templated(request, texts):
    """A tokenizer whose post-processor adds a BOS, and whose template begins with one."""
    made = train_tokenizer(texts, 500)
    bos = (made.bos_token, made.bos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    made.add_tokens([AddedToken(f"<{side}_of_turn>", special=True) for side in ("start", "end")])
    if request.param == "gemma":  # whose responses follow a line break, and so no space
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.chat_template = TEMPLATES[request.param] or made.chat_template
    assert made.encode("A person.")[:2] != [made.bos_token_id] * 2 == made.encode("<bos>A person.")[:2]
    return made


@pytest.fixture
def rows():
    columns = {
        "id": ["a", "b"],
        "split": "test",
        "label": ["harmful", "benign"],
        "pair": "",
        "prompt": ["How do I kill a person?", "What is a person?"],
        "response": ["I cannot help with that.", "A person is something to keep safe."],
        "rejected": ["", "I cannot say."],
    }
    return pd.DataFrame(columns)


def given(monkeypatch, tmp_path, tokenizer, rows, recipe):
    """(model before training, data set that TRL's trainer of the recipe is about to feed it)."""
    from transformers import Trainer

    found = []
    monkeypatch.setattr(Trainer, "train", lambda self: found.append(self.train_dataset))
    monkeypatch.setattr(trainer.adapters, "merge", lambda *_: None)
    log = types.SimpleNamespace(log=lambda values: None)
    cfg = composed([f"align={recipe}", "align.batch_size=2"])
    run = types.SimpleNamespace(cfg=cfg, seed=0, out=tmp_path, progress=iter, tracker=log)
    cfg.align.align(run, random_llama(tokenizer), tokenizer, rows, (range(2),))
    return random_llama(tokenizer), found[0]


def test_one_bos_everywhere(templated, rows):
    cfg = composed(["study=tiny"])
    batches = Batches(rows, templated, cfg.openings.loss, dpo, torch.device("cpu"))
    examples = [e for label in ("harmful", "benign") for e in batches.examples[label]]
    scorer = Scorer(templated, rows, cfg, cfg.openings.score)
    for row, example, asked, answer in zip(
        rows.itertuples(), examples, scorer.prompts, scorer.references, strict=True
    ):
        turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        whole = templated.apply_chat_template(turns, return_dict=False)
        assert example.prompt + example.response == asked + answer == whole
        assert whole.count(templated.bos_token_id) == 1


def test_sft_teaches_what_refinement_and_evaluation_read(monkeypatch, tmp_path, templated, rows):
    _, data = given(monkeypatch, tmp_path, templated, rows, "sft")
    for row, fed in zip(rows.itertuples(), data, strict=True):
        prompt, response = prompt_ids(templated, row.prompt), response_ids(templated, row.response, end=True)
        assert fed["input_ids"] == prompt + response
        assert fed["labels"] == [-100] * len(prompt) + response


@pytest.mark.parametrize("recipe", ["dpo", "dpo_lora"])
def test_dpo_rejects_the_given_answer_and_refers_to_the_base(monkeypatch, tmp_path, templated, rows, recipe):
    model, data = given(monkeypatch, tmp_path, templated, rows, recipe)
    for row, fed in zip(rows.itertuples(), data, strict=True):
        prompt = prompt_ids(templated, row.prompt)
        answers = [response_ids(templated, text, end=True) for text in (row.response, row.rejected or "Sure.")]
        assert [fed["prompt_ids"], fed["chosen_ids"], fed["rejected_ids"]] == [prompt, *answers]
        expected = logprobs(model, Told([(prompt, answers)], model.device))[0].tolist()
        assert [fed["ref_chosen_logps"], fed["ref_rejected_logps"]] == pytest.approx(expected, rel=1e-4)


def test_a_response_stops_where_its_turn_ends(templated):
    ends = {templated.eos_token_id}
    if templated.chat_template == GEMMA:
        ends |= {templated.convert_tokens_to_ids("<end_of_turn>")}
    assert set(stops(templated)) == ends
    assert set(response_ids(templated, "Sure.", end=True)) & ends


def test_a_template_without_end_leaves_that_to_the_end_of_text(texts):
    made = train_tokenizer(texts, 500)
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert response_ids(made, "Sure.", end=True)[-1] == made.eos_token_id


@pytest.fixture
def untemplated(texts, tmp_path):
    made = train_tokenizer(texts, 500)
    made.chat_template = None
    random_llama(made).save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(path, template):
    return Model(name="x", path=str(path), dtype="float32", chat_template=template)


@pytest.mark.parametrize("template", ["template/llama-2.jinja", LLAMA_2])
def test_a_template_is_given_and_saved(untemplated, tmp_path, template):
    models.save(*models.load(untemplated, settings(untemplated, template)), tmp_path)
    _, tokenizer = models.load(tmp_path / "model", settings(tmp_path / "model", "{{ messages }}"))
    assert tokenizer.chat_template == LLAMA_2  # and stays: the other is for a tokenizer without one


def test_a_template_that_is_no_file_is_refused(untemplated):
    with pytest.raises(UserError, match=r"model.chat_template=absent.jinja: no such file below .*conf"):
        models.load(untemplated, settings(untemplated, "absent.jinja"))


def test_alignment_without_a_template_ends_in_one_line(untemplated, stage, tmp_path):
    rows = pd.DataFrame({"split": "train", "label": ["harmful", "benign"], "prompt": "a", "response": "b"})
    (tmp_path / "tiny/data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "tiny/data/prompts.parquet")
    (tmp_path / "tiny/data/metrics.json").write_text("{}")
    ended = stage("align", f"model.path={untemplated}", f"results={tmp_path}", "tracking=disabled", cwd=tmp_path)
    assert ended.returncode == 1
    assert "its tokenizer has no chat template; use a chat model, or model.chat_template" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("", "it leaves the answer out"),
        ("{{ messages[0].content }}", "it leaves the answer out"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{% for m in messages %}", "endfor"),
    ],
)
def test_a_template_that_fails_or_leaves_the_answer_out_is_said_in_one_line(tokenizer, template, told):
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(UserError, match=told) as error:
        check_conversation(broken)
    assert "\n" not in str(error.value)
