"""The schema of `conf/`: every key, its type and its range; nothing here is a scientific value.

Fields without a default must be given by a YAML file. `READS` names the sections that each stage reads:
a stage is handed these and no others, and the workflow re-runs a stage when one of them changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def ranged(*, above: float | None = None, least: float | None = None, most: float | None = None) -> Any:
    """A number that a YAML file must give, with its range."""
    return field(default=MISSING, metadata={"above": above, "least": least, "most": most})


def choice(*options: str) -> Any:
    """A word that a YAML file must give, out of `options`."""
    return field(default=MISSING, metadata={"options": options})


def option(*words: str, **limits: float) -> Any:
    """What some kinds read and others must not be given."""
    return field(default=None, metadata={"options": words} | limits)


@dataclass
class BlockConfig:
    """Runs beside a study's main grid."""

    models: list[str] | None = None  # null: those of the main grid
    aligns: list[str] = MISSING
    methods: list[str] = MISSING
    seeds: list[int] | None = None  # null: those of the main grid
    probe: bool = False  # whether its models are probed even where no method selects layers by it


@dataclass
class StudyConfig:
    name: str = MISSING
    models: list[str] = MISSING
    aligns: list[str] = MISSING
    methods: list[str] = MISSING
    seeds: list[int] = MISSING
    also: dict[str, BlockConfig] = field(default_factory=dict)
    reference: str = "aligned"  # the method that all others are compared with


@dataclass
class ShapeConfig:
    hidden_size: int = ranged(least=8)
    intermediate_size: int = ranged(least=8)
    layers: int = ranged(least=1)
    heads: int = ranged(least=1)
    max_positions: int = ranged(least=16)
    initializer_range: float = ranged(above=0)


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str | None = None  # Hub id or folder; null: built and pretrained in the run
    revision: str | None = None
    origin: str | None = None  # Hub id or folder: of a model that comes aligned, what it was before
    dtype: str = choice("float32", "bfloat16", "float16", "auto")  # auto: what the file holds
    attention: str | None = field(default=None, metadata={"options": ("eager", "sdpa", "flash_attention_2")})
    device_map: str | None = None  # over several GPUs, as transformers takes it: auto, balanced; null: one device
    chat_template: str | None = None  # a file below conf/, or Jinja; for a tokenizer that has none of its own
    shape: ShapeConfig | None = field(default=None, metadata={"section": ShapeConfig})
    # Of a Hub model, as AutoConfig.for_model takes it: what a plan counts by.
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass
class PairConfig:
    """Two candidates in place of `response` and `rejected`: the chosen one is learned, the other rejected."""

    candidates: list[str] = MISSING  # two columns of answers
    chosen: str = MISSING  # the column that holds 0 or 1
    required: list[str] | None = None  # a column a candidate, true where that candidate may be learned


@dataclass
class ColumnsConfig:
    prompt: str = MISSING
    context: str | None = None  # what precedes the prompt, in the rows that have any
    response: str | None = None
    rejected: str | None = None  # an answer that `response` is preferred to
    pair: PairConfig | None = field(default=None, metadata={"section": PairConfig})
    id: str | None = None
    label: str | None = None


@dataclass
class SourceConfig:
    """One data set. `file` is a path below `data.dir` or an address, and goes before `hub`."""

    file: str | None = None
    hub: str | None = None
    revision: str | None = None
    subset: str | None = None
    hub_split: str | None = None
    hub_options: dict[str, Any] = field(default_factory=dict)  # further arguments of datasets.load_dataset_builder
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    label: str | None = field(default=None, metadata={"options": ("harmful", "benign")})
    labels: dict[str, str] = field(default_factory=dict)  # value of the label column -> harmful | benign
    where: dict[str, list[str]] = field(default_factory=dict)  # column -> the values whose rows are kept
    splits: dict[str, float] = MISSING  # split -> share of the rows
    max_rows: int | None = field(default=None, metadata={"least": 1})


