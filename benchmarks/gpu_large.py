"""A random bfloat16 model of 8 B parameters through the stages' own code: probe, 20 steps on 4 layers, evaluation.

Its weights stay on the card: where a stage would load or save them, it is given them, or nothing is written.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from zo_step import SHAPES, build

SHAPE = "llama-8b"
GIB = 2**30


def overrides(folder: Path) -> list[str]:
    """What both the plan and the stages are given."""
    prompts = ",".join(f"{part}: 32" for part in ("test/harmful", "test/benign", "threshold/benign", "tune/harmful"))
    return [
        *("study=harden", f"results={folder}", f"model.path={folder / 'base'}", "data=world", "tracking=disabled"),
        *("model.dtype=bfloat16", "probe.draws=1", "probe.prompts=16", "probe.batch_size=8", "probe.sigma=0.1"),
        *("refine.steps=20", "refine.queries=1", "refine.batch_size=16", "method.select.k=4"),
        *("perturb=[nf4,w4a8]", "perturb.nf4.generate=[4]", "evaluate.batch_size=32", "evaluate.max_new_tokens=16"),
        *(f"evaluate.prompts={{{prompts}}}", "claims.families={quantization: {perturbation: nf4, level: 4}}"),
        "plan.gpu_gib=[80]",
    ]


def run() -> dict[str, Any]:
    import torch

    from holdfast.commands.plan import jobs
    from holdfast.models import load as models
    from holdfast.settings.choices import choices_of

    model = build(SHAPE, torch.bfloat16, "cuda")
    model.config.dtype = torch.bfloat16
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.config.save_pretrained(folder / "base")  # type: ignore[operator]
        given = overrides(folder)
        tokenizer = _data(folder, given)
        tokenizer.save_pretrained(folder / "base")
        models.load = lambda *_: (model, tokenizer)  # type: ignore[assignment]
        models.save = lambda *_: None  # type: ignore[assignment]
        planned = {job.stage + job.name.replace("zo_selective", ""): job for job in jobs(choices_of(given))}
        for stage, method in (("probe", "aligned"), ("refine", "zo_selective"), ("evaluate", "aligned")):
            rows.append(_row(stage, method, given, planned[stage + ("aligned" if stage == "evaluate" else "")]))
    parameters = sum(p.numel() for p in model.parameters())
    return {"shape": SHAPE, "layers": SHAPES[SHAPE][2], "parameters": parameters, "rows": rows}


def _row(stage: str, method: str, given: list[str], planned: Any) -> dict[str, Any]:
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    out = _stage(stage, [*given, f"method={method}"])
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() / GIB
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {
        "stage": stage,
        "seconds": seconds,
        "peak GiB": peak,
        "planned GiB": planned.demand.memory / GIB,
        "measured / planned": peak / (planned.demand.memory / GIB),
        "seconds planned": planned.seconds,
        "what": ", ".join(found.get("layers", [])),
    }


def _data(folder: Path, given: list[str]) -> Any:
    """The embedded world's prompts, and its tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(_stage("data", given) / "tokenizer")


def _stage(stage: str, given: list[str]) -> Path:
    """Run a stage in this process; its folder."""
    import importlib

    from holdfast.runtime.origin import Origin
    from holdfast.runtime.run import Names, Run
    from holdfast.runtime.tracking import Tracker
    from holdfast.settings.compose import composed
    from holdfast.settings.paths import Layout

    cfg = composed(given)
    layout, names = Layout.of(cfg), Names(cfg.model.name, cfg.align.name, cfg.method.name)
    out = {
        "data": layout.data,
        "probe": layout.probe(*names[:2], cfg.seed),
        "refine": layout.refine(*names, cfg.seed),
        "evaluate": layout.evaluate(*names, cfg.seed),
    }[stage]
    out.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"holdfast.stages.{stage}")
    granted, tracker = cfg.only(module.STAGE.reads), Tracker(cfg, stage, stage, {}, out, {})
    module.run(Run(stage, stage, granted, cfg.seed, names, layout, out, tracker, Origin.of(cfg, given)))
    return out
