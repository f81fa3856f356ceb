"""The probe's measurements of each layer's sensitivity: each gives one tidy frame."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.memory import Parts

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.methods.batches import Batch
    from holdfast.runtime.run import Run
    from holdfast.settings.schema import Openings
    from holdfast.zo import Sides

COLUMNS = ["group", "parameters", "kind", "sigma", "draw", "example", "clean", "up", "down"]


class Probe:
    """One aligned model and the batches of `rows` that all its measurements share; `said` are the openings of losses.
    `forwards` counts what they cost so far, in forwards of one batch through the whole model; of noise on weights
    `drawn` of `all` draws were needed."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, rows: Any, said: Openings) -> None:
        from holdfast.methods import LOSSES
        from holdfast.methods.batches import Batches
        from holdfast.zo import weight_groups
        from holdfast.zo.layers import decoder_layers

        self.run, self.model, self.tokenizer, self.settings = run, model, tokenizer, run.cfg.probe
        self.loss = LOSSES[self.settings.loss]
        self.batches = Batches(rows, tokenizer, said, self.loss, model.device)
        stream = self.batches.stream(self.settings.batch_size, run.seed)
        self.chunks = [next(stream) for _ in range(-(-self.settings.prompts // self.settings.batch_size))]
        self.parts = Parts("probe.batch_size")
        self.groups = weight_groups(model)
        self.layers = decoder_layers(self.groups)
        self.forwards, self.drawn, self.all = 0.0, 0, 0

    def weights(self, sigma: float, groups: dict[str, Any] | None = None) -> pd.DataFrame:
        """Noise on the weights of one group at a time, both signs."""
        import pandas as pd

        from holdfast.zo import Race, sensitivity

        s, race = self.settings, None
        if groups is None and s.keep and s.keep < len(self.layers):
            race = Race(self.layers, s.keep)
        groups = groups or self.groups

        def measured(*chunks: Batch) -> dict[str, Sides]:
            return sensitivity(
                self.model,
                self.loss,
                chunks,
                groups,
                sigma=sigma,
                draws=s.draws,
                seed=self.run.seed,
                race=race,
                progress=lambda points: self.run.progress(points, "evaluation"),
            )

        found = self.parts.whole(self.chunks, measured)
        drawn = {group: len(sides.up) for group, sides in found.items()}
        self.forwards += len(self.chunks) * (1 + 2 * sum(self._share(g) * count for g, count in drawn.items()))
        self.drawn, self.all = self.drawn + sum(drawn.values()), self.all + s.draws * len(drawn)
        sides = [self._rows(g, "weights", sigma, f.clean, f.up, f.down) for g, f in found.items()]
        return pd.concat(sides, ignore_index=True)

    def together(self) -> pd.DataFrame:
        """Noise on the weights of all decoder layers at once, at every radius: to compare with the single rises."""
        import pandas as pd

        from holdfast.perturbations.snapshot import decoder_matrices

        everything = {"all": decoder_matrices(self.model)}
        sigmas = [self.settings.sigma, *self.settings.other_sigmas]
        return pd.concat([self.weights(sigma, everything) for sigma in sigmas], ignore_index=True)

    def activations(self) -> pd.DataFrame:
        """Noise on the output of one layer at a time, relative to each token's rms, both signs."""
        import pandas as pd
        import torch

        from holdfast.perturbations.activations import How, noise_at
        from holdfast.zo.layers import decoder_stack
        from holdfast.zo.parallel import shared_out

        s, clean = self.settings, self._losses()
        stack, pad = decoder_stack(self.model), self.tokenizer.pad_token_id

        def noisy(place: int) -> pd.DataFrame:
            sides: dict[int, list[Any]] = {+1: [], -1: []}
            for draw in range(s.draws):
                for sign, losses in sides.items():
                    how = How(sign * s.activation_sigma, draw)
                    with noise_at(self.model, {place: stack[place]}, how, self.run.seed, pad):
                        losses.append(self._losses())
            up, down = (torch.stack(losses) for losses in sides.values())
            return self._rows(self.layers[place], "activations", s.activation_sigma, clean, up, down)

        return pd.concat(shared_out(range(len(self.layers)), noisy), ignore_index=True)

    def quantization(self) -> pd.DataFrame:
        """One layer's matrices rounded, the others as they are."""
        import pandas as pd
        import torch

        from holdfast.perturbations.rounding import rounded
        from holdfast.perturbations.snapshot import restored
        from holdfast.zo.parallel import shared_out

        s, clean = self.settings, self._losses()

        def rounded_alone(layer: str) -> pd.DataFrame:
            with restored(self.groups[layer]), torch.no_grad():
                for p in self.groups[layer].values():
                    p.copy_(rounded(p, s.bits, p.shape[-1]))
                return self._rows(layer, "quantization", float(s.bits), clean, self._losses()[None], None)

        return pd.concat(shared_out(self.layers, rounded_alone), ignore_index=True)

    def online(self) -> tuple[pd.DataFrame, int]:
        """Rises of a refinement that perturbs a random part of the decoder layers at each query, with those parts;
        and its forwards. The refined weights are put back."""
        import pandas as pd

        from holdfast.perturbations.snapshot import decoder_matrices, restored
        from holdfast.zo import ZeroOrderRefiner

        o, rows = self.settings.online, list[tuple[int, float, str, bool]]()
        kinds = {"evaluation": int, "rise": float, "group": str, "perturbed": bool}
        if not o.steps:  # nor the memory of a refinement
            return pd.DataFrame(rows, columns=list(kinds)).astype(kinds), 0
        with restored(decoder_matrices(self.model)):
            refiner = ZeroOrderRefiner(
                self.model,
                self.loss,
                layers=self.layers,
                mu=o.mu,
                lr=o.lr,
                queries=o.queries,
                normalize=o.normalize,
                seed=self.run.seed,
                subset=o.subset,
                clean=True,
                over_ranks="queries",
            )
            stream = self.batches.stream(o.batch_size, self.run.seed)
            for step in self.run.progress(range(o.steps)):
                report = self.parts.whole([next(stream)], refiner.step)
                for query, (rise, mask) in enumerate(zip(report.rises, report.masks, strict=True)):
                    at = step * o.queries + query
                    rows += [(at, rise, layer, layer in mask) for layer in self.layers]
        return pd.DataFrame(rows, columns=list(kinds)).astype(kinds), o.steps * (2 * o.queries + 1)

    def outcomes(self) -> pd.DataFrame:
        """The ASR on the tuning split, by margins at matched over-refusal, with noise on one layer's weights alone."""
        import pandas as pd

        from holdfast.statistics.margins import miss_rate_and_auroc
        from holdfast.zo.parallel import shared_out
        from holdfast.zo.perturb import Masters

        s = self.settings
        sets = [models.prompts_of(self.run.layout, "tune", label) for label in ("harmful", "benign")]
        if s.outcome_draws and sets[1].empty:
            raise UserError("probe.outcome_draws: the tuning split has no benign prompts; set it to 0")

        def alone(layer: str) -> list[tuple[str, int, float, float]]:
            masters, found = Masters(self.groups[layer], seed=self.run.seed, noise="gaussian"), []
            for draw in range(s.outcome_draws):
                masters.write(s.sigma, step=draw, query=1)  # other noise than the probe's
                harmful, benign = (self._margins(prompts) for prompts in sets)
                found.append((layer, draw, *miss_rate_and_auroc(harmful, benign, s.over_refusal)))
            masters.restore()
            return found

        rows = [row for found in shared_out(self.layers if s.outcome_draws else [], alone) for row in found]
        kinds = {"group": str, "draw": int, "asr": float, "auroc": float}
        return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)

    def _margins(self, prompts: pd.DataFrame) -> Any:
        from holdfast.datasets.tokens import prompts_ids, response_ids
        from holdfast.models.likelihood import refusal_margins
        from holdfast.models.reading import Reader

        score = self.run.cfg.openings.score
        refusals, compliances = (
            [response_ids(self.tokenizer, o, end=False) for o in side] for side in (score.refusal, score.compliance)
        )
        reader = Reader(self.model, Parts("the probe's outcomes", 256))
        return refusal_margins(reader, prompts_ids(self.tokenizer, prompts), refusals, compliances).numpy()

    def _losses(self) -> Any:
        import torch

        found: list[Any] = []
        with torch.inference_mode():
            for chunk in self.chunks:
                self.parts.each(chunk, lambda part: found.append(self.loss(self.model, part).float().cpu()))
        self.forwards += len(self.chunks)
        return torch.cat(found)

    def _share(self, group: str) -> float:
        """Of a forward: what runs when this group is perturbed and the layers below it are reused."""
        if not group.startswith("layer."):
            return 0.0 if group == "head" else 1.0
        return 1 - self.layers.index(group) / len(self.layers)

    def _rows(self, group: str, kind: str, sigma: float, clean: Any, up: Any, down: Any) -> pd.DataFrame:
        """Tidy rows of (draws, n) losses."""
        import pandas as pd

        size = sum(p.numel() for p in self.groups[group].values()) if group in self.groups else 0
        draws, examples = up.shape
        frame = pd.DataFrame(list(product(range(draws), range(examples))), columns=["draw", "example"])
        frame = frame.assign(clean=clean.repeat(draws).numpy(), up=up.flatten().numpy(), down=float("nan"))
        if down is not None:
            frame["down"] = down.flatten().numpy()
        return frame.assign(group=group, parameters=size, kind=kind, sigma=sigma)[COLUMNS]
