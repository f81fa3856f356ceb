"""What forwards and backwards hold in memory, in bytes, from a model's shape.

Per token and layer, counted with torch's profiler on Llama, Qwen2, Mistral and Gemma 2 of transformers 5.23; a test
counts again. What scales with weights is counted by the stages themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.planning.shape import Shape

FLOAT = 4  # bytes: masters, losses and log-probabilities are in float32
STATES = 4.2  # hidden-sized tensors alive in a layer's forward: input, residual, norm and its float32 copy
MLP = 3  # intermediate-sized: gate or its activation, up, their product
ATTENTION = 4.6  # hidden-sized, kept for the backward: q, k and v by head, output, rotated parts
ADAPTER = 4 * FLOAT  # bytes of a weight of LoRA, which PEFT keeps in float32: itself, its gradient, two moments
# What TRL's loss takes at once: it projects so many tokens on so many words of the vocabulary.
TILE_TOKENS, TILE_WORDS, TILE_COPIES = 4096, 32768, 8


@dataclass(frozen=True)
class Sizes:
    """(rows, tokens) through the model, with logits at `columns` of the positions."""

    rows: int
    tokens: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.tokens

    def cut(self, longest: int) -> Sizes:
        """Rows that are longer end there."""
        return Sizes(self.rows, min(self.tokens, longest), min(self.columns, longest))


def cache(s: Shape, rows: int, tokens: int) -> float:
    """Keys and values of all layers."""
    return 2 * s.kv * len(s.layers) * s.width * rows * tokens


def states(s: Shape, batch: Sizes) -> float:
    """The output of one layer."""
    return s.width * s.hidden * batch.size


def logits(s: Shape, rows: int, columns: int) -> float:
    """As the model gives them, in float32, and once more inside the log-softmax."""
    return rows * columns * s.vocabulary * (s.width + FLOAT + (FLOAT if s.width < FLOAT else 0))


def working_set(s: Shape, batch: Sizes) -> float:
    """Of one layer's forward, at its worst."""
    scores = s.heads * batch.tokens * (2 * s.width + FLOAT) if s.eager else 0
    return batch.size * (STATES * s.hidden * s.width + max(MLP * s.intermediate * s.width, scores))


def forward(s: Shape, batch: Sizes) -> float:
    """Without gradients, and without a cache."""
    return max(working_set(s, batch), 2 * states(s, batch) + logits(s, batch.rows, batch.columns))


def saved(s: Shape, batch: Sizes, layers: int, full: bool) -> float:
    """What a backward through the `layers` upper ones needs; `full`: gains are trained as well."""
    norm = FLOAT + s.width + (s.width if full else 0)
    scores = s.heads * batch.tokens * (FLOAT + (s.width if s.width < FLOAT else 0)) if s.eager else 0
    token = s.hidden * (s.norms * norm + ATTENTION * s.width) + 4 * s.intermediate * s.width + scores
    return layers * batch.size * token


def backward(s: Shape, batch: Sizes, layers: int) -> float:
    """Forward and backward of our own losses, weights' gradients aside: log-probabilities at `columns`."""
    copies = s.width + 3 * FLOAT + (FLOAT + s.width if s.width < FLOAT else 0)
    head = batch.rows * batch.columns * s.vocabulary * copies
    return saved(s, batch, layers, full=False) + max(working_set(s, batch), 2 * states(s, batch) + head)


def adapted(s: Shape, batch: Sizes, rank: int) -> float:
    """Adapters on all linears, and what they keep beside the model's own: their inputs in float32."""
    inputs = FLOAT * s.inputs * batch.size if s.width < FLOAT else 0
    return ADAPTER * rank * (s.inputs + s.outputs) + inputs


def trainer_backward(s: Shape, batch: Sizes, cuda: bool, full: bool = True) -> float:
    """The same in TRL's trainers, which take the head in tiles: of the response's tokens alone by Triton's kernel, of
    all tokens and with some copies elsewhere. `full`: all weights train; the head's gradient is summed in float32."""
    scored = batch.rows * (batch.columns if cuda else batch.tokens)
    tile = min(scored, TILE_TOKENS) * min(s.vocabulary, TILE_WORDS)
    head = tile * (s.width + (0 if cuda else TILE_COPIES * FLOAT)) + FLOAT * s.hidden * (full * s.vocabulary + scored)
    return saved(s, batch, len(s.layers), full) + max(working_set(s, batch), head)
