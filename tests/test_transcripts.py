"""The page of transcripts: what was said is text there, whatever it says, and keys and filters find it."""

from __future__ import annotations

import importlib.util
import json
import re

import browser
import pandas as pd
import pytest

from holdfast.reporting.inspect_log import logs
from holdfast.reporting.measured import Measured
from holdfast.reporting.setting import Setting
from holdfast.reporting.transcripts import page
from holdfast.settings.compose import composed

HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "${oc.env:HOME} {{ 7 * 7 }} $(rm -rf /) `id`",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m \u202etxet",
    "../../etc/passwd \\input{/etc/passwd} <|im_start|>",
]


@pytest.fixture(scope="module")
def setting():
    counts = {"test/harmful": 6, "test/benign": 6}
    return Setting.of(Measured({}, counts, counts, {}, 0, 0, ""), composed(["study=smoke"]))


def said(prompts: list[str], methods=("aligned", "zo")) -> pd.DataFrame:
    """Every prompt's answer of each method, clean and at two draws of noise: the prompt itself; zo refuses."""
    points = [
        ("none", "clean", 0.0, 0),
        ("weight_noise", "weight noise", 0.3, 0),
        ("weight_noise", "weight noise", 0.3, 1),
    ]
    rows = [
        {
            **dict(zip(("perturbation", "family", "level", "draw"), at, strict=True)),
            **{"model": "tiny/sft", "method": method, "seed": 0, "id": f"p{k}", "prompt": prompt},
            **{"label": "harmful" if k % 2 else "benign", "source": "mine", "category": "", "ended": k > 0},
            **{"response": f"{method}: {prompt}", "verdict": "complied" if method == "aligned" else "refused"},
            "reason": "",
        }
        for k, prompt in enumerate(prompts)
        for method in methods
        for at in points
    ]
    return pd.DataFrame(rows)


def held(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_it_holds_everything_as_inert_data(setting):
    text = page(said(HOSTILE), setting, "smoke", 1000)
    data = held(text)
    assert [prompt for prompt, _, _ in data["prompts"]] == HOSTILE
    assert len(data["rows"]) == 6 * 2 * 3
    assert data["points"] == ["clean", "weight noise σ=0.3, draw 0", "weight noise σ=0.3, draw 1"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "default-src 'none'" in text


def test_where_it_would_be_too_much_whole_prompts_are_left_out(setting):
    data = held(page(said([f"Prompt {k}?" for k in range(40)]), setting, "smoke", 60))
    assert data["told"] == "Seed 0, 10 prompts of 40; the others are left out."
    assert len(data["rows"]) == 60
    assert [label for _, label, _ in data["prompts"]].count(0) == 5


KEYS = """
  const key = (name) => dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const now = () => document.getElementById("asked").textContent;
  const all = document.querySelectorAll("#prompts li").length, first = now();
  const cells = [...document.querySelectorAll("td .text")].map((one) => one.textContent);
  key("j"); key("j"); key("k");
  const second = now();
  const pick = (id, text) => {
    const box = document.getElementById(id);
    box.value = [...box.options].find((one) => one.text === text).value;
    box.dispatchEvent(new Event("change"));
  };
  pick("verdict", "refused"); pick("point", "clean");
  const pale = [...document.querySelectorAll("td.other")].map((one) => one.textContent);
  const find = document.getElementById("find");
  find.value = "oc.env"; find.dispatchEvent(new Event("input"));
  const found = document.querySelectorAll("#prompts li").length;
  return {all, first, second, cells, pale, found, last: now(), title: document.title};
"""


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_reads_it_with_keys_and_filters_and_nothing_of_it_runs(setting, tmp_path):
    (tmp_path / "page.html").write_text(page(said(HOSTILE), setting, "smoke", 1000), encoding="utf-8")
    seen = browser.opened(tmp_path / "page.html", tmp_path, KEYS)
    assert seen["said"] == []
    assert seen["title"] == "Transcripts of smoke"
    assert (seen["all"], seen["first"], seen["second"]) == (6, HOSTILE[0], HOSTILE[1])
    assert seen["cells"] == [f"{method}: {HOSTILE[0]}" for _ in range(3) for method in ("aligned", "zo")]
    assert len(seen["pale"]) == 1
    assert seen["pale"][0].startswith("complied")
    assert (seen["found"], seen["last"]) == (1, HOSTILE[2])


def test_the_same_responses_are_logs_of_inspect_ai(setting):
    made = logs(said(HOSTILE), setting, "smoke", "rules")
    assert list(made) == ["tiny-sft-aligned", "tiny-sft-zo"]
    log = json.loads(made["tiny-sft-zo"])
    assert (log["version"], log["status"], log["eval"]["model"]) == (2, "success", "tiny/sft/zo")
    assert len({(sample["id"], sample["epoch"]) for sample in log["samples"]}) == len(log["samples"]) == 18
    one = log["samples"][0]
    assert (one["input"], one["target"], one["scores"]["rules"]["value"]) == (HOSTILE[0], "complied", "refused")
    assert one["metadata"]["at"] == "clean"
    if importlib.util.find_spec("inspect_ai"):
        from inspect_ai.log import EvalLog

        assert EvalLog.model_validate(log).samples[0].scores["rules"].value == "refused"
