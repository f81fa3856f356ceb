"""What a table needs beside the metrics: the study's size and settings, as a caption states them."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.perturbations.point import Perturbation
from holdfast.reporting.cautions import cautions
from holdfast.reporting.measured import Measured
from holdfast.reporting.options import Guards, JudgedAt
from holdfast.settings.options import Config
from holdfast.settings.paths import runs
from holdfast.settings.schema import Study
from holdfast.statistics.intervals import Prompts
from holdfast.statistics.margins import tail


@dataclass(frozen=True)
class Setting:
    """What a caption must state, and what an interval depends on. `other_seeds`: how many, for recipes that have not
    `seeds`; `counts` and `clusters`: prompts and pairs of prompts, by "split/label"; `families`: what claims are
    judged at, by its name; `cautions`: what makes the numbers say less than they seem to."""

    methods: list[str]
    controls: list[str]
    reference: str
    seeds: int
    other_seeds: dict[str, int]
    counts: dict[str, int]
    clusters: dict[str, int]
    perturbations: dict[str, Perturbation]
    families: dict[str, JudgedAt]
    ran: dict[str, str]
    resamples: int
    false_alarms: float
    headline_asr: float
    confidence: float
    margin: float
    guards: Guards
    judge: str
    unscored: int
    coverage: str
    cautions: list[str]

    @classmethod
    def of(cls, measured: Measured, cfg: Config) -> Setting:
        tables = cfg.tables
        return cls(
            methods=list(dict.fromkeys(method for _, _, method, _ in runs(cfg.study))),
            controls=list(cfg.claims.methods.controls),
            reference=cfg.study.reference,
            seeds=len(cfg.study.seeds),
            other_seeds=_other_seeds(cfg.study),
            counts=measured.counts,
            clusters=measured.clusters,
            perturbations=cfg.perturb,
            families=cfg.claims.families,
            ran=measured.ran,
            resamples=tables.resamples,
            false_alarms=tables.false_alarms,
            headline_asr=tables.headline_asr,
            confidence=tables.confidence,
            margin=cfg.claims.margin,
            guards=cfg.claims.guards,
            judge=cfg.judge.name,
            unscored=measured.unscored,
            coverage=measured.coverage,
            cautions=cautions(measured.metrics, cfg.study.reference),
        )

    def prompts(self, label: str, threshold: bool = False) -> Prompts:
        """What was redrawn for a metric of test prompts of `label`, a `threshold` of other prompts beside them or
        not."""
        clusters = self.clusters[f"test/{label}"]
        freedom: float = max(clusters - 1, 1)
        if threshold:
            freedom = min(freedom, tail(self.counts.get("threshold/benign", 0), self.false_alarms))
        return Prompts(self.counts[f"test/{label}"], clusters, freedom)

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

    def named(self, perturbation: str, family: str, level: float) -> str:
        """How a point reads where its family is not said otherwise."""
        label = self.label(perturbation, level)
        return label if family in label else f"{family} {label}"

    def titled(self, family: str, at: tuple[str, str, float]) -> str:
        """A family of the claims with its level, if it has one that its name does not say."""
        label = self.label(at[0], at[2])
        return family if label.lower().rpartition(" ")[2] == family.lower() else f"{family} {label}"

    @property
    def size(self) -> str:
        """`80/80 harmful/benign prompts × 3 seeds · judge: rules`."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        counts = "/".join(str(self.counts[f"test/{label}"]) for label in ("harmful", "benign"))
        unscored = f" · {self.unscored} responses unscored" * bool(self.unscored)
        return f"{counts} harmful/benign prompts × {seeds} × draws · judge: {self.judge}{unscored}"

    def caption(self) -> str:
        """The part that every caption shares."""
        draws = ", ".join(
            f"{name} {self.label(name, level)} {p.draws_at(level)}"
            for name, p in self.perturbations.items()
            for level in p.levels
            if p.random or p.draws_at(level) > 1
        )
        over = "new seeds and new prompts" if self.seeds > 1 else "these checkpoints (draws and new prompts)"
        own = ", own_low and own_high of the CSV for these checkpoints (draws and new prompts)" * (self.seeds > 1)
        ran = "; ".join(
            f"{how}: {', '.join(name for name, what in self.ran.items() if what == how)}"
            for how in dict.fromkeys(self.ran.values())
        )
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        seeds += "".join(f", {count} of {recipe}" for recipe, count in self.other_seeds.items())
        said = "".join(f" Caution: {one}." for one in self.cautions)
        return (
            f"{seeds} (alignment, probe, refinement and noise; one base model); draws per seed: {draws or 'one'}; "
            f"{self.counts['test/harmful']} harmful and {self.counts['test/benign']} benign test prompts; judge: "
            f"{self.judge}, {self.unscored} responses unscored and left out of the rates. [ ] is the "
            f"{self.confidence:.0%} interval for {over} of the same kind, from {self.resamples} redraws of prompt "
            f"pairs{own}. {self.coverage}" + (f" How quantizers ran: {ran}." if ran else "") + said
        )


def _other_seeds(study: Study) -> dict[str, int]:
    """Recipe -> how many seeds, where that is not the main grid's."""
    found: dict[str, set[int]] = {}
    for _, recipe, _, seed in runs(study):
        found.setdefault(recipe, set()).add(seed)
    return {recipe: len(seeds) for recipe, seeds in found.items() if len(seeds) != len(study.seeds)}
