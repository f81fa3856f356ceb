"""The plan of a study: counts that are known, memory that is counted again, and what it says of one GPU or another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import UserError
from holdfast.planning import memory, work
from holdfast.planning.demand import Case
from holdfast.planning.memory import Sizes
from holdfast.planning.remedies import STAGES, remedy, with_values
from holdfast.planning.shape import Shape, config_of, shape_of
from holdfast.planning.texts import Texts
from holdfast.planning.work import Machine, Pass
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.settings.schema import Model

STATED = ["plan.flops=4e14", "plan.bandwidth=2.5e12"]
PARAMETERS = {
    "llama-3.1-8b-instruct": 8.030,
    "llama-3.2-3b-instruct": 3.213,
    "llama-3.2-1b-instruct": 1.236,
    "llama-2-7b": 6.738,
    "llama-2-7b-chat": 6.738,
    "mistral-7b-instruct": 7.248,
    "qwen2.5-0.5b-instruct": 0.494,
    "qwen2.5-1.5b-instruct": 1.544,
    "qwen2.5-7b-instruct": 7.616,
    "gemma-2-2b-it": 2.614,
}


def case_of(model: str, *overrides: str, cuda: bool = True) -> Case:
    cfg = composed(["study=paper", f"model={model}", *overrides])
    return Case(cfg, shape_of(cfg.model, cfg.data.vocabulary), Texts(cfg), cuda)


@cache
def refining(method: str) -> Case:
    return case_of("llama-3.1-8b-instruct", f"method={method}")


@pytest.fixture(scope="module")
def llama_8b() -> Case:
    return case_of("llama-3.1-8b-instruct")


@pytest.fixture(scope="module")
def shape(llama_8b) -> Shape:
    return llama_8b.shape


def plan(*overrides: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", "plan", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | more)


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_are_those_that_are_known(model):
    cfg = composed([f"model={model}"])
    assert shape_of(cfg.model, 0).parameters / 1e9 == pytest.approx(PARAMETERS[model], abs=6e-4)


def test_the_model_made_in_the_run_is_counted_from_its_shape(tokenizer):
    found = shape_of(composed(["study=tiny"]).model, 1024)
    assert len(found.layers) == 6
    assert found.parameters == pytest.approx(1.25e6, rel=0.02)


def test_a_folder_goes_before_the_architecture(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    cfg = composed(["model=llama-3.1-8b-instruct", f"model.path={tmp_path}"])
    assert shape_of(cfg.model, 0).parameters == sum(p.numel() for p in llama.parameters())


BAD = [
    (["study=papr"], "study=papr: no such choice"),
    (["study=paper", "plan.gpu_gib=[0]"], "plan.gpu_gib=0: must be above 0"),
    (["plan.flops=-1"], "plan.flops=-1: must be above 0"),
    (["data=local"], "evaluate.prompts: no cap for test/benign, and the data set is not made; give one"),
    (["model.path=a/b", "model.shape=null"], "model=tiny: no configuration of a/b is on this machine"),
    (["study=paper", "model.architecture.model_type=lama"], "model.architecture: transformers makes no model of it"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_answered_in_one_line(overrides, message, tmp_path):
    ended = plan(*STATED, f"results={tmp_path}", *overrides)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert ended.stderr.strip().count("\n") == 0
    assert not ended.stdout


def test_eight_billion_parameters_fit_on_one_gpu_and_not_on_the_other(tmp_path):
    ended = plan("study=paper", "study.models=[llama-3.1-8b-instruct]", f"results={tmp_path}", *STATED)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    rows = {tuple(line.split()[1:3]): line for line in ended.stdout.splitlines() if line.startswith("llama-3.1")}
    assert rows["evaluate", "aligned"].split()[5:7] == ["yes", "NO"]
    assert rows["refine", "zo_all"].split()[5:7] == ["yes", "yes"]
    assert "evaluate aligned: 84.2 GiB do not fit on 80 GiB; would fit: without the perturbations" in ended.stdout
    assert rows["align", "sft"].split()[5:7] == ["NO", "NO"]  # 16 bytes a weight of 8 B
    lora = "LoRA of rank 16 in the place of full fine-tuning"
    assert f"align sft: 161.0 GiB do not fit on 141 GiB; would fit: {lora}" in ended.stdout
    top = "method.select.rule=top_k method.select.k=8"
    assert f"fo_refine: 132.7 GiB do not fit on 80 GiB; would fit: {top}" in ended.stdout


def test_a_remedy_fits_and_what_is_proposed_next_takes_less(llama_8b):
    room = 60 * 2**30
    assert "LoRA" in remedy("align", llama_8b, room)
    subspace = refining("zo_alignment_subspace")
    assert remedy("refine", subspace, 60 * 2**30) == "method.select.rule=top_k method.select.k=16"
    assert remedy("probe", llama_8b, 2**30).startswith("nothing that can be set here")
    smaller = with_values(llama_8b, {"probe.batch_size": 4, "probe.online.batch_size": 4})
    assert STAGES["probe"](smaller).memory < STAGES["probe"](llama_8b).memory


batches = st.builds(Sizes, st.integers(1, 64), st.integers(1, 512), st.integers(1, 512))


@settings(max_examples=50, deadline=None)
@given(batches, batches)
def test_memory_grows_with_the_batch(shape, one, other):
    larger = Sizes(
        *(
            max(pair)
            for pair in zip(
                (one.rows, one.tokens, one.columns), (other.rows, other.tokens, other.columns), strict=True
            )
        )
    )
    for cost in (
        memory.forward,
        lambda s, b: memory.backward(s, b, 4),
        lambda s, b: memory.trainer_backward(s, b, True),
    ):
        assert cost(shape, one) <= cost(shape, larger)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["zo_all", "zo_lora", "zo_alignment_subspace", "fo_refine", "sam", "fo_smoothed"]),
    st.integers(1, 31),
)
def test_memory_grows_with_the_layers_that_are_refined(method, k):
    few, more = (
        STAGES["refine"](with_values(refining(method), {"method.select.rule": "top_k", "method.select.k": count}))
        for count in (k, k + 1)
    )
    assert few.memory < more.memory
    assert few.forwards == more.forwards


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(STAGES)), st.integers(1, 5))
def test_memory_grows_with_the_rows_of_a_stage(llama_8b, stage, doublings):
    key = {"probe": "probe.online.batch_size", "judge": "referee.batch_size"}.get(stage, f"{stage}.batch_size")
    rows = 2**doublings
    small, large = (STAGES[stage](with_values(llama_8b, {key: size})) for size in (rows, 2 * rows))
    assert small.memory <= large.memory


def test_zeroth_order_needs_less_than_first_order():
    methods = ("zo_all", "fo_lora", "fo_refine", "fo_line_search")
    memories = [STAGES["refine"](refining(method)).memory for method in methods]
    assert memories == sorted(memories)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_backward_keeps_is_what_is_counted(kind, dtype):
    """The tensors that autograd saves in two layers more, against the formula."""
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 64, "head_dim": 16}
    batch = Sizes(3, 24, 1)

    def of_sizes(layers: int) -> Model:
        architecture = {"model_type": kind, "num_hidden_layers": layers, **sizes}
        return composed(["model=llama-2-7b", f"model.dtype={dtype}"]).model.model_copy(
            update={"architecture": architecture}
        )

    def kept(layers: int) -> int:
        cfg = of_sizes(layers)
        model = AutoModelForCausalLM.from_config(config_of(cfg, 0), dtype=getattr(torch, dtype))
        for name, p in model.named_parameters():
            p.requires_grad_(p.dim() > 1 and ".layers." in name)
        own, found = {p.data_ptr() for p in model.parameters()}, {}

        def pack(tensor):
            if tensor.data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        attention = torch.ones(batch.rows, batch.tokens, dtype=torch.long)
        attention[0, -3:] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.full_like(attention, 5), attention_mask=attention, logits_to_keep=1)
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    predicted = memory.saved(shape_of(of_sizes(2), 0), batch, layers=2, full=False)
    assert kept(4) - kept(2) == pytest.approx(predicted, rel=0.1)


def test_a_pass_takes_the_longer_of_computing_and_reading():
    machine = Machine(flops=100.0, bandwidth=10.0, words="")
    assert Pass(flops=200, weights=5).seconds(machine) == 2
    assert Pass(flops=50, weights=30, moved=10, times=2).seconds(machine) == 8


def test_forwards_and_sequences_are_those_that_stages_report(tmp_path):
    """Against `forwards` in the metrics of the stages: see `holdfast.recipes` and `holdfast.methods`."""
    given = ("study=tiny", f"results={tmp_path}", "refine.steps=5", "refine.queries=4")
    case = case_of("tiny", *given, cuda=False)
    assert STAGES["align"](case).forwards == 3 * 80
    assert STAGES["align"](case).sequences == 3 * 80 * 32
    assert STAGES["refine"](case).forwards == 2 * 4 * 5
    assert STAGES["refine"](case).sequences == 2 * 4 * 5 * 8 * 2  # an opening a side
    for method, step in (("fo_refine", 3), ("sam", 6)):
        case = case_of("tiny", *given, f"method={method}", cuda=False)
        assert STAGES["refine"](case).forwards == step * (2 * 4 * 5 // step)


def test_lengths_come_from_the_data_set_once_it_is_made(tmp_path, tokenizer):
    import pandas as pd

    given = ("study=paper", f"results={tmp_path}", "plan.prompt_tokens=99", "elicit.max_new_tokens=50")
    cfg = composed([*given, "elicit.prompts=0"])
    assert Texts(cfg).padded("nll", 4, 10_000).tokens == pytest.approx(99 + 256, abs=1)
    folder = tmp_path / "paper" / "data"
    folder.mkdir(parents=True)
    rows = [("train", label, "x" * 40, "y" * 80) for label in ("harmful", "benign")]
    pd.DataFrame(rows, columns=["split", "label", "prompt", "response"]).to_parquet(folder / "prompts.parquet")
    assert Texts(cfg).padded("nll", 4, 4).tokens == 10 + 8 + 20 + 1
    assert Texts(cfg).packed("nll", 4, 4) == Sizes(4, 10 + 8 + 20, 20 + 1)  # nothing follows the last token
    own = Texts(composed([*given, "elicit.prompts=7"]))  # answers of the model's own, which end where they are cut
    assert own.packed("nll", 4, 4) == Sizes(4, 10 + 8 + 50 - 1, 50)
    assert len(own.taught) == 2
    openings = Texts(cfg).loss
    assert Texts(cfg).packed("margin", 4, 4).tokens == 10 + 8 + sum(openings) - len(openings)


def test_a_split_without_rows_takes_nothing_and_waiting_prompts_take_their_answers(tmp_path, tokenizer):
    """As in a data set whose tuning split has no harmful prompts, and whose benign ones the model answers itself."""
    layout, base = Layout(str(tmp_path), "smoke"), tmp_path / "base"
    save_prompts(layout, 6)
    rows = pd.read_parquet(layout.data / "prompts.parquet")
    rows = rows[(rows["split"] != "tune") | (rows["label"] != "harmful")]
    rows.loc[rows["label"] == "benign", "response"] = ""
    rows.to_parquet(layout.data / "prompts.parquet")
    save_aligned(base, tokenizer)
    own = (f"results={tmp_path}", f"model.path={base / 'model'}", "model.shape=null", "plan.gpu_gib=[]")
    own += ("data=local", "data.responses=self", "answer.max_new_tokens=9", "evaluate.prompts={}")
    ended = plan("study=smoke", *own, *STATED)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"answer +1 .* (\d+) +\d+ s", ended.stdout)
    texts = Texts(composed(["study=smoke", *own]))
    assert set(texts.waiting("train", 4).responses) == {9.0}
    assert len(texts.evaluated("tune", "harmful")) == 0
    template = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)
    assert texts.template == len(template["input_ids"]) > 0


def test_throughput_is_measured_where_none_is_stated():
    found = work.measured("float32")
    assert found.flops > 1e8
    assert found.bandwidth > 1e8
    with pytest.raises(UserError, match=r"plan\.bandwidth"):
        composed(["plan.bandwidth=0"])
