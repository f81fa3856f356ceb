"""What a table needs beside the metrics: the study's size and settings, as a caption states them."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.perturbations.point import Perturbation
from holdfast.reporting.measured import Measured
from holdfast.settings.options import Config
from holdfast.settings.paths import runs
from holdfast.settings.schema import Study
from holdfast.statistics.intervals import Prompts
from holdfast.statistics.rates import headline_points, tail


@dataclass(frozen=True)
class Setting:
    """What a caption must state, and what an interval depends on. `other_seeds`: how many, for recipes that have not
    `seeds`; `counts` and `clusters`: prompts and pairs of prompts, by "split/label"."""

    methods: list[str]
    reference: str
    seeds: int
    other_seeds: dict[str, int]
    counts: dict[str, int]
    clusters: dict[str, int]
    draws: dict[str, int]
    perturbations: dict[str, Perturbation]
    ran: dict[str, str]
    resamples: int
    over_refusal: float
    headline_asr: float
    confidence: float
    margin: float
    utility: str
    judge: str
    unscored: int
    coverage: str
    headline: dict[str, tuple[str, float] | None]

    @classmethod
    def of(cls, measured: Measured, cfg: Config) -> Setting:
        tables = cfg.tables
        return cls(
            methods=list(dict.fromkeys(method for _, _, method, _ in runs(cfg.study))),
            reference=cfg.study.reference,
            seeds=len(cfg.study.seeds),
            other_seeds=_other_seeds(cfg.study),
            counts=measured.counts,
            clusters=measured.clusters,
            draws={name: p.draws for name, p in cfg.perturb.items() if p.draws > 1 or p.random},
            perturbations=cfg.perturb,
            ran=measured.ran,
            resamples=tables.resamples,
            over_refusal=tables.over_refusal,
            headline_asr=tables.headline_asr,
            confidence=tables.confidence,
            margin=cfg.claims.margin,
            utility=cfg.evaluate.utility,
            judge=cfg.judge.name,
            unscored=measured.unscored,
            coverage=measured.coverage,
            headline=headline_points(measured.metrics, cfg.study.reference, tables.headline_asr),
        )

    def prompts(self, label: str, matched: bool = False) -> Prompts:
        """What was redrawn for a metric of test prompts of `label`, a `matched` threshold beside them or not."""
        clusters = self.clusters[f"test/{label}"]
        freedom: float = max(clusters - 1, 1)
        if matched:
            freedom = min(freedom, tail(self.counts["threshold/benign"], self.over_refusal))
        return Prompts(clusters, freedom)

    def label(self, name: str, level: float) -> str:
        """How a point reads in a table; with its name where another perturbation is of the same kind."""
        if name == "none":
            return "clean"
        form = self.perturbations[name].reads(level)
        alike = [one for one in self.perturbations.values() if one.kind == self.perturbations[name].kind]
        if "{name}" not in form and len(alike) > 1:
            form = "{name} " + form
        return form.format(name=name.replace("_", " "), level=level, percent=100 * level)

    def quantizes(self, name: str) -> bool:
        """Whether a point is of a quantizer."""
        return name in self.perturbations and self.perturbations[name].quantizes

    def headlines(self) -> dict[str, tuple[str, str, float] | None]:
        """Column of the main table -> the (perturbation, family, level) that it shows, or None."""
        columns: dict[str, tuple[str, str, float] | None] = {}
        for family, at in self.headline.items():
            if at is None:
                columns[f"{family} (not measurable)"] = None
            else:
                columns[self.named(at[0], family, at[1])] = (at[0], family, at[1])
        return columns

    def named(self, perturbation: str, family: str, level: float) -> str:
        """How a point reads where its family is not said otherwise."""
        label = self.label(perturbation, level)
        return label if family in label else f"{family} {label}"

    def caption(self) -> str:
        """The part that every caption shares."""
        draws = ", ".join(f"{name} {draws}" for name, draws in self.draws.items())
        over = "new seeds and new prompts" if self.seeds > 1 else "new prompts, for the one seed,"
        ran = "; ".join(
            f"{how}: {', '.join(name for name, what in self.ran.items() if what == how)}"
            for how in dict.fromkeys(self.ran.values())
        )
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        seeds += "".join(f", {count} of {recipe}" for recipe, count in self.other_seeds.items())
        return (
            f"{seeds} (alignment, probe, refinement and noise; one base model), noise draws per "
            f"seed: {draws}; {self.counts['test/harmful']} harmful and {self.counts['test/benign']} benign test "
            f"prompts, thresholds from {self.counts['threshold/benign']} other benign prompts; judge: "
            f"{self.judge}, {self.unscored} responses unscored and left out of the rates. [ ] is the "
            f"{self.confidence:.0%} interval for {over} of the same kind, from {self.resamples} redraws of prompt "
            f"pairs with the threshold set anew in each. {self.coverage}"
            + (f" How quantizers ran: {ran}." if ran else "")
        )


def _other_seeds(study: Study) -> dict[str, int]:
    """Recipe -> how many seeds, where that is not the main grid's."""
    found: dict[str, set[int]] = {}
    for _, recipe, _, seed in runs(study):
        found.setdefault(recipe, set()).add(seed)
    return {recipe: len(seeds) for recipe, seeds in found.items() if len(seeds) != len(study.seeds)}