@dataclass
class DataConfig:
    kind: str = choice("world", "local")
    dir: str | None = None
    seed: int = ranged(least=0)
    layers: dict[str, int] | None = None  # world: Latin layers per split
    phrasings: dict[str, int] | None = None  # world: wordings of each pair per split
    mixture: dict[str, float] | None = None  # world: what the base model reads, by share
    pretrain_rows: int = ranged(least=1)
    vocabulary: int = ranged(least=300)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    response_sentences: int = field(default=1, metadata={"least": 1})


@dataclass
class OpeningsConfig:
    refusal: list[str] = MISSING
    compliance: list[str] = MISSING


@dataclass
class OpeningSets:
    """`loss` openings are what alignment and refinement train on, `score` openings what margins are scored with:
    no loss after pretraining sees those. A base model built in the run has read both."""

    loss: OpeningsConfig = field(default_factory=OpeningsConfig)
    score: OpeningsConfig = field(default_factory=OpeningsConfig)


@dataclass
class TrainConfig:
    steps: int = ranged(least=1)
    batch_size: int = ranged(least=1)
    lr: float = ranged(above=0)


@dataclass
class PretrainConfig(TrainConfig):
    threads: int = ranged(least=1)
    prompt_loss: bool = MISSING  # whether the loss also covers the prompt tokens


# The options of AlignConfig that each kind reads, all of which must be given; no others may be.
TRAINED = ("steps", "batch_size", "lr")
ALIGN_OPTIONS: dict[str, tuple[str, ...]] = {
    "sft": ("optimizer", "max_length", "warmup", *TRAINED),
    "dpo": ("beta", "sft_weight", "max_length", "warmup", *TRAINED),
    "zo": ("mu", "queries", "noise", "normalize", *TRAINED),
    "none": (),
}


@dataclass
class LoraConfig:
    """Matrices B A of a low rank beside all linear layers of the decoder, times alpha / rank."""

    rank: int = ranged(least=1)
    alpha: int = ranged(least=1)


@dataclass
class AlignConfig:
    name: str = MISSING
    kind: str = choice(*ALIGN_OPTIONS)
    steps: int | None = option(least=1)
    batch_size: int | None = option(least=1)
    lr: float | None = option(above=0)
    optimizer: str | None = option("adamw_torch", "sgd")
    optimizer_args: str | None = None  # as transformers takes them, "momentum=0.9"
    max_length: int | None = option(least=16)
    warmup: float | None = option(least=0, most=1)
    beta: float | None = option(above=0)
    sft_weight: float | None = option(least=0)  # of the chosen answer's NLL beside DPO's own loss
    # Of sft and dpo; null: all weights are trained.
    lora: LoraConfig | None = field(default=None, metadata={"section": LoraConfig})
    mu: float | None = option(above=0)
    queries: int | None = option(least=1)
    noise: str | None = option("rademacher", "gaussian")
    normalize: str | None = option("none", "rms")


@dataclass
class OnlineConfig:
    """Refinement on random parts of the layers, for the sake of its evaluations: its updates are not kept."""

    steps: int = ranged(least=0)
    queries: int = ranged(least=1)
    batch_size: int = ranged(least=2)
    mu: float = ranged(above=0)
    lr: float = ranged(above=0)
    normalize: str = choice("none", "rms")
    subset: float = ranged(above=0, most=1)  # the share of the layers that a query perturbs


