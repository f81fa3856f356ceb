"""Without a network every model and data set of `conf/` says in one line what it is, and what to do instead."""

from __future__ import annotations

import pytest

from holdfast.datasets.sources import read
from holdfast.errors import UserError
from holdfast.models.load import fetched
from holdfast.settings.compose import composed
from holdfast.settings.paths import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SOURCES = sorted(
    {path.stem for path in (CONF / "source").glob("*.yaml")} - {"built_in_benign"}
)  # that is always there


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing in any cache."""
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)


def said(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("tiny", "own")])
def test_a_model(offline, name):
    path = composed([f"model={name}"]).model.path
    with pytest.raises(UserError) as error:
        fetched(path)
    for words in (path, "model.path=<local folder>", "HF_HOME", f"https://huggingface.co/{path}", "licence"):
        assert words in said(error)


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set(offline, name):
    source = composed(["data=local", f"source=[{name}]"]).data.sources[name].model_dump()
    with pytest.raises(UserError) as error:
        read(name, source, "nowhere")
    told = said(error)
    assert (source["hub"] or source["file"]) in told
    assert f"data.sources.{name}.file=" in told
