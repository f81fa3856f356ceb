"""Folders of models as users bring them: what is no whole model is told in one line before anything long runs, and
what is one keeps its form."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from conftest import random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.commands.harden import main as harden
from holdfast.commands.replay import main as replay
from holdfast.datasets.tokens import TEMPLATE, response_ids, stops
from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.models.checkpoints import INDEX
from holdfast.models.package import dressed, tensors
from holdfast.models.reading import answers
from holdfast.runtime.memory import Parts
from holdfast.settings.schema import Model
from holdfast.zo import ZeroOrderRefiner

GIVEN = "{# given #}" + TEMPLATE
MATRIX = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def settings(path, dtype="auto", template=None):
    return Model(name="x", path=str(path), dtype=dtype, chat_template=template)


def edit(path, *without, **changes):
    """Of a JSON object, some keys taken out and some set."""
    found = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in found.items() if key not in without} | changes))


def refused(folder):
    """The one line that a folder is answered with."""
    with pytest.raises(UserError) as error:
        models.fetched(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def base(tokenizer, tmp_path):
    """A model in bfloat16."""
    folder = tmp_path / "base"
    random_llama(tokenizer).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(tokenizer, tmp_path):
    folder = tmp_path / "sharded"
    random_llama(tokenizer).to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def mixed(folder):
    """Norms in float32, as the folder's owner trained them."""
    weights = load_file(folder / "model.safetensors")
    weights |= {name: 1 + torch.rand(t.shape) / 10 for name, t in weights.items() if "norm" in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def moved(base, out, name=MATRIX, **given):
    """What a refinement of one matrix leaves of a base."""
    model, tokenizer = models.load(base, settings(base, **given))
    with torch.no_grad():
        model.get_parameter(name).mul_(1.5)
    models.save(model, tokenizer, out)
    return out / "model"


def shipped(made, base, out):
    out.mkdir()
    return dressed(made, base, out)


def test_the_same_weights_in_another_form_are_no_part_of_the_model(sharded, tmp_path):
    """Mistral and Llama ship them beside the shards."""
    expected = tensors(sharded)
    save_file({"tok_embeddings.weight": torch.zeros(4, 4)}, sharded / "consolidated.safetensors")
    assert tensors(sharded) == expected
    out = tmp_path / "out"
    shipped(moved(sharded, tmp_path), sharded, out)
    assert tensors(out) == expected
    names = {path.name for path in sharded.glob("model*")}
    assert {path.name for path in out.glob("*safetensors*")} == names
    assert (out / INDEX).read_bytes() == (sharded / INDEX).read_bytes()
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (out, sharded))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == [MATRIX]


def test_an_index_beside_a_single_file_is_not_read(base, tmp_path):
    (base / INDEX).write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    out = tmp_path / "out"
    shipped(moved(base, tmp_path), base, out)
    assert tensors(out) == tensors(base)
    assert not (out / INDEX).exists()


def test_a_missing_shard_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"holds no {lost.name}, which {INDEX} names" in refused(sharded)


