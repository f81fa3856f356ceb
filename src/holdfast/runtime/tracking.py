"""Logging to Weights & Biases, offline by default."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from holdfast.errors import UserError, first_line
from holdfast.runtime.files import as_json, write_text
from holdfast.settings.options import Config, Options, section

KEPT = ("config.yaml", "metrics.json", "trajectory.jsonl")  # of a stage's folder, as its artifact
METHOD = "method_name"  # a setting once more without a dot, which panels take for a path
OWN = "wandb.json"  # in a stage's folder: the id of its run, and a digest of the settings that the run is of


@section("tracking")
class Tracking(Options):
    """Where runs are logged."""

    mode: Literal["offline", "online", "disabled"] = Field(description="offline: `wandb sync` uploads later")
    project: str = Field(description="of W&B")
    dir: str = Field(description="where offline runs are kept, in a folder wandb")


class Tracker:
    """One W&B run per stage run; with `tracking=disabled` every call does nothing and W&B is not imported.

    `out`, the stage's folder, keeps the run's id. A stage that is repeated with the same settings continues its run
    (online) or takes its place (offline); other settings, or a run that was deleted at W&B, make a new one. `config`:
    the settings that the stage's results depend on. `inputs`: the files that it reads, and the stage that made each.
    """

    def __init__(
        self, cfg: Config, stage: str, label: str, config: Any, out: Path, inputs: Mapping[Path, str]
    ) -> None:
        self.cfg, self.stage, self.label, self.config, self.out = cfg, stage, label, config, out
        self.results, self.step = Path(cfg.results), 0
        self.inputs = {path.parent: made for path, made in inputs.items() if (path.parent / "metrics.json").is_file()}
        if cfg.tracking.mode == "online":
            self.run  # noqa: B018  what is wrong with the login is said before the work

    @cached_property
    def run(self) -> Any:
        """Offline it begins with what is logged first: to begin takes seconds, and cannot fail."""
        cfg, online = self.cfg, self.cfg.tracking.mode == "online"
        if cfg.tracking.mode == "disabled":
            return None
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = dict(flatten({**self.config, "seed": cfg.seed}))
        if "method" in self.config:
            settings[METHOD] = self.config["method"]["name"]
        name = f"{self.stage}/{self.label}"
        digest = hashlib.sha256(as_json({"name": name, **settings}).encode()).hexdigest()
        known = _known(self.out, digest)
        if known and not online:
            _forget(Path(cfg.tracking.dir, "wandb"), known)
        try:
            run = _begun(
                known or _new_id(),
                project=cfg.tracking.project,
                mode=cfg.tracking.mode,
                dir=cfg.tracking.dir,
                group=f"{cfg.study.name}/{cfg.model.name}",
                job_type=self.stage,
                name=name,
                tags=_tags(self.label, self.config),
                resume="allow" if online else None,
                config=settings,
                settings=wandb.Settings(console="off", x_disable_stats=True, disable_code=True),
            )
            for folder, made in self.inputs.items() if online else ():
                run.use_artifact(self._artifact(folder, made))  # W&B knows one that it has by its content
            write_text(self.out / OWN, as_json({"id": run.id, "settings": digest}))
        except wandb.errors.Error as error:
            hint = "set tracking=offline or run `wandb login`"
            raise UserError(f"tracking={cfg.tracking.mode}: {first_line(error)}; {hint}") from None
        return run

    def log(self, values: Mapping[str, float]) -> None:
        """One step of the history. Steps are counted, so that a continued run does not log what it has again."""
        if self.run:
            self.run.log(dict(values), step=self.step)
            self.step += 1

    def table(self, name: str, frame: Any) -> None:
        if self.run:
            import wandb

            self.run.log({name: wandb.Table(dataframe=frame)}, step=self.step)

    def image(self, name: str, path: Path) -> None:
        if self.run:
            import wandb

            self.run.log({name: wandb.Image(str(path))}, step=self.step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """`summary` under dotted names; a list of numbers, which the history has, is left out."""
        if self.run:
            flat = {k: ", ".join(v) if _words(v) else v for k, v in flatten(summary)}
            self.run.summary.update({k: v for k, v in flat.items() if not isinstance(v, list)})
            # W&B draws lineage from what a run says it used, which it cannot say offline; there the metadata has it.
            used = {self._name(folder, made): _digest(folder / "metrics.json") for folder, made in self.inputs.items()}
            self.run.log_artifact(self._artifact(self.out, self.stage, {"inputs": used}))
            self.run.finish()

    def fail(self) -> None:
        """A stage that failed and left nothing else leaves no id either."""
        if self.run:
            self.run.finish(exit_code=1)
            if [path.name for path in self.out.iterdir()] == [OWN]:
                (self.out / OWN).unlink()

    def _artifact(self, folder: Path, stage: str, metadata: dict[str, Any] | None = None) -> Any:
        import wandb

        found = wandb.Artifact(self._name(folder, stage), type=stage, metadata=metadata)
        for name in KEPT:
            if (folder / name).is_file():
                found.add_file(str(folder / name), policy="immutable")  # no second copy: what is written stays
        return found

    def _name(self, folder: Path, stage: str) -> str:
        """`tiny-tiny-sft-align-s0` of a study's run, `align-2026-01-31_12-00-00` of one that ran alone."""
        inside = folder.resolve().is_relative_to(self.results.resolve())
        parts = folder.resolve().relative_to(self.results.resolve()).parts if inside else (stage, folder.name)
        return "-".join(parts)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, leaf) pairs, so that runs line up key by key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tags(label: str, config: Mapping[str, Any]) -> list[str]:
    """What runs are filtered by: recipe, method, and the perturbations of an evaluation."""
    return list(dict.fromkeys([*label.split("/")[2:], *config.get("perturb", {})]))


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _known(out: Path, digest: str) -> str | None:
    """The id of the run that the folder is of, if that had these settings."""
    if not (out / OWN).is_file():
        return None
    own = json.loads((out / OWN).read_text(encoding="utf-8"))
    return str(own["id"]) if own["settings"] == digest else None


def _new_id() -> str:
    return secrets.token_hex(8)


def _begun(identity: str, **told: Any) -> Any:
    """W&B gives an id once: where the run of this one was deleted there, it has a new one."""
    import wandb

    try:
        return wandb.init(id=identity, **told)
    except wandb.errors.CommError as error:
        if "was previously created and deleted" not in str(error):
            raise
        return wandb.init(id=_new_id(), **told)


def _forget(folder: Path, identity: str) -> None:
    """Remove what an earlier run of the same id left and nobody has uploaded: its results are replaced too."""
    for old in folder.glob(f"offline-run-*-{identity}"):
        if not any(old.glob("*.synced")):
            shutil.rmtree(old)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
