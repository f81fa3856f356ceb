"""What every stage shares: a checked configuration, an output folder, progress, tracking, one-line errors."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from holdfast.compose import composed, explained, settle, sweep
from holdfast.config import READS
from holdfast.errors import UserError
from holdfast.memory import keep_freed, out_of_memory, release_freed
from holdfast.paths import CONF, Layout
from holdfast.tracking import Tracker

T = TypeVar("T")
Inputs = Callable[[DictConfig], dict[Path, str]]


class Names(NamedTuple):
    """What a run is of: its model, the recipe that aligned it, and the method that refined it."""

    model: str
    recipe: str
    method: str


@dataclass
class Run:
    """One execution of a stage. `cfg` holds only the sections that `READS` grants the stage."""

    stage: str
    label: str
    cfg: DictConfig
    seed: int
    names: Names
    layout: Layout
    out: Path
    tracker: Tracker
    started: float = field(default_factory=time.perf_counter)

    def progress(self, items: Sequence[T], unit: str = "step") -> Iterator[T]:
        """Yield `items`; keep one line up to date on a terminal, print one every ten seconds elsewhere."""
        live, start, shown = sys.stderr.isatty(), time.perf_counter(), 0.0
        for done, item in enumerate(items):
            now = time.perf_counter()
            if now - shown > (0.2 if live else 10) and done:
                left = (now - start) / done * (len(items) - done)
                line = f"{self.stage:<8} {self.label}  {unit} {done}/{len(items)}  {left:.0f} s left"
                print(line, end="\033[K\r" if live else "\n", file=sys.stderr, flush=True)
                shown = now
            yield item

    def save_table(self, frame: Any, name: str) -> None:
        """Write a data frame as Parquet, whole or not at all."""
        with replacing(self.out / name) as path:
            frame.to_parquet(path, index=False)

    def finish(self, metrics: dict[str, Any], headline: str, timing: dict[str, float] | None = None) -> None:
        """Write the metrics last: their presence says that the stage ended well. Times go into a file of their own."""
        import resource

        seconds = time.perf_counter() - self.started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        write_text(self.out / "config.yaml", OmegaConf.to_yaml(self.cfg))
        times = {"seconds": seconds, "peak_rss_mib": peak, **(timing or {})}
        write_text(self.out / "timing.json", as_json(times))
        write_text(self.out / "metrics.json", as_json(metrics))
        self.tracker.finish({**metrics, **times})
        end = "\033[K\n" if sys.stderr.isatty() else "\n"
        wrote = f"wrote {os.path.relpath(self.out)}"
        print(f"{self.stage:<8} {self.label}  done in {seconds:.0f} s: {headline}; {wrote}", end=end, file=sys.stderr)


class peak_memory:
    """Context manager: afterwards `mib` is how much more memory than before was in use at the worst moment, on the GPU
    if there is one; NaN where the system does not tell."""

    mib = float("nan")

    def __enter__(self) -> peak_memory:
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        elif Path("/proc/self/clear_refs").exists():
            release_freed()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            self.mib = torch.cuda.max_memory_allocated() / 2**20 - self.before
        elif hasattr(self, "before"):
            self.mib = _status("VmHWM") - self.before


def _status(key: str) -> float:
    """A figure of this process, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


