"""What weights meet where a model is used, noise or rounding: losses are asked under it, and no move keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import SHIFT, Target, words
from holdfast.zo.perturb import Draws, Moves, bundles, float32

BESIDE = 2**30  # added to a query: its noise is none of those along which weights move
DRAWS = 2**16  # queries of one draw; those of the next ones come after
Rounding = Callable[[Tensor, int], Tensor]
"""(matrix (out, in), shift) -> the matrix as a quantizer leaves it, its groups begun `shift` inputs later."""


@dataclass(frozen=True)
class Deployment:
    """Weight noise of `sigma` on all `matrices`, relative to each one's rms; or their `rounding` in its place."""

    matrices: Mapping[str, nn.Parameter]
    sigma: float = 0.0
    rounding: Rounding | None = None

    @property
    def happens(self) -> bool:
        return bool(self.sigma or self.rounding)


class Deployed:
    """What moves, written as it is deployed, and with it the matrices that stay.

    Noise and shifts are pure functions of (seed, step, query), so both sides of a query, and every radius, meet the
    same; with another `draw` they are others at the same step. Of matrices that do not move a copy is kept, in their
    own type; scratch is that of `bundles`, in float32.
    """

    def __init__(self, moves: Moves, deployment: Deployment) -> None:
        self.moves, self.deployment = moves, deployment
        self.kept: dict[str, Tensor] = {}
        self.away = False  # whether those that stay are displaced
        self.draw = 0
        if deployment.happens:
            self.kept = {k: p.detach().clone() for k, p in deployment.matrices.items() if k not in moves.tensors}
            known = {k: s for k, s in moves.draws.scales.items() if k in deployment.matrices}
            self.noise = Draws(deployment.matrices, seed=moves.draws.seed, noise=moves.draws.noise, scales=known)

    def write(self, radius: float, *, step: int, query: int, sign: int = 1) -> None:
        """Forward weights := what the moves write for this radius, deployed; `sign` is that of the noise."""
        self.moves.write(radius, step=step, query=query)
        self._put_back()
        self.away = bool(self.kept)
        if self.deployment.rounding:
            self._round(self.deployment.rounding, step, query)
        elif self.deployment.sigma:
            self._add(sign * self.deployment.sigma, step, query)

    @torch.no_grad()
    def _add(self, sigma: float, step: int, query: int) -> None:
        for bundle in bundles(self.deployment.matrices):
            sizes = {name: [float32(sigma * self.noise.scales[name])] for name in bundle}
            # Weights of float32 are read where they are written: each element before it is.
            values = {name: p.detach().float().contiguous() for name, p in bundle.items()}
            targets = [Target(values[k], p, self.noise.names[k], sizes[k]) for k, p in bundle.items()]
            add_noise(targets, [query + BESIDE + self.draw * DRAWS], self.noise.stream(step), keep=False)

    @torch.no_grad()
    def _round(self, rounding: Rounding, step: int, query: int) -> None:
        shift = int(words(SHIFT, self.noise.stream(step), tensors=[0], queries=[query + self.draw * DRAWS]))
        for p in self.deployment.matrices.values():
            p.copy_(rounding(p.detach(), shift % p.shape[1]))

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        self._put_back()
        self.moves.move(coefficients, step=step)

    def restore(self) -> None:
        self._put_back()
        self.moves.restore()

    @torch.no_grad()
    def _put_back(self) -> None:
        if self.away:
            for name, kept in self.kept.items():
                self.deployment.matrices[name].copy_(kept)
        self.away = False
