"""What every stage shares: a checked configuration, an output folder, progress, tracking, one-line errors."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from holdfast.errors import UserError
from holdfast.runtime import ranks
from holdfast.runtime.devices import choose
from holdfast.runtime.failures import is_expected
from holdfast.runtime.files import as_json, replacing, write_text
from holdfast.runtime.jobs import Job
from holdfast.runtime.memory import keep_freed
from holdfast.runtime.origin import Origin
from holdfast.runtime.tracking import Tracker
from holdfast.settings.compose import checked, composed, explained, ready
from holdfast.settings.options import Config
from holdfast.settings.overrides import expanded, quoted, sweep
from holdfast.settings.paths import Layout

T = TypeVar("T")
Inputs = Callable[[Config], dict[Path, str]]


class Names(NamedTuple):
    """What a run is of: its model, the recipe that aligned it, and the method that refined it."""

    model: str
    recipe: str
    method: str


@dataclass
class Run:
    """One execution of a stage. `cfg` holds only the sections that the stage reads."""

    stage: str
    label: str
    cfg: Config
    seed: int
    names: Names
    layout: Layout
    out: Path
    tracker: Tracker
    origin: Origin
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
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
        self.origin.write(self.out)
        times = {"seconds": seconds, "peak_rss_mib": peak, **(timing or {})}
        write_text(self.out / "timing.json", as_json(times))
        write_text(self.out / "metrics.json", as_json(metrics))
        self.tracker.finish({**metrics, **times})
        end = "\033[K\n" if sys.stderr.isatty() else "\n"
        wrote = f"wrote {os.path.relpath(self.out)}"
        print(f"{self.stage:<8} {self.label}  done in {seconds:.0f} s: {headline}; {wrote}", end=end, file=sys.stderr)


@dataclass(frozen=True)
class Stage:
    """A verb that Hydra configures. `reads` names the sections that it is handed, and whose changes re-run it; `of`
    the choices that its label shows; `inputs` maps each file that must exist to the stage that makes it; `after` is
    the stage before it. One that `shares` its work may be several processes. What `run` gives is the score that a
    sweep may minimise."""

    name: str
    run: Callable[[Run], float | None]
    reads: tuple[str, ...]
    of: tuple[str, ...] = ()
    inputs: Inputs = lambda cfg: {}
    after: Stage | None = None
    shares: bool = False

    @property
    def known(self) -> tuple[str, ...]:
        """The sections that this stage or one before it reads: what its results may depend on."""
        return tuple(dict.fromkeys([*(self.after.known if self.after else ()), *self.reads]))

    def main(self, arguments: list[str]) -> None:
        """Everything that can be known without a model is checked before the stage begins."""
        # Importing torch and transformers makes a million objects and no garbage; looking for it takes most of a
        # second.
        gc.set_threshold(100_000, 50, 100)
        keep_freed()
        os.environ["HYDRA_MAIN_MODULE"] = f"holdfast.stages.{self.name}"  # names the job, and so its folder
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors come to us, not to the terminal
        ranks.refuse(self.name, self.shares)
        arguments = [*(word for one in arguments for word in _spelled(one)), *ranks.own_folder()]
        given = get_args_parser().parse_args(arguments)
        place = [f"hydra.searchpath=[{Path(given.config_dir).resolve()}]"] if given.config_dir else []
        flags = [word for word in arguments if word not in given.overrides]
        ready()
        try:
            spelled = [word for word in expanded([*place, *given.overrides]) if word not in place]
            sys.argv[:] = [f"holdfast {self.name}", *flags, *spelled]
            if given.multirun or "hydra.mode=MULTIRUN" in spelled:
                ranks.refuse("a sweep", shares=False)
                self._sweep(spelled, place)
            else:
                Job(self, place).run()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error)) from None

    def _sweep(self, overrides: list[str], place: list[str]) -> None:
        """A single run is checked as it starts; of a sweep, no job starts before all have been checked."""
        for cfg in [composed([*place, *_scientific(job)]) for job in sweep(overrides)]:
            _require(self.inputs(cfg), cfg)
        # Beside the results, where a cluster's nodes see it too.
        with tempfile.TemporaryDirectory(prefix=".holdfast-", dir=".") as folder:
            Job(self, place, Path(folder).resolve()).sweep()

    def execute(self, given: DictConfig, place: list[str]) -> float | None:
        """One run; `place` holds the override by which further YAMLs are found. A run that fails leaves no empty
        folders behind."""
        quiet()
        own = HydraConfig.get()
        out, tracker = Path(own.runtime.output_dir), None
        overrides = [*place, *_scientific(own.overrides.hydra), *own.overrides.task]
        try:
            cfg = checked(given, own.runtime.choices, overrides)
            inputs = self.inputs(cfg)
            _require(inputs, cfg)
            choose(cfg.device)
            origin, label = Origin.of(cfg, overrides), "/".join(self._labels(cfg))
            if not ranks.first():
                cfg = cfg.changed(tracking=cfg.tracking.model_copy(update={"mode": "disabled"}))
            tracker = Tracker(cfg, self.name, label, cfg.only(self.known).as_dict(), out, inputs)
            names = Names(cfg.model.name, cfg.align.name, cfg.method.name)
            granted, layout = cfg.only(self.reads), Layout.of(cfg)
            with ranks.joined():
                return self.run(Run(self.name, label, granted, cfg.seed, names, layout, out, tracker, origin))
        except Exception as error:
            if tracker:
                tracker.fail()
            if is_expected(error):
                _remove_empty(out, *([] if own.mode is RunMode.MULTIRUN else out.parents))
            raise

    def _labels(self, cfg: Config) -> Iterable[str]:
        yield cfg.study.name
        for choice in self.of:
            yield f"s{cfg.seed}" if choice == "seed" else getattr(cfg, choice).name
        if self.name == "tables" and len(cfg.tables.make) == 1:
            yield cfg.tables.make[0]


def _spelled(argument: str) -> list[str]:
    """`@overrides` are those that the workflow was given; the value of `@key=value` is taken as it stands."""
    if argument == "@overrides":
        return list(json.loads(os.environ["HOLDFAST_OVERRIDES"]))
    key, _, value = argument.partition("=")
    return [f"{key[1:]}={quoted(value)}"] if key.startswith("@") else [argument]


def _scientific(overrides: list[str]) -> list[str]:
    """Overrides without those of Hydra's own running, but with where YAMLs are searched for."""
    return [o for o in overrides if not o.startswith("hydra") or o.startswith("hydra.searchpath")]


def _require(paths: dict[Path, str], cfg: Config) -> None:
    config = [f"study={cfg.study.name}"] * (cfg.study.name != "tiny")
    config += [f"set={quote('results=' + quote(cfg.results))}"] * (cfg.results != "results")
    more = " ".join(["", "--config", *config]) if config else ""
    for path, maker in paths.items():
        if not path.exists():
            made = f"`snakemake --cores all {quote(str(path))}{more}` or `holdfast {maker}`"
            raise UserError(f"{path}: no such file; {made} makes it")


def _remove_empty(*folders: Path) -> None:
    """Those that Hydra made for a run, from the innermost on."""
    for folder in folders:
        if folder == Path.cwd():
            break
        try:
            folder.rmdir()
        except OSError:  # it holds something
            break


def quiet() -> None:
    """Turn off the libraries' progress bars and notices; their errors stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; bitsandbytes imports seconds faster
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    # torchao names its kernels for other machines, torch what torchao registers, and the Hub each of its retries
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