def test_a_folder_without_safetensors_is_told(base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert f"holds no model.safetensors, nor {INDEX}" in refused(base)


@pytest.mark.parametrize("where", [["model.safetensors"], {"x": "../base/model.safetensors"}, {"x": 3}])
def test_an_index_names_files_of_its_own_folder(base, where):
    (base / INDEX).write_text(json.dumps({"weight_map": where}))
    assert "its weight_map names no files of this folder" in refused(base)


HEADER = b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'


@pytest.mark.parametrize(
    "content",
    {
        "nothing": b"",
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a header of 2 EiB": (2**61).to_bytes(8, "little") + b"{}",
        "no JSON": (2).to_bytes(8, "little") + b"{{",
        "no object": (2).to_bytes(8, "little") + b"[]",
        "no tensors": (2).to_bytes(8, "little") + b"{}",
        "a nest": (90_000).to_bytes(8, "little") + b"[" * 90_000,
        "cut short": len(HEADER).to_bytes(8, "little") + HEADER + b"123",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_is_no_safetensors_is_told_and_not_read(base, content):
    (base / "model.safetensors").write_bytes(content[1])
    assert "model.safetensors: is cut short, or no safetensors" in refused(base)


def test_a_header_as_long_as_a_large_file_is_not_read(base):
    with (base / "model.safetensors").open("wb") as file:
        file.write((2**33 - 8).to_bytes(8, "little"))
        file.truncate(2**33)  # sparse
    assert "is cut short, or no safetensors" in refused(base)


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_configuration_that_is_no_object_is_told(base, content):
    (base / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json: is no JSON" in refused(base)


def test_a_folder_without_a_configuration_is_told(base):
    (base / "config.json").unlink()
    assert "holds no config.json" in refused(base)


def test_weights_that_no_file_holds_are_not_drawn(base):
    weights = load_file(base / "model.safetensors")
    del weights[MATRIX]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"no file holds {re.escape(MATRIX)}; give a folder"):
        models.load(base, settings(base))


@pytest.mark.parametrize("complete", [False, True])
def test_an_adapter_says_how_to_merge_it(base, tmp_path, monkeypatch, complete):
    """And what it says makes a model of it. Beside whole weights it would be laid over them."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.chdir(tmp_path)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    tuned.save_pretrained("adapter")
    if complete:
        shutil.copytree(base, "adapter", dirs_exist_ok=True)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        harden(["model=adapter", "out=hardened"])
    told = str(error.value)
    assert told.startswith(f"adapter: holds an adapter of {base}; merge it and give model=merged: python -c ")
    assert "\n" not in told
    assert {path.name for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="holds an adapter of"):
        models.load("adapter", settings("adapter"))
    if not complete:
        exec(re.search('python -c "(.*)"', told)[1], {})
        models.load("merged", settings("merged"))


@pytest.fixture
def endless(base):
    """Its tokenizer knows neither the end of a text nor padding."""
    edit(base / "tokenizer_config.json", "eos_token", "pad_token")
    edit(base / "tokenizer.json", added_tokens=[])
    bare = AutoTokenizer.from_pretrained(base)
    assert (bare.eos_token_id, bare.pad_token_id) == (None, None)
    return base


@pytest.mark.parametrize(
    ("generation", "config", "expected"), [([9, 2], 7, [2, 9]), (2, [9], [2]), (None, [2, 9], [2, 9]), (None, 9, [9])]
)
def test_the_end_of_a_text_is_the_models(endless, tmp_path, generation, config, expected):
    """Also once the model was saved: both sides of a comparison are read alike."""
    edit(endless / "generation_config.json", eos_token_id=generation)
    edit(endless / "config.json", eos_token_id=config)
    model, tokenizer = models.load(endless, settings(endless))
    models.save(model, tokenizer, tmp_path)
    _, again = models.load(tmp_path / "model", settings(tmp_path / "model"))
    for found in (tokenizer, again):
        assert stops(found) == expected
        assert response_ids(found, "Sure.", end=True)[-1] in expected
        assert found.pad_token_id == found.eos_token_id
    text = f"A person. {tokenizer.eos_token}"
    assert tokenizer.encode(text) == again.encode(text)


@pytest.mark.parametrize("silent", [False, True], ids=["null", "no entry"])
def test_without_an_end_a_text_runs_to_its_limit(endless, tmp_path, silent):
    """And is padded by what need not be special: saved as if it were, it would cut text where it stands."""
    for name in ("generation_config.json", "config.json"):
        edit(endless / name, "eos_token_id", **({} if silent else {"eos_token_id": None}))
    word = AutoTokenizer.from_pretrained(endless).convert_ids_to_tokens(40)
    edit(endless / "tokenizer.json", model=swapped(endless, word))
    model, tokenizer = models.load(endless, settings(endless))
    models.save(model, tokenizer, tmp_path)
    _, again = models.load(tmp_path / "model", settings(tmp_path / "model"))
    for found in (tokenizer, again):
        assert (stops(found), found.pad_token_id) == ([], 0)
        assert response_ids(found, "Sure.", end=True) == response_ids(found, "Sure.", end=False)
        ((said, ended),) = answers(model, found, [[5, 6, 7]], 5, Parts("rows"))
        assert (len(said), ended) == (5, False)
        assert found.decode(found.encode(f"A {word} B"), skip_special_tokens=True).split() == ["A", word, "B"]


def swapped(folder, word):
    """The tokenizer's own model, in which that word is the token of id 0."""
    found = json.loads((folder / "tokenizer.json").read_text())["model"]
    first = next(token for token, place in found["vocab"].items() if place == 0)
    found["vocab"] |= {first: found["vocab"][word], word: 0}
    return found


def test_an_end_of_its_own_stays(base):
    """What a model's class says where its files are silent may be any token: Llama's is 2."""
    for name in ("generation_config.json", "config.json"):
        edit(base / name, "eos_token_id")
    edit(base / "tokenizer_config.json", eos_token="<user>")
    _, tokenizer = models.load(base, settings(base))
    assert stops(tokenizer) == [tokenizer.convert_tokens_to_ids("<user>")]


def test_what_was_not_refined_is_the_bases_own(base, tmp_path):
    """Norms in float32, which loading casts; buffers of old checkpoints, which it does not read."""
    mixed(base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    said = shipped(moved(base, tmp_path), base, out)
    assert said.tensors == "names and types are those of the base"
    assert tensors(out) == tensors(base)
    ours = load_file(out / "model.safetensors")
    assert [name for name in weights if not torch.equal(ours[name], weights[name])] == [MATRIX]
    assert torch.equal(ours[MATRIX], weights[MATRIX] * 1.5)


def test_what_was_refined_in_float32_keeps_its_type(base, tmp_path):
    """Of a norm too; the model runs in bfloat16, as its configuration says."""
    mixed(base)
    out = tmp_path / "out"
    shipped(moved(base, tmp_path, NORM), base, out)
    assert tensors(out) == tensors(base)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, base))
    assert torch.equal(ours[NORM], (theirs[NORM].bfloat16() * 1.5).float())


def test_a_configuration_wider_than_its_files_does_not_round(base, tmp_path):
    edit(base / "config.json", dtype="float32")
    made, out = moved(base, tmp_path), tmp_path / "out"
    said = shipped(made, base, out)
    count = len(tensors(base))
    assert said.tensors == f"the names of the base; {count} of {count} are F32, as config.json says"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, made))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_type_that_is_asked_for_is_written_and_named(sharded, tmp_path, key):
    edit(sharded / "config.json", "dtype", **{key: "bfloat16"})
    out = tmp_path / "out"
    said = shipped(moved(sharded, tmp_path, dtype="float32"), sharded, out)
    assert {kind for kind, _ in tensors(out).values()} == {"F32"}
    assert said.tensors.endswith("are F32, as asked for")
    assert said.files == f"the base's own files, byte for byte, but for {key} in config.json, which is float32"
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, sharded))
    assert list(ours.items()) == list((theirs | {key: "float32"}).items())
    sizes = [json.loads((folder / INDEX).read_text())["metadata"]["total_size"] for folder in (out, sharded)]
    assert sizes[0] == 2 * sizes[1]
    AutoModelForCausalLM.from_pretrained(out)


