"""The folder that is shipped: a refined model in the form of its base, its trajectory, and a card."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from holdfast.errors import UserError
from holdfast.models.card import Said, Shown, card
from holdfast.models.checkpoints import INDEX, WEIGHTS, dtype_of, mapping, shards, tensors
from holdfast.runtime.files import write_text
from holdfast.settings.options import Config

TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LOGS = ("trajectory.jsonl", "directions.safetensors")
FORM = [
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "chat_template.*"),
]
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def package(refined: Path, base: Path, given: str, cfg: Config, shown: Shown, out: Path) -> None:
    """Write `out`, whole or not at all, from the run folder of a refinement; `given` is how the user named `base`, and
    `shown` what the card says was measured.

    Raises `UserError` as `dressed` does, and where the refined model has another type, if `model.dtype` is auto.
    """
    made, temporary = refined / "model", out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if cfg.model.dtype == "auto" and dtype_of(made) != dtype_of(base):
        raise UserError(f"{made}: is {dtype_of(made)}, in {base} {dtype_of(base)}; give the base that it was made of")
    said = dressed(made, base, temporary)
    for pattern in TERMS:
        for path in base.glob(pattern):
            shutil.copy2(path, temporary)
    for path in (*map(refined.joinpath, LOGS), *([shown.figure] if shown.figure else [])):
        if path.exists():
            shutil.copy2(path, temporary)
    write_text(temporary / "README.md", card(refined, base, given, cfg, said, shown))
    if out.is_dir():
        out.rmdir()
    os.replace(temporary, out)


def dressed(made: Path, base: Path, out: Path) -> Said:
    """Write the model in `made`, as save_pretrained left it, to the folder `out` in the form of `base`.

    Converters and servers look tensors up by name: the shards, and what is in each, are the base's. What refinement
    did not change is the base's own bytes, also where loading cast it to one type for all. So are the files beside the
    weights: what transformers makes of them, its earlier versions do not read. Raises `UserError` where `made` has a
    tensor that the base has not, or in another shape.
    """
    ours, theirs = tensors(made), tensors(base)
    if strange := sorted(ours.keys() - theirs.keys()):
        raise UserError(f"{made}: tensors are named otherwise than in {base}: {', '.join(strange[:4])}")
    if reshaped := sorted(name for name in ours if ours[name][1] != theirs[name][1]):
        raise UserError(f"{made}: {reshaped[0]} is {ours[reshaped[0]][1]}, in {base} {theirs[reshaped[0]][1]}")
    asked = None if dtype_of(made) == dtype_of(base) else dtype_of(made)
    # A configuration may name a wider type than its files have, in which what was refined would be rounded.
    kept = asked is None and all(theirs[name][0] in (kind, "F32") for name, (kind, _) in ours.items())
    _write_weights(made, base, out, kept)
    return Said(_tensors(ours, theirs, kept, asked), _write_files(made, base, out, asked))


def _tensors(ours: dict[str, Any], theirs: dict[str, Any], kept: bool, asked: str | None) -> str:
    retyped = sorted(name for name, (kind, _) in ours.items() if not kept and theirs[name][0] != kind)
    if not retyped:
        return "names and types are those of the base"
    why = "as asked for" if asked else "as config.json says"
    return f"the names of the base; {len(retyped)} of {len(ours)} are {ours[retyped[0]][0]}, {why}"


def _write_weights(made: Path, base: Path, out: Path, kept: bool) -> None:
    """Shard by shard; with `kept`, in the types of the base. What transformers does not read stays as it is."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    size, index = 0, base / INDEX
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in shards(made)]
        held = {name: file for file in files for name in file.offset_keys()}
        for path in shards(base):
            file, found = stack.enter_context(safe_open(path, "pt")), {}
            for name in file.offset_keys():
                # A tied head need not be stored twice, and is not by save_pretrained.
                ours = name if name in held else EMBEDDINGS if name == HEAD else None
                theirs = file.get_tensor(name)
                found[name] = theirs if ours is None else _written(held[ours].get_tensor(ours), theirs, kept)
            save_file(found, out / path.name, metadata=file.metadata())
            (out / path.name).chmod(0o644)  # safetensors writes for the owner alone
            size += sum(tensor.nbytes for tensor in found.values())
    if shards(base) == [base / WEIGHTS]:
        return
    if kept:
        shutil.copyfile(index, out / INDEX)
    else:
        sized = {"metadata": {**(mapping(index).get("metadata") or {}), "total_size": size}}
        write_text(out / INDEX, json.dumps(mapping(index) | sized, indent=2) + "\n")


def _written(ours: Any, theirs: Any, kept: bool) -> Any:
    import torch

    dtype = theirs.dtype if kept else ours.dtype
    same = dtype == theirs.dtype and torch.equal(theirs.to(ours.dtype), ours)
    return theirs if same else ours.to(dtype, copy=True)


def _write_files(made: Path, base: Path, out: Path, asked: str | None) -> str:
    """All but the weights; gives what the card says of them. `asked`: a type of the weights that is not the base's."""
    from transformers import AutoTokenizer

    for path in (path for pattern in FORM for path in base.glob(pattern) if path.is_file()):
        shutil.copyfile(path, out / path.name)
    said, config = "the base's own files, byte for byte", mapping(base / "config.json")
    if keys := [key for key in ("dtype", "torch_dtype") if asked and key in config]:
        write_text(out / "config.json", json.dumps(config | dict.fromkeys(keys, asked), indent=2) + "\n")
        said += f", but for {keys[0]} in config.json, which is {asked}"
    template = made / "chat_template.jinja"
    if template.is_file() and AutoTokenizer.from_pretrained(base, trust_remote_code=False).chat_template is None:
        shutil.copyfile(template, out / template.name)
        said += ", and a chat template, as given in the configuration: the base has none"
    return said
