"""One source: filters, contexts, addresses and the Hub, and the files of conf/source."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pandas as pd
import pytest

from holdfast.datasets.sources import read
from holdfast.errors import UserError
from holdfast.settings.compose import composed
from holdfast.settings.paths import CONF

PROMPTS = [f"How do I harm target number {i}?" for i in range(6)]


def source(**changes):
    given = composed(["data=local"]).data.sources["harmful"].model_dump()
    return given | changes | {"columns": given["columns"] | changes.get("columns", {})}


@pytest.fixture
def folder(tmp_path):
    frame = pd.DataFrame({"prompt": PROMPTS, "kind": ["text", "picture"] * 3, "about": ["", "A story."] * 3})
    frame.to_csv(tmp_path / "harmful.csv", index=False)
    return tmp_path


def test_a_filter_keeps_rows_and_says_how_many_it_left_out(folder):
    frame, notes = read("mine", source(where={"kind": ["text"]}), str(folder))
    assert list(frame["prompt"]) == PROMPTS[::2]
    assert notes == {"left_out": 3}


def test_a_filter_by_a_pattern(folder):
    frame, notes = read("mine", source(where={"kind": ["text"]}, matches={"about": "^$"}), str(folder))
    assert list(frame["prompt"]) == PROMPTS[::2]
    frame, notes = read("mine", source(matches={"about": r"(?i)\bSTORY\b"}), str(folder))
    assert list(frame["prompt"]) == PROMPTS[1::2]
    assert notes == {"left_out": 3}


def test_a_filter_on_truth_values(tmp_path):
    pd.DataFrame({"prompt": PROMPTS, "is_safe": [True, False] * 3}).to_parquet(tmp_path / "x.parquet")
    where = composed(["data=local", "source=[beavertails]"]).data.sources["beavertails"].where
    frame, _ = read("mine", source(file="x.parquet", where=where), str(tmp_path))
    assert list(frame["prompt"]) == PROMPTS[1::2]


def test_categories_by_their_truth_values_are_named(tmp_path):
    """The form of BeaverTails, whose rows have all categories that there are."""
    held = [{"theft": i % 2 == 0, "abuse": i == 0} for i in range(6)]
    pd.DataFrame({"prompt": PROMPTS, "is_safe": [False] * 6, "category": held}).to_parquet(tmp_path / "x.parquet")
    given = composed(["data=local", "source=[beavertails]"]).data.sources["beavertails"].model_dump()
    frame, _ = read("mine", given | {"file": "x.parquet"}, str(tmp_path))
    assert frame["category"].tolist() == ["abuse, theft", "", "theft", "", "theft", ""]


@pytest.mark.parametrize("role", ["category", "group"])
def test_a_column_that_a_copy_of_the_file_lacks(folder, role):
    frame, _ = read("mine", source(columns={role: "kind"}), str(folder))
    assert frame[role].tolist() == ["text", "picture"] * 3
    frame, _ = read("mine", source(columns={role: "absent"}), str(folder))
    assert frame[role].tolist() == [""] * 6


PKU = {
    "prompt": PROMPTS,
    "response_0": [f"first {i}" for i in range(6)],
    "response_1": [f"second {i}" for i in range(6)],
    "safer_response_id": [0, 1, 0, 1, 0, 1],
    "is_response_0_safe": [True, False, False, True, True, False],
    "is_response_1_safe": [True, True, False, False, False, True],
}


def pair(tmp_path, suffix="jsonl", **changed):
    frame = pd.DataFrame(PKU | changed)
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "x.parquet")
    given = composed(["data=local", "source=[pku_saferlhf]"]).data.sources["pku_saferlhf"].model_dump()
    return read("pku", given | {"file": f"x.{suffix}"}, str(tmp_path))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_of_two_candidates_the_safer_is_learned_if_it_is_safe(tmp_path, suffix):
    frame, notes = pair(tmp_path, suffix)
    assert frame["prompt"].tolist() == [PROMPTS[i] for i in (0, 1, 4, 5)]
    assert frame["response"].tolist() == ["first 0", "second 1", "first 4", "second 5"]
    assert frame["rejected"].tolist() == ["second 0", "first 1", "second 4", "first 5"]
    assert notes == {"left_out": 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"safer_response_id": [0, 1, 2, 0, 1, 0]}, "pair.chosen=safer_response_id: holds '2'; give 0 or 1"),
        ({"safer_response_id": [0, 1, None, 0, 1, 0]}, "pair.chosen=safer_response_id: holds "),
    ],
)
def test_an_index_of_no_candidate_is_refused(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        pair(tmp_path, **changed)


def test_a_missing_column_of_a_pair_is_named(folder):
    given = composed(["data=local", "source=[pku_saferlhf]"]).data.sources["pku_saferlhf"].model_dump()
    with pytest.raises(UserError, match=r"columns.pair.candidates=response_0: no such column; the data have prompt"):
        read("pku", given | {"file": "harmful.csv"}, str(folder))


def test_a_context_precedes_its_prompt(folder):
    frame, _ = read("mine", source(columns={"context": "about"}), str(folder))
    assert list(frame["prompt"][:2]) == [PROMPTS[0], f"A story.\n\n---\n\n{PROMPTS[1]}"]


def test_an_address_is_read_like_a_file(folder):
    frame, _ = read("mine", source(file=(folder / "harmful.csv").as_uri()), None)
    assert list(frame["prompt"]) == PROMPTS


class Builder:
    hash = "f" * 40

    def download_and_prepare(self):
        pass

    def as_dataset(self, split):
        assert split == "test"
        return types.SimpleNamespace(to_pandas=lambda: pd.DataFrame({"prompt": PROMPTS}))


def from_hub(monkeypatch, answer, **changes):
    def builder(hub, subset, revision, **options):
        assert (hub, subset, options) == ("us/prompts", "english", {"data_files": "x.csv"})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    hub = {"file": None, "hub": "us/prompts", "subset": "english", "hub_split": "test"}
    return read("mine", source(**hub, hub_options={"data_files": "x.csv"}, **changes), None)


def test_a_data_set_of_the_hub_records_its_revision(monkeypatch, capsys):
    frame, notes = from_hub(monkeypatch, Builder())
    assert list(frame["prompt"]) == PROMPTS
    assert notes == {"revision": "f" * 40}
    assert f"us/prompts came as revision={'f' * 40}; pin it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "changes", "message"),
    [
        (
            ConnectionError("Couldn't reach 'us/prompts'"),
            {},
            "us/prompts: not loaded .*reach.*data.sources.mine.file=",
        ),
        (
            ValueError("'us/prompts' is a gated dataset\non"),
            {},
            "https://huggingface.co/datasets/us/prompts.*mine.file=",
        ),
        (Builder(), {"revision": "a" * 40}, f"revision={'a' * 40}: us/prompts came as {'f' * 40}"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_line(monkeypatch, answer, changes, message):
    with pytest.raises(UserError, match=message) as error:
        from_hub(monkeypatch, answer, **changes)
    assert "\n" not in str(error.value)


def test_no_network_is_said_in_one_line(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = stage("data", "data=local", "source=[hex_phi]", "tracking=disabled", cwd=tmp_path)
    assert ended.returncode == 1
    for part in ("LLM-Tuning-Safety/HEx-PHI", "HF_HUB_OFFLINE is set", "data.sources.hex_phi.file=…"):
        assert part in ended.stderr.strip().splitlines()[-1]


def test_a_file_goes_before_the_hub(folder):
    cfg = composed(["data=local", "source=[orbench_toxic]", "data.sources.orbench_toxic.file=harmful.csv"])
    frame, notes = read("mine", cfg.data.sources["orbench_toxic"].model_dump(), str(folder))
    assert list(frame["prompt"]) == PROMPTS
    assert notes == {}


def test_a_file_without_header_and_with_a_prompt_a_line(tmp_path):
    """The form of HEx-PHI, whether its lines are quoted or bare; its own loader reads a folder like the Hub."""
    (tmp_path / "category_1.csv").write_text('First, second and third\n"He said ""x"", then left"\n')
    (tmp_path / "category_10.csv").write_text("Another\n")
    hex_phi = composed(["data=local", "source=[hex_phi]"]).data.sources["hex_phi"].model_dump()
    hex_phi["hub_options"]["cache_dir"] = str(tmp_path / "cache")
    frame, _ = read("hex_phi", hex_phi | {"hub": str(tmp_path)}, None)
    assert list(frame["prompt"]) == ["First, second and third", 'He said "x", then left', "Another"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "source").glob("*.yaml")))
def test_sources_compose_are_pinned_and_listed(name):
    sources = composed(["data=local", f"source=[{name}]"]).data.sources
    assert list(sources) == [name]
    given = sources[name]
    assert (given.file is None) != (given.hub is None)
    if given.file and "://" in given.file:
        assert re.search(r"/[0-9a-f]{40}/", given.file)
    if given.hub and name != "hex_phi":
        assert re.fullmatch(r"[0-9a-f]{40}", given.revision)
    shares = given.label_splits.benign or given.splits
    if given.label != "harmful" and name != "built_in_benign":  # the threshold is set on what it is applied to
        assert shares.get("threshold", 0) == shares.get("test", 0) > 0
    assert f"`{name}`" in (Path(__file__).resolve().parents[1] / "docs/extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+data.sources.harmful.splits.tset=1", "no split tset; choose from refine, train, test"),
        ("data.sources.harmful.splits.test=-1", "none below 0"),
        ("+data.sources.harmful.label_splits.benign={tset: 1}", "label_splits.benign=.*: no split tset; choose from"),
        ("+data.sources.harmful.label_splits.bening={test: 1}", "no such key; did you mean benign"),
        ("data.near_duplicates.share=1.5", "data.near_duplicates.share=1.5: must be at most 1"),
        ("data.near_duplicates.wrods=3", "did you mean words"),
        ("data.responses=own", "data.responses=own: choose one of stand_in, self"),
        ("+data.sources.harmful.labels.a=bad", "labels.a=bad: choose one of harmful, benign"),
        ("+data.sources.harmful.where.kind=[]", "where.kind: the list is empty"),
        ("+data.sources.harmful.matches.kind='(a'", "matches.kind=[(]a: .* is no regular expression"),
        ("data.sources.harmful.columns.rejected=bad", "give the preferred answer too, as columns.response"),
        ("data=world", r"source=\[harmful\] is not for data=world; add data=local"),
    ],
)
def test_bad_settings_are_refused_in_one_line(override, message):
    with pytest.raises(UserError, match=message) as error:
        composed(["data=local", "source=[harmful]", override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("response=a", r"columns.response=a: columns.pair gives the responses"),
        ("pair.candidates=[a]", r"columns.pair.candidates=\[a\]: give two columns"),
        ("pair.required=[a,b,c]", r"columns.pair.required=\[a,b,c\]: give two columns"),
    ],
)
def test_bad_pairs_are_refused_in_one_line(override, message):
    with pytest.raises(UserError, match=message):
        composed(["data=local", "source=[pku_saferlhf]", f"data.sources.pku_saferlhf.columns.{override}"])
