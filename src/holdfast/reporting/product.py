"""What a product of the tables stage is: what it needs, which studies have it, which files it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.reporting.options import PRODUCTS
from holdfast.runtime.files import replacing, write_text
from holdfast.settings.options import Config

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from holdfast.reporting.measured import Measured
    from holdfast.reporting.records import Evidence
    from holdfast.reporting.render import Table
    from holdfast.reporting.setting import Setting

ESTIMATES = ("metrics.npy", "index.json")  # what all tables share
SUFFIXES = ("csv", "md", "tex", "html")
Wanted = Callable[[Config], bool]


@dataclass(frozen=True)
class Results:
    """What products are made from."""

    measured: Measured
    setting: Setting
    evidence: Evidence
    cfg: Config

    def frames(self, product: Product) -> dict[str, pd.DataFrame]:
        """The parts of the study that a product is made from."""
        return {part: self.evidence.frame(part) for part in product.parts}


@dataclass(frozen=True)
class Product:
    """`parts` of a study that it is made from beside the estimates; `wanted`: whether a study has it; `terminal`: its
    frame as text that is narrow enough; `beside`: further files."""

    name: str
    title: str
    make: Callable[[Results], Any]
    parts: tuple[str, ...] = ()
    wanted: Wanted = lambda cfg: True
    terminal: Callable[[Any, Setting], str] | None = None
    beside: tuple[str, ...] = ()

    def files(self, cfg: Config) -> list[str]:
        text = [f"{self.name}.txt"] if self.terminal else []
        return [f"{self.name}.{suffix}" for suffix in SUFFIXES] + text + list(self.beside)

    def write(self, results: Results, folder: Path, figures: Path) -> Any:
        made: Table = self.make(results)
        write(made, folder, self.name)
        if self.terminal:
            write_text(folder / f"{self.name}.txt", self.terminal(made.frame, results.setting))
        return made


def write(table: Table, folder: Path, name: str, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    texts = table.texts()
    for suffix in suffixes:
        write_text(folder / f"{name}.{suffix}", texts[suffix])


def table(title: str, *parts: str, **options: Any) -> Callable[[Callable[[Results], Table]], Product]:
    """Decorator: a function from results to a table, which has the function's name. `parts` may be records,
    sensitivity, online, outcomes, costs, timing and tasks; `options` are fields of `Product`."""

    def add(make: Callable[[Results], Table]) -> Product:
        return PRODUCTS.register(make.__name__)(Product(make.__name__, title, make, parts, **options))

    return add


@dataclass(frozen=True)
class Files(Product):
    """What is made before any table, or in place of them."""

    def files(self, cfg: Config) -> list[str]:
        return list(self.beside)


@dataclass(frozen=True)
class Texts(Product):
    """What was said, for reading, which compact records have not. `make` gives texts by the names of `named`."""

    named: Callable[[Config], list[str]] = lambda cfg: []

    def files(self, cfg: Config) -> list[str]:
        return self.named(cfg)

    def write(self, results: Results, folder: Path, figures: Path) -> None:
        for name, text in self.make(results).items():
            write_text(folder / name, text)


@dataclass(frozen=True)
class Figures(Product):
    """Figures, each as PNG and PDF. `make` gives them by the names of `named`."""

    named: Callable[[Config], list[str]] = lambda cfg: []

    def files(self, cfg: Config) -> list[str]:
        return [f"{name}.{suffix}" for name in self.named(cfg) for suffix in ("png", "pdf")]

    def write(self, results: Results, folder: Path, figures: Path) -> dict[str, Figure]:
        from holdfast.reporting.figures import save

        made: dict[str, Figure] = self.make(results)
        for name, figure in made.items():
            for suffix in ("png", "pdf"):
                with replacing(figures / f"{name}.{suffix}") as path:
                    save(figure, path, suffix)
        return made