@dataclass
class ProbeConfig:
    loss: str = choice("margin", "nll")
    sigma: float = ranged(above=0)  # what layers are selected at
    other_sigmas: list[float] = field(default_factory=list, metadata={"above": 0, "may_be_empty": True})
    draws: int = ranged(least=1)
    prompts: int = ranged(least=2)
    batch_size: int = ranged(least=1)
    # Beside noise on the weights of one group: on all decoder layers together, on one layer's activations (of
    # `activation_sigma`), rounding of one group's weights (to `bits`).
    compare: list[str] = field(
        default_factory=list, metadata={"options": ("together", "activations", "quantization"), "may_be_empty": True}
    )
    activation_sigma: float = ranged(above=0)
    bits: int = ranged(least=2, most=16)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    outcome_draws: int = ranged(least=0)  # of noise on one layer alone, to see what that does to the ASR
    over_refusal: float = ranged(above=0, most=0.5)


BY_PROBE = ("top_k", "bottom_k")  # rules of selection that need a probe


@dataclass
class SelectConfig:
    rule: str = choice(
        "all", "everything", *BY_PROBE, "random_k"
    )  # all: decoder layers; everything: also embeddings and head
    k: int = ranged(least=1)
    by: str = field(default="probe", metadata={"options": ("probe", "online")})


# The options of MethodConfig that each kind reads, all of which must be given; no others may be.
METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "zeroth_order": (),
    "subspace": ("sigma", "tie"),
    "first_order": (),
    "smoothed": ("sigma",),
    "noise_stability": ("sigma",),
    "sam": ("rho",),
    "neftune": ("alpha",),
    "weight_averaging": (),
    "sign_shuffled": ("of",),
    "extrapolate": ("alpha",),
    "threshold_shift": ("over_refusal",),
}


@dataclass
class MethodConfig:
    name: str = MISSING
    kind: str = choice(*METHOD_OPTIONS)
    select: SelectConfig = field(default_factory=SelectConfig)
    share: float = field(default=1.0, metadata={"above": 0, "most": 1})  # of the common budget
    of: str | None = None  # the method whose walk a control repeats
    sigma: float | None = option(above=0)  # of the weight noise under which the loss is taken, relative to rms
    tie: str | None = option("tensor", "layer", "model")  # which tensors share a coefficient of the subspace
    rho: float | None = option(above=0)  # SAM's radius
    alpha: float | None = option(above=0)  # NEFTune's noise; how far to extrapolate
    over_refusal: float | None = option(above=0, most=0.5)


@dataclass
class RefineConfig:
    """Shared by all methods, so that they meet on equal terms."""

    loss: str = choice("margin", "nll", "dpo")
    beta: float = ranged(above=0)  # of dpo
    steps: int = ranged(least=1)
    queries: int = ranged(least=1)
    batch_size: int = ranged(least=2)
    mu: float = ranged(above=0)
    lr: float = ranged(above=0)
    noise: str = choice("rademacher", "gaussian")
    normalize: str = choice("none", "rms")
    first_order_lr: float = ranged(above=0)


# The options of PerturbConfig that each kind reads, all of which must be given; no others may be.
OPTIONS: dict[str, tuple[str, ...]] = {
    "weight_noise": ("mode",),
    "activation_noise": ("scale", "place", "tokens", "worst_of"),
    "bnb": ("scheme",),
    "torchao": (),
    "rtn": ("group_size",),
    "fake_quant": ("group_size", "activation_bits"),
    "magnitude": (),
    "wanda": ("calibration",),
    "finetune": ("rows", "examples", "rank", "batch_size", "lr"),
    "decoding": ("top_p",),
    "prefill": (),
}
# The levels of each kind: their unit, least and most, and whether they are whole numbers.
LEVELS: dict[str, tuple[str, float, float, bool]] = {
    "weight_noise": ("σ", 0, float("inf"), False),
    "activation_noise": ("σ", 0, float("inf"), False),
    "bnb": ("bits", 4, 8, True),
    "torchao": ("bits", 8, 8, True),
    "rtn": ("bits", 2, 16, True),
    "fake_quant": ("bits", 2, 16, True),
    "magnitude": ("share of the weights", 0, 1, False),
    "wanda": ("share of the weights", 0, 1, False),
    "finetune": ("steps", 0, float("inf"), True),
    "decoding": ("temperature", 0, float("inf"), False),
    "prefill": ("tokens", 0, float("inf"), True),
}


