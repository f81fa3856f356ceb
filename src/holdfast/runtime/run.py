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

from holdfast.errors import UserError
from holdfast.runtime.files import as_json, replacing, write_text
from holdfast.runtime.memory import keep_freed, out_of_memory
from holdfast.runtime.tracking import Tracker
from holdfast.settings.compose import checked, composed, expanded, explained, quoted, ready, sweep
from holdfast.settings.options import Config
from holdfast.settings.paths import CONF, Layout

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
        write_text(self.out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.cfg.as_dict())))
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
    the choices that its label shows; `inputs` maps each file that must exist to the stage that makes it."""

    name: str
    run: Callable[[Run], None]
    reads: tuple[str, ...]
    of: tuple[str, ...] = ()
    inputs: Inputs = lambda cfg: {}

    def main(self, arguments: list[str]) -> None:
        """Everything that can be known without a model is checked before the stage begins."""
        # Importing torch and transformers makes a million objects and no garbage; looking for it takes most of a
        # second.
        gc.set_threshold(100_000, 50, 100)
        keep_freed()
        os.environ["HYDRA_MAIN_MODULE"] = f"holdfast.stages.{self.name}"  # names the job, and so its folder
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors come to us, not to the terminal
        arguments = [word for one in arguments for word in _spelled(one)]
        given = get_args_parser().parse_args(arguments)
        place = [f"hydra.searchpath=[{Path(given.config_dir).resolve()}]"] if given.config_dir else []
        spelled = [word for word in expanded([*place, *given.overrides]) if word not in place]
        flags = [word for word in arguments if word not in given.overrides]
        sys.argv[:] = [f"holdfast {self.name}", *flags, *spelled]
        ready()
        try:
            # A single run is checked as it starts; of a sweep, no job starts before all have been checked.
            jobs = sweep(spelled) if given.multirun else []
            for cfg in [composed([*place, *_scientific(job)]) for job in jobs]:
                _require(self.inputs(cfg))
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(
                lambda cfg: self._execute(cfg, place)
            )()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error)) from None

    def _execute(self, given: DictConfig, place: list[str]) -> None:
        quiet()
        own = HydraConfig.get()
        out, tracker = Path(own.runtime.output_dir), None
        try:
            cfg = checked(given, own.runtime.choices, [*place, *own.overrides.task])
            _require(self.inputs(cfg))
            label = "/".join(self._labels(cfg))
            granted = cfg.only(self.reads)
            tracker = Tracker(cfg, self.name, label, granted.as_dict(), out, self.inputs(cfg))
            names = Names(cfg.model.name, cfg.align.name, cfg.method.name)
            self.run(Run(self.name, label, granted, cfg.seed, names, Layout.of(cfg), out, tracker))
        except Exception as error:
            if tracker:
                tracker.fail()
            if not _is_expected(error):
                raise
            for folder in (out, *out.parents):  # Hydra made them; a stage that failed leaves nothing behind
                if not folder.is_dir() or folder == Path.cwd() or any(folder.iterdir()):
                    break
                folder.rmdir()
            sys.exit(f"holdfast {self.name}: {_said(error)}")  # an exception Hydra would announce at length

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


def _require(paths: dict[Path, str]) -> None:
    for path, maker in paths.items():
        if not path.exists():
            raise UserError(f"{path}: no such file; `snakemake --cores all {path}` or `holdfast {maker}` makes it")


def quiet() -> None:
    """Turn off the libraries' progress bars and notices; their errors stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; bitsandbytes imports seconds faster
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    for library in ("bitsandbytes", "huggingface_hub"):  # the latter would announce each of its retries
        logging.getLogger(library).setLevel(logging.ERROR)


def _is_expected(error: Exception) -> bool:
    """Whether one line can say what is wrong: with the input, or with what the machine has left."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    zo = sys.modules.get("holdfast.zo")  # whose import is torch's: what has not run raised nothing
    weights = zo is not None and isinstance(error, zo.PerturbationError)
    return full or weights or out_of_memory(error) or isinstance(error, (OmegaConfBaseException, UserError))


def _said(error: Exception) -> str:
    """One line for an error that is expected."""
    first = str(error).strip().splitlines()[0].strip() if str(error).strip() else type(error).__name__
    if out_of_memory(error):
        return f"memory ran out ({first}); lower the stage's batch_size, or take a smaller model or dtype"
    return explained(error) if isinstance(error, OmegaConfBaseException) else first
