"""What each method of a study gains on prompts that no refinement has seen, beside the forwards that it took.

HOLDFAST_DATA=… python benchmarks/coordinates.py results/smollm2/smollm2-135m-instruct/sft --figure gain.png \
    [name=<run folder of a refinement> …]

The loss is the NLL, under weight noise, of the aligned model's own refusals of harmful training prompts and of its own
answers to benign ones; the prompts are those that the stage `elicit` left out. All checkpoints meet the same prompts
and the same antithetic draws. Intervals are of the mean change over prompts, paired, from redraws of the prompts. What
is chosen by this table is not chosen on test prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from holdfast.methods.batches import Batches
from holdfast.methods.losses import nll
from holdfast.models.load import load, prompts_of
from holdfast.runtime.memory import Parts
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.stages.answer import answered
from holdfast.stages.elicit import own_answers, split_of
from holdfast.zo import decoder_layers, weight_groups
from holdfast.zo.perturb import Masters

SEED = 2**34  # of the noise: neither of refinement nor of evaluation
LABELS = ("harmful", "benign")


def prompts(run: Path, count: int) -> pd.DataFrame:
    """So many prompts of each label that no refinement of this run has seen, from where refinement takes its own."""
    layout = Layout(str(run.parents[2]), run.parents[1].name)
    seen = set(pd.read_parquet(run / "elicit/s0/own.parquet")["id"])
    found = [prompts_of(layout, split_of(layout, label), label) for label in LABELS]
    return pd.concat([mine[~mine["id"].isin(seen)].sample(count, random_state=0) for mine in found])


@torch.inference_mode()
def losses(folder: Path, batches: Batches, cfg, sigma: float, draws: int) -> dict[str, np.ndarray]:
    """Label -> (examples,) mean loss over the draws."""
    model, _ = load(folder, cfg.model)
    groups = weight_groups(model)
    masters = Masters({k: p for layer in decoder_layers(groups) for k, p in groups[layer].items()}, seed=SEED)
    found = {label: np.zeros(len(batches.examples[label])) for label in LABELS}
    for step in range(draws):
        for sign in (1, -1):
            masters.write(sign * sigma, step=step, query=0)
            for label, examples in batches.examples.items():
                parts = [nll(model, batches.encode(examples[k : k + 8])) for k in range(0, len(examples), 8)]
                found[label] += torch.cat(parts).numpy() / (2 * draws)
    return found


def interval(change: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    noise = np.random.default_rng(0)
    means = change[noise.integers(len(change), size=(resamples, len(change)))].mean(1)
    return change.mean(), *np.quantile(means, (0.025, 0.975))


def row(name: str, folder: Path, found: dict, before: dict, batch: int) -> dict[str, object]:
    spent = json.loads((folder / "metrics.json").read_text())
    timing = json.loads((folder / "timing.json").read_text())
    made: dict[str, object] = {"method": name, f"forwards of {batch} rows": spent["forwards"]}
    made |= {"seconds": round(timing["method_seconds"]), "peak MiB": round(timing["method_peak_mib"])}
    for label in LABELS:
        mean, low, high = interval(found[label] - before[label])
        made |= {f"{label} loss": found[label].mean(), label: f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"}
        made |= {f"_{label}": (mean, low, high)}
    return made


def figure(rows: list[dict[str, object]], forwards: str, path: Path) -> None:
    """A line a method: change of the loss of refusals, and what it cost in forwards and in memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    places = [-place for place in range(len(rows))]
    fig, (gain, *costs) = plt.subplots(
        1, 3, figsize=(9, 0.3 * len(rows) + 1), sharey=True, gridspec_kw={"width_ratios": (2, 1, 1)}
    )
    for place, one in zip(places, rows, strict=True):
        mean, low, high = one["_harmful"]
        gain.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="black", capsize=2, markersize=4)
    gain.set_yticks(places, [str(one["method"]) for one in rows], fontsize=8)
    gain.axvline(0, color="grey", linewidth=0.8)
    gain.set_xlabel("change of the loss of refusals under weight noise", fontsize=8)
    for axis, key in zip(costs, (forwards, "peak MiB"), strict=True):
        axis.barh(places, [one[key] for one in rows], height=0.5, color="lightgrey")
        for place, one in zip(places, rows, strict=True):
            axis.text(one[key], place, f" {one[key]:,}", va="center", fontsize=8)
        axis.set_xlim(0, 1.3 * max(one[key] for one in rows))
        axis.set_xlabel(key, fontsize=8)
        axis.set_xticks([])
    for axis in fig.axes:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("others", nargs="*", help="name=<run folder of a refinement>")
    parser.add_argument("--study", default="smollm2")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_intermixed_args()
    cfg = composed([f"study={asked.study}"])
    model, tokenizer = load(asked.run / "align/s0/model", cfg.model)
    rows = prompts(asked.run, asked.prompts)
    own = own_answers([answered(model, tokenizer, rows, cfg.elicit.max_new_tokens, Parts("--prompts", 32))])
    batches = Batches(own[own["own"]], tokenizer, cfg.openings.loss, nll, model.device)
    sigma = cfg.refine.sigma
    before = losses(asked.run / "align/s0/model", batches, cfg, sigma, asked.draws)
    folders = {path.parent.name: path for path in sorted(asked.run.glob("refine/*/s0"))}
    folders |= {name: Path(path) for name, _, path in (other.partition("=") for other in asked.others)}
    made = [
        row(name, path, losses(path / "model", batches, cfg, sigma, asked.draws), before, cfg.refine.batch_size)
        for name, path in folders.items()
    ]
    forwards = f"forwards of {cfg.refine.batch_size} rows"
    made.sort(key=lambda one: one["_harmful"][0])
    sizes = ", ".join(f"{len(batches.examples[label])} {label}" for label in LABELS)
    print(f"under σ = {sigma:g}: {sizes} prompts, {asked.draws} antithetic draws; of the aligned model: ", end="")
    print(", ".join(f"{label} {before[label].mean():.3f}" for label in LABELS), end="\n\n")
    shown = pd.DataFrame([{key: value for key, value in one.items() if key[0] != "_"} for one in made])
    print(shown.to_markdown(index=False, floatfmt=".3f"))
    if asked.figure:
        figure(made, forwards, asked.figure)


if __name__ == "__main__":
    main()