@dataclass
class PerturbConfig:
    kind: str = choice(*OPTIONS)
    levels: list[float] = MISSING
    family: str = MISSING  # the column of the main table that this perturbation counts towards
    draws: int = ranged(least=1)
    # Levels at which responses are generated; null: at all, []: at none.
    generate: list[float] | None = field(default=None, metadata={"may_be_empty": True})
    mode: str | None = option("relative", "absolute", "norm")
    scale: str | None = option("relative", "absolute")
    place: str | None = option("residual", "norm", "mlp")
    tokens: str | None = option("prompt", "generated", "all")
    worst_of: int | None = option(least=1)  # sub-draws, of which each prompt keeps the one with the lowest margin
    scheme: str | None = option("int8", "nf4", "fp4")
    group_size: int | None = option(least=1)
    activation_bits: int | None = option(least=2, most=16)
    calibration: int | None = option(least=1)  # rows
    rows: str | None = option("benign", "attack")
    examples: int | None = option(least=1)
    rank: int | None = option(least=1)
    batch_size: int | None = option(least=1)
    lr: float | None = option(above=0)
    top_p: float | None = option(above=0, most=1)


@dataclass
class EvaluateConfig:
    batch_size: int = ranged(least=1)
    max_new_tokens: int = ranged(least=1)
    utility: str = choice("exact_match", "perplexity")
    tasks: list[str] = field(default_factory=list, metadata={"may_be_empty": True})  # of lm-eval, on the clean model
    task_limit: int | None = field(default=None, metadata={"least": 1})  # documents a task
    task_folder: str | None = None  # task files of one's own
    prompts: dict[str, int | None] = field(default_factory=dict)  # cap per split and label


@dataclass
class RefusalConfig:
    """Groups of regular expressions; `holdfast.judges.rules` says where each is looked for."""

    opening_words: int = ranged(least=1)
    openings: list[str] = MISSING
    declines: list[str] = MISSING
    judgements: list[str] = MISSING
    withholds: list[str] = MISSING
    redirects: list[str] = MISSING
    premises: list[str] = MISSING


@dataclass
class JudgeConfig:
    name: str = MISSING
    kind: str = choice("rules", "classifier")
    refusal: RefusalConfig = field(default_factory=RefusalConfig)
    coherence_quantile: float = ranged(above=0, most=1)
    coherence_slack: float = ranged(least=0)
    repeated_words: int = ranged(least=1)
    max_repeats: int = ranged(least=1)
    # What follows is a classifier's.
    path: str | None = None  # Hub id or folder
    revision: str | None = None
    dtype: str | None = field(default=None, metadata={"options": ("float32", "bfloat16", "float16")})
    batch_size: int | None = field(default=None, metadata={"least": 1})
    chat_template: bool = False  # the tokenizer's own; otherwise
    template: str | None = None  # with the places {prompt} and {response}
    variables: dict[str, str] = field(default_factory=dict)  # what the chat template is also given
    max_new_tokens: int | None = field(default=None, metadata={"least": 1})
    parser: str | None = field(default=None, metadata={"options": ("first_word", "last_label", "expectation")})
    patterns: dict[str, str] = field(default_factory=dict)  # label -> regular expression in the reply
    threshold: float | None = field(default=None, metadata={"least": 0, "most": 1})


@dataclass
class CoverageConfig:
    """The simulated studies that say how often an interval holds the truth."""

    studies: int = ranged(least=1)
    matched_studies: int = ranged(least=1)
    rates: list[float] = MISSING
    spreads: list[float] = MISSING


