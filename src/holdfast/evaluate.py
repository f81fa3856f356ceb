"""Evaluate stage: one checkpoint under every perturbation of the grid; one row per prompt and point."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from holdfast import models
from holdfast.paths import Layout
from holdfast.stage import Run, launch

SPLITS = (("test", "harmful"), ("test", "benign"), ("threshold", "benign"))


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.perturbations import grid, perturbed

    model_name, method = run.names
    # Headline levels are chosen on the tuning split of the unrefined model, so only there is it scored.
    splits = (*SPLITS, ("tune", "harmful")) if run.cfg.method.kind == "none" else SPLITS
    folder = run.layout.checkpoint(model_name, method, run.cfg.method.kind, run.seed) / "model"
    model, tokenizer = models.load(folder, run.cfg.model)
    prompts = pd.concat(
        [
            _capped(models.prompts_of(run.layout, *part), run.cfg.evaluate.prompts.get("/".join(part)))
            for part in splits
        ],
        ignore_index=True,
    )
    scorer = Scorer(tokenizer, prompts, run.cfg)
    frames = [scorer.outcomes(model, generate=True).assign(perturbation="none", family="clean", level=0.0, draw=0)]
    for point in run.progress(grid(run.cfg.perturb), "point"):
        with perturbed(model, point, run.seed) as perturbed_model:
            found = scorer.outcomes(perturbed_model, point.generate)
        frames.append(found.assign(perturbation=point.name, family=point.family, level=point.level, draw=point.draw))
    records = scorer.judged(pd.concat(frames, ignore_index=True), model)
    records.insert(0, "model", model_name)
    records.insert(1, "method", method)
    records.insert(2, "seed", run.seed)
    run.save_table(records, "records.parquet")
    harmful = records[(records["family"] == "clean") & (records["split"] == "test") & (records["label"] == "harmful")]
    asr = float((harmful["verdict"] == "complied").mean())
    run.finish({"clean/asr": asr, "records": len(records)}, f"clean ASR {asr:.3f}")


class Scorer:
    """Encodes the prompts once, and takes every model through the same batches."""

    def __init__(self, tokenizer: Any, prompts: Any, cfg: DictConfig) -> None:
        from holdfast.datasets.tokens import prompt_ids, response_ids

        self.tokenizer, self.cfg = tokenizer, cfg
        self.frame = prompts[["id", "split", "label", "pair"]]
        self.prompts = [prompt_ids(tokenizer, p) for p in prompts["prompt"]]
        self.references = [response_ids(tokenizer, r, end=True) for r in prompts["response"]]
        self.refusals = [response_ids(tokenizer, o, end=False) for o in cfg.openings.score.refusal]
        self.compliances = [response_ids(tokenizer, o, end=False) for o in cfg.openings.score.compliance]
        self.generated = prompts.index[prompts["split"] == "test"].tolist()
        self.useful = prompts.index[(prompts["split"] == "test") & (prompts["label"] == "benign")].tolist()

    def batches(self, rows: list[int]) -> list[list[int]]:
        size = self.cfg.evaluate.batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def outcomes(self, model: Any, generate: bool) -> Any:
        """One row per prompt: margin for all, utility for benign test prompts, response for test prompts."""
        import torch

        from holdfast.metrics.scoring import refusal_margin

        found = self.frame.copy()
        pad = self.tokenizer.pad_token_id
        margins = [
            refusal_margin(model, [self.prompts[i] for i in rows], self.refusals, self.compliances, pad)
            for rows in self.batches(list(range(len(self.prompts))))
        ]
        found["margin"] = torch.cat(margins).cpu().numpy()
        found["response"] = None
        if generate:
            found.loc[self.generated, "response"] = [
                text for rows in self.batches(self.generated) for text in self.generate(model, rows)
            ]
        found["utility"] = float("nan")
        found.loc[self.useful, "utility"] = [
            u for rows in self.batches(self.useful) for u in self.utility(model, rows)
        ]
        return found

    def generate(self, model: Any, rows: list[int]) -> list[str]:
        """Greedy responses; a perturbed model's own generation settings are never inherited."""
        from transformers import GenerationConfig

        from holdfast.metrics.scoring import left_padded

        tokenizer = self.tokenizer
        ids, attention, _ = left_padded([self.prompts[i] for i in rows], tokenizer.pad_token_id, model.device)
        settings = GenerationConfig(
            max_new_tokens=self.cfg.evaluate.max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        out = model.generate(input_ids=ids, attention_mask=attention, generation_config=settings)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def utility(self, model: Any, rows: list[int]) -> list[float]:
        """Exact match with the reference answer, or the NLL per token of the prompt where none exists."""
        from holdfast.metrics.scoring import exact_match, mean_nll, sequences

        if self.cfg.evaluate.utility == "exact_match":
            pairs = [(self.prompts[i], self.references[i]) for i in rows]
            score = exact_match
        else:
            pairs = [(self.prompts[i][:1], self.prompts[i][1:]) for i in rows]
            score = mean_nll
        return score(model, sequences(pairs, self.tokenizer.pad_token_id, model.device)).tolist()

    def judged(self, records: Any, model: Any) -> Any:
        """Add the verdict: coherence is what the unperturbed `model` says of each distinct response."""
        import numpy as np

        from holdfast.judges.rules import RulesJudge, coherence_ceiling

        judge = self.cfg.judge
        nll = self.response_nll(records, model)
        clean = nll[(records["family"] == "clean") & np.isfinite(nll)]
        ceiling = coherence_ceiling(clean.to_numpy(), judge.coherence_quantile, judge.coherence_slack)
        rules = RulesJudge(tuple(judge.refusal_markers), judge.max_repeats, ceiling)
        records["verdict"] = [
            rules.verdict(text, cost) if isinstance(text, str) else None
            for text, cost in zip(records["response"], nll, strict=True)
        ]
        return records

    def response_nll(self, records: Any, model: Any) -> Any:
        """NLL per token of every response under `model`; NaN where nothing was generated."""
        from holdfast.datasets.tokens import response_ids
        from holdfast.metrics.scoring import mean_nll, sequences

        place = {key: index for index, key in enumerate(self.frame["id"])}
        texts = records[["id", "response"]].dropna().drop_duplicates()
        pairs = [
            (self.prompts[place[r.id]], response_ids(self.tokenizer, r.response, end=True)) for r in texts.itertuples()
        ]
        costs: list[float] = []
        for rows in self.batches(list(range(len(pairs)))):
            batch = sequences([pairs[i] for i in rows], self.tokenizer.pad_token_id, model.device)
            costs += mean_nll(model, batch).tolist()
        return records[["id", "response"]].merge(texts.assign(nll=costs), how="left", on=["id", "response"])["nll"]


def _capped(rows: Any, most: int | None) -> Any:
    return rows if most is None else rows.head(most)


def inputs(cfg: DictConfig) -> models.Inputs:
    made = Layout.of(cfg).checkpoint(cfg.model.name, cfg.method.name, cfg.method.kind, cfg.seed)
    return {**models.data_inputs(cfg), made / "metrics.json": "align" if cfg.method.kind == "none" else "refine"}


if __name__ == "__main__":
    launch("evaluate", run, inputs)
