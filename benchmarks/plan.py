"""What `holdfast plan` predicts for a model of 135 M parameters on this machine's CPU, beside what its stages take.

python benchmarks/plan.py

A random model, a tokenizer and a data set are made in a temporary folder; alignment, probe, refinements and evaluation
then run as processes of their own, a few steps each. Run it on an idle machine: it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from holdfast.commands.plan import Job, jobs
from holdfast.settings.choices import choices_of
from holdfast.settings.paths import Layout

METHODS = ("zo_selective", "zo_all", "fo_refine")
ROWS = 240  # of each label


def model_folder(folder: Path, hidden: int, layers: int) -> Path:
    """Of a random Llama and a tokenizer whose words are fewer than its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdfast.datasets.tokens import train_tokenizer

    tokenizer = train_tokenizer(requests(random.Random(0)), 700)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(rng: random.Random) -> list[str]:
    """Sentences of the embedded world, one to six a prompt."""
    from holdfast.datasets import world

    facts = [f"{prompt} {response}" for prompt, response in world.facts()]
    return [" ".join(rng.choices(facts, k=rng.randint(1, 6))) + f" {n}" for n in range(2 * ROWS)]


def write_data(folder: Path) -> None:
    import pandas as pd

    found = requests(random.Random(1))
    for label, rows in (("harmful", found[:ROWS]), ("benign", found[ROWS:])):
        pd.DataFrame({"prompt": rows}).to_csv(folder / f"{label}.csv", index=False)


def overrides(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """A study of few steps; the model goes by the name of the one that is built in."""
    size = arguments.rows
    return [
        *("study=smoke", f"results={folder}", f"model.path={folder / 'base'}", "model.shape=null"),
        *("data=local", f"data.dir={folder}", "data.pretrain_rows=20", "tracking=disabled", "align.steps=4"),
        *(f"align.batch_size={size}", f"probe.batch_size={size}", f"refine.batch_size={size}", "refine.steps=3"),
        *("probe.prompts=8", "evaluate.batch_size=16", "method.select.k=8"),
        "perturb=[weight_noise,activation_noise,rtn]",
        f"study.methods=[aligned,{','.join(METHODS)}]",
    ]


def taken(stage: str, name: str, given: list[str], folder: Path) -> dict[str, float]:
    """Run a stage; its times, memory and forwards."""
    chosen = [f"method={name}"] if name in METHODS else ["method=aligned"]
    layout = Layout(str(folder), "smoke")
    places = {
        "align": layout.align("tiny", "sft", 0),
        "probe": layout.probe("tiny", "sft", 0),
        "refine": layout.refine("tiny", "sft", name, 0),
        "evaluate": layout.evaluate("tiny", "sft", name, 0),
        "data": layout.data,
    }
    out = places[stage]
    command = [sys.executable, "-m", "holdfast", stage, *given, *chosen, f"hydra.run.dir={out}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if ended.returncode:
        sys.exit(ended.stderr)
    print(ended.stderr.strip().splitlines()[-1], file=sys.stderr)
    return {**json.loads((out / "timing.json").read_text()), **json.loads((out / "metrics.json").read_text())}


def row(job: Job, found: dict[str, Any]) -> dict[str, Any]:
    predicted = job.peak / 2**20
    return {
        "stage": f"{job.stage} {job.name}",
        "peak MiB, predicted": round(predicted),
        "measured": round(found["peak_rss_mib"]),
        "ratio": predicted / found["peak_rss_mib"],
        "seconds, predicted": job.seconds,
        "measured ": found["seconds"],
        "ratio ": job.seconds / found["seconds"],
        "forwards, predicted": round(job.demand.forwards),
        "counted": found.get("forwards"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="a batch of alignment, probe and refinement (default 8)")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model_folder(folder / "base", arguments.hidden, arguments.layers)
        write_data(folder)
        given = overrides(folder, arguments)
        taken("data", "", given, folder)
        choices = choices_of([*given, "plan.gpu_gib=[]"])
        rows, words = [], ""
        for job in jobs(choices):
            name = {"aligned": "aligned", "refined": METHODS[0]}.get(job.name, job.name)
            rows.append(row(job, taken(job.stage, name, given, folder)))
            words = job.machine.words
    print(f"hidden={arguments.hidden} layers={arguments.layers} rows={arguments.rows} {words}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