# What the tables stage makes, and the parts of a study that each is made from beside the estimates.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "estimates": (),
    "main": (),
    "dose_response": (),
    "quantization": (),
    "selection": ("sensitivity", "online", "outcomes", "costs"),
    "cost": ("costs", "timing"),
    "claims": ("sensitivity", "online", "costs"),
    "optimizers": ("sensitivity", "costs"),
    "judges": ("records",),
    "tasks": ("tasks",),
    "figures": ("records", "sensitivity", "costs"),
    "evidence": ("sensitivity", "online", "outcomes", "costs", "timing", "tasks"),
}
ESTIMATES = ("metrics.npy", "index.json")  # the files of "estimates"


@dataclass
class TablesConfig:
    make: list[str] = field(default=MISSING, metadata={"options": tuple(PRODUCTS)})
    source: str | None = None  # folder of a study's compact records; null: its runs' own folders
    estimates: str | None = None  # folder of the estimates; null: computed anew
    dir: str | None = None  # where tables go, and
    figures: str | None = None  # figures; null: the run's own folder
    over_refusal: float = ranged(above=0, most=0.5)
    headline_asr: float = ranged(above=0, most=1)
    confidence: float = ranged(above=0.5, most=0.999)
    resamples: int = ranged(least=50)
    equivalence: float = ranged(above=0, most=1)
    coverage: CoverageConfig = field(default_factory=CoverageConfig)


@dataclass
class HeadlineConfig:
    """The point at which a family is judged."""

    perturbation: str = MISSING
    level: float = MISSING


@dataclass
class RolesConfig:
    """The methods that play a part in a claim."""

    paper: str = MISSING
    all: str = MISSING
    random: str = MISSING
    shuffled: str = MISSING
    extrapolate: str = MISSING
    online: str = MISSING
    forward_only: list[str] = MISSING
    first_orders: list[str] = MISSING


@dataclass
class ClaimsConfig:
    """The rules by which claims are judged, to be fixed before a study is run."""

    primary: str = choice("asr_matched", "asr_margin")
    margin: float = ranged(above=0, most=1)  # a difference within this counts as none
    confidence: float = ranged(above=0.5, most=0.999)
    stable: float = ranged(least=-1, most=1)  # the rank correlation above which an order of layers is stable
    overhead: float = ranged(above=0)  # of refinement over alignment, as a share
    top_k: int = ranged(least=1)  # layers that a choice is compared by
    families: dict[str, HeadlineConfig] = field(default_factory=dict)
    judged: list[str] = MISSING  # recipes
    lengths: list[str] = MISSING  # recipes, by the length of their alignment
    budgets: dict[str, list[str]] = field(default_factory=dict)  # line of a figure -> one method, by its budget
    optimizers: list[str] = field(default_factory=list, metadata={"may_be_empty": True})  # recipes to be compared
    methods: RolesConfig = field(default_factory=RolesConfig)


@dataclass
class PlanConfig:
    """What a plan is made for. Throughputs are what forwards reach, not what a data sheet says."""

    # Memory of each GPU to judge by; []: stages run on this machine's CPU, in its memory.
    gpu_gib: list[float] = field(default=MISSING, metadata={"above": 0, "may_be_empty": True})
    flops: float | None = field(default=None, metadata={"above": 0})  # a second, in the model's dtype; null: measured
    bandwidth: float | None = field(default=None, metadata={"above": 0})  # of memory, bytes a second; null: measured
    # The longest of each, while the data set is not made: others are taken to be evenly spread below it.
    prompt_tokens: int = ranged(least=1)
    response_tokens: int = ranged(least=1)


@dataclass
class TrackingConfig:
    mode: str = choice("offline", "online", "disabled")
    project: str = MISSING
    dir: str = MISSING


@dataclass
class Config:
    study: StudyConfig = field(default_factory=StudyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    openings: OpeningSets = field(default_factory=OpeningSets)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)  # takes some of its values from refine
    perturb: dict[str, PerturbConfig] = field(default_factory=dict)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    claims: ClaimsConfig = field(default_factory=ClaimsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = ranged(least=0)
    results: str = MISSING