class replacing:
    """Context manager: yields a temporary path beside `path`, and moves it there if the block succeeds."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def launch(stage: str, run: Callable[[Run], None], inputs: Inputs = lambda cfg: {}) -> None:
    """Entry point of `python -m holdfast.<stage>`.

    Everything that can be known without a model is checked before the stage begins. `inputs` maps each file
    that must exist to the stage that makes it.
    """
    # Importing torch and transformers makes a million objects and no garbage; looking for it takes most of a second.
    gc.set_threshold(100_000, 50, 100)
    keep_freed()
    os.environ["HYDRA_MAIN_MODULE"] = f"holdfast.{stage}"  # names the job, and so its folder
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors come to us, not to the terminal
    arguments = get_args_parser().parse_args()
    try:
        # A single run is checked as it starts; of a sweep, no job starts before all have been checked.
        jobs = sweep(arguments.overrides) if arguments.multirun else []
        for cfg in [composed(_scientific(job, arguments.config_dir)) for job in jobs]:
            _require(inputs(cfg))
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(
            lambda cfg: _execute(stage, run, inputs, cfg)
        )()
    except (AssertionError, AttributeError):  # how OmegaConf answers some overrides, among others
        _blame(stage, _scientific(arguments.overrides, arguments.config_dir))
        raise
    except (HydraException, OmegaConfBaseException, UserError) as error:
        sys.exit(f"holdfast.{stage}: {explained(error)}")


def _blame(stage: str, overrides: list[str]) -> None:
    """Exit with what is wrong with the overrides, if it is them."""
    try:
        composed(overrides)
    except UserError as error:
        sys.exit(f"holdfast.{stage}: {error}")


def _scientific(overrides: list[str], folder: str | None) -> list[str]:
    """Overrides without those of Hydra's own running, but with where YAMLs are searched for."""
    kept = [o for o in overrides if not o.startswith("hydra") or o.startswith("hydra.searchpath")]
    return kept if folder is None else [f"hydra.searchpath=[{Path(folder).resolve()}]", *kept]


def _require(paths: dict[Path, str]) -> None:
    for path, maker in paths.items():
        if not path.exists():
            raise UserError(f"{path}: no such file; `snakemake --cores all {path}` or holdfast.{maker} makes it")


def quiet() -> None:
    """Leave the terminal to our own lines: the libraries' bars and notices off, their errors on."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; bitsandbytes imports seconds faster
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    for library in ("bitsandbytes", "huggingface_hub"):  # the latter would announce each of its retries
        logging.getLogger(library).setLevel(logging.ERROR)


def _execute(stage: str, run: Callable[[Run], None], inputs: Inputs, cfg: DictConfig) -> None:
    quiet()
    out, tracker = Path(HydraConfig.get().runtime.output_dir), None
    try:
        settle(cfg)
        _require(inputs(cfg))
        label = "/".join(_labels(stage, cfg))
        granted = OmegaConf.masked_copy(cfg, list(READS[stage]))
        tracker = Tracker(cfg, stage, label, OmegaConf.to_container(granted), out, inputs(cfg))
        names = Names(cfg.model.name, cfg.align.name, cfg.method.name)
        run(Run(stage, label, granted, cfg.seed, names, Layout.of(cfg), out, tracker))
    except Exception as error:
        if tracker:
            tracker.fail()
        if not _is_expected(error):
            raise
        for folder in (out, *out.parents):  # Hydra made them; a stage that failed leaves nothing behind
            if not folder.is_dir() or folder == Path.cwd() or any(folder.iterdir()):
                break
            folder.rmdir()
        sys.exit(f"holdfast.{stage}: {explained(error)}")  # an exception Hydra would announce in lines of its own


def _is_expected(error: Exception) -> bool:
    """Whether one line can say what is wrong: with the input, or with what the machine has left."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    zo = sys.modules.get("holdfast.zo")  # whose import is torch's: what has not run raised nothing
    weights = zo is not None and isinstance(error, zo.PerturbationError)
    return full or weights or out_of_memory(error) or isinstance(error, (OmegaConfBaseException, UserError))


def _labels(stage: str, cfg: DictConfig) -> Iterable[str]:
    yield cfg.study.name
    if stage not in ("data", "tables"):
        yield cfg.model.name
    if stage in ("align", "probe", "refine", "tune", "evaluate"):
        yield cfg.align.name
    if stage in ("refine", "tune", "evaluate"):
        yield cfg.method.name
    if stage in ("align", "probe", "refine", "tune", "evaluate"):
        yield f"s{cfg.seed}"
    if stage == "tables" and len(cfg.tables.make) == 1:
        yield cfg.tables.make[0]