def test_a_configuration_that_names_no_type_keeps_none(base, tmp_path):
    edit(base / "config.json", "dtype")
    out = tmp_path / "out"
    shipped(moved(base, tmp_path), base, out)
    assert tensors(out) == tensors(base)
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_tied_head_that_is_stored_twice_moves_twice(tokenizer, tmp_path):
    base, name = tmp_path / "base", "model.embed_tokens.weight"
    random_llama(tokenizer, tied=True).save_pretrained(base)
    tokenizer.save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights[name].clone()}, base / "model.safetensors", {"format": "pt"})
    shipped(moved(base, tmp_path, name), base, tmp_path / "out")
    ours = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(ours[name], 1.5 * weights[name])
    assert torch.equal(ours["lm_head.weight"], ours[name])


def test_a_configuration_of_an_earlier_transformers_is_shipped_as_it_is(base, tmp_path):
    """Which would take 10000 where it finds no rope_theta of its own."""
    edit(base / "config.json", "rope_parameters", rope_theta=500000.0)
    (base / "special_tokens_map.json").write_text('{"eos_token":   "<eos>"}')
    edit(base / "generation_config.json", of_its_own=1)
    out = tmp_path / "out"
    said = shipped(moved(base, tmp_path), base, out)
    assert said.files == "the base's own files, byte for byte"
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    for path in base.glob("*[!s]"):
        assert path.name == "model.safetensors" or path.read_bytes() == (out / path.name).read_bytes()


@pytest.mark.parametrize("own", [False, True])
def test_a_template_that_was_given_is_added(base, tmp_path, own):
    """To a tokenizer without one, wherever that is kept."""
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", **({"chat_template": TEMPLATE} if own else {}))
    out = tmp_path / "out"
    said = shipped(moved(base, tmp_path, template=GIVEN), base, out)
    assert ("chat template" in said.files) is not own
    assert AutoTokenizer.from_pretrained(out).chat_template == (TEMPLATE if own else GIVEN)
    assert (out / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_replay_gives_what_was_shipped(base, tmp_path, dtype):
    mixed(base)
    model, tokenizer = models.load(base, settings(base, dtype))
    log = tmp_path / "trajectory.jsonl"
    refiner = ZeroOrderRefiner(
        model, lambda m, ids: m(ids).logits.float().mean((1, 2)), layers=["layer.1"], mu=0.1, lr=1.0, trajectory=log
    )
    refiner.step(torch.tensor([[5, 6, 7]]))
    refiner.finish()
    models.save(model, tokenizer, tmp_path)
    shipped(tmp_path / "model", base, tmp_path / "out")
    replay([f"base={base}", f"trajectory={log}", f"out={tmp_path / 'again'}"])
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
    kinds = {kind for kind, _ in tensors(tmp_path / "again").values()}
    assert kinds == ({"BF16", "F32"} if dtype == "auto" else {"F32"})


CODE = "from pathlib import Path\nPath({mark!r}).touch()\n"
AUTO = {
    "config": ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
    "model": ("config.json", {"auto_map": {"AutoModelForCausalLM": "own.Own"}}),
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
}


@pytest.mark.parametrize("kind", AUTO)
def test_code_that_comes_with_a_model_is_never_run(base, tmp_path, monkeypatch, kind):
    """Nor is anyone asked to allow it: a model that transformers knows needs none, another is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked to run code"))
    (base / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    name, changes = AUTO[kind]
    edit(base / name, **changes)
    if kind == "config":
        with pytest.raises(UserError, match="the model could not be loaded") as error:
            models.load(base, settings(base))
        assert "\n" not in str(error.value)
    else:
        models.load(base, settings(base))
    assert not (tmp_path / "ran").exists()
