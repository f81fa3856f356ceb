"""What the site has beside docs/: the README as its first page, further pages of the repository, and the reference."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "profiles/slurm/README.md": "slurm.md"}
PAGES |= {name: name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.S)
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in PAGES.items()}
    for page, text in {**texts, "reference.md": reference()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the repository has them, which lead outside the site, lead to the site's own pages or are text."""
    if page.file.src_uri.startswith("evidence/"):
        page.meta["hide"] = ["toc"]  # their tables are wide
    source = {made: name for name, made in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def inside(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if target.startswith(("http", "mailto:")):
            return found[0]
        name = os.path.normpath((Path(source).parent / target).as_posix())
        if name in PAGES or name.startswith("docs/"):
            return f"{text}({PAGES.get(name, name.removeprefix('docs/'))}{anchor})"
        return text.strip("[]")

    return with_formulas(LINK.sub(inside, markdown))


def with_formulas(markdown: str) -> str:
    """TeX between dollar signs as MathML, which browsers draw without a script."""

    def drawn(found: re.Match[str]) -> str:
        if found[1]:
            return convert(found[1], display="block")
        return f"<span>{convert(found[2])}</span>"  # which at the beginning of a line begins no block

    parts = CODE.split(markdown)
    return "".join(part if place % 2 else MATH.sub(drawn, part) for place, part in enumerate(parts))


def reference() -> str:
    """What `holdfast <verb> --help` says of every verb."""
    from holdfast.__main__ import MODULES, docstring
    from holdfast.settings.help import help_of

    parts = ["# Every verb and key", "What `holdfast <verb> --help` prints, made from the classes that read the keys."]
    for verb, module in MODULES.items():
        parts.append(f"## {verb}\n\n```text\n{help_of(verb, docstring(module), module, [])}\n```")
    return "\n\n".join(parts)
