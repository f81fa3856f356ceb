"""LaTeX of a table, narrow enough for a page of `article`: intervals below their estimates, groups of rows under a
heading of their own, and no column that says nothing."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pandas as pd

SWAPS = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--", "−": "$-$"}
SWAPS |= {"σ": r"$\sigma$", "Δ": r"$\Delta$", "±": r"$\pm$", "†": r"$\dagger$", "×": r"$\times$"}
SWAPS |= {"ρ": r"$\rho$", "₊": "$_+$", "₋": "$_-$", "·": r"$\cdot$", "✓": r"$\surd$", "≤": r"$\leq$"}
SWAPS |= {"½": r"$\frac12$", "μ": r"$\mu$", "²": "$^2$", "∞": r"$\infty$", "★": r"$\star$", "κ": r"$\kappa$"}
SWAPS |= {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "≥": r"$\geq$", "~": r"\textasciitilde{}"}
SWAPS |= {"<": "$<$", ">": "$>$", "|": "$|$", "^": r"\^{}", "$": r"\$", "{": r"\{", "}": r"\}"}
LINES, END = r"\begin{tabular}[t]{@{}c@{}}", r"\end{tabular}"  # of one cell
PACKAGES = "% \\usepackage{booktabs,graphicx}\n"
GROUPS = ("metric", "claim", "model", "recipe")  # leading columns that become headings
INTERVAL = re.compile(r"(.+?) (\[[^]]*\])(.*)")
WIDE = 15  # letters of a column's name on one line, and
WORDS = 22  # of a cell
EMPHASIS = re.compile(r"\*(\w+)\*")  # Markdown's, in a caption
# Heights in points, on a page of `article`: what a float may take, a line of the caption and the letters in it, a line
# of a cell, and what names, a heading and a row take beside their lines.
PAGE, CAPTION, LETTERS, LINE, NAMES, HEADING, ROW = 560, 9.5, 84, 8, 30, 14, 2.5


def escape(text: Any) -> str:
    return "".join(SWAPS.get(letter, letter) for letter in str(text))


def stacked(text: Any) -> str:
    """A cell with its interval below the estimate, or broken where it is long."""
    found = INTERVAL.fullmatch(str(text))
    if not found:
        return _broken(text, WORDS)
    return rf"{LINES}{escape(found[1] + found[3])}\\{{\tiny {escape(found[2])}}}{END}"


def latex(blocks: list[pd.DataFrame], caption: str, label: str) -> str:
    """`blocks` of cells that are LaTeX already, below each other; a long one goes on in further floats."""
    floats = []
    for place, parts in enumerate(_floats(blocks, PAGE - CAPTION * (len(caption) // LETTERS + 1))):
        emphasized = EMPHASIS.sub(r"\\emph{\1}", escape(caption))
        said = f"{emphasized}}}\n\\label{{{label}" if place == 0 else "(continued)"
        number = "\\addtocounter{table}{-1}\n" if place else ""
        inner = f"{number}\\caption{{\\footnotesize {said}}}\n\\medskip\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}\n"
        inner += "\n\n\\medskip\n\n".join(map(_scaled, parts))
        floats.append(f"\\begin{{table}}[tp]\n\\centering\n{inner}\n\\end{{table}}\n")
    return PACKAGES + "\n".join(floats)


def _floats(blocks: list[pd.DataFrame], room: float) -> list[list[pd.DataFrame]]:
    """The parts of blocks that each float holds; the first one has `room`, less than a page, below its caption."""
    found: list[list[pd.DataFrame]] = [[]]
    used = 0.0
    for block in blocks:
        start, used = 0, used + NAMES
        for place, height in enumerate(_heights(block)):
            if used + height > room and (place > start or found[-1]):
                found[-1] += [block[start:place]] * (place > start)
                found.append([])
                start, used, room = place, NAMES + CAPTION, PAGE
            used += height
        found[-1].append(block[start:])
    return found


def _above(block: pd.DataFrame) -> list[str]:
    """The leading columns that become headings over rows."""
    return [name for place, name in enumerate(block.columns) if name in GROUPS and place < 3]


def _heights(block: pd.DataFrame) -> list[float]:
    """Of every row, with the heading above it if it begins a group."""
    above = _above(block)
    rows = block.to_numpy()
    lines = [max(str(cell).count(r"\\") for cell in row) + 1 for row in rows]
    keys = [tuple(row) for row in block[above].to_numpy()]
    begins = [bool(above) and (place == 0 or keys[place] != keys[place - 1]) for place in range(len(rows))]
    return [LINE * count + ROW + HEADING * begin for count, begin in zip(lines, begins, strict=True)]


def _scaled(block: pd.DataFrame) -> str:
    """As wide as it is, unless that is more than a line."""
    spec, names, lines = _parts(block)
    body = "\n".join([f"\\begin{{tabular}}{{{spec}}}", r"\toprule", names, r"\midrule", *lines, r"\bottomrule"])
    return f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}\n\\end{{tabular}}}}"


def _parts(block: pd.DataFrame) -> tuple[str, str, list[str]]:
    """Column specification, the line of names, and the lines of rows, those of a group below its heading."""
    block = block.loc[:, [not (block[name] == "--").all() for name in block.columns]]
    above = _above(block)
    shown = block.drop(columns=above)
    lines: list[str] = []
    keys = [tuple(row) for row in block[above].to_numpy()]
    cells = [" & ".join(row) + r" \\[1pt]" for row in shown.to_numpy()]
    for key, rows in groupby(zip(keys, cells, strict=True), key=lambda pair: pair[0]):
        if key:
            words = ", ".join(word.removeprefix(LINES).removesuffix(END).replace(r"\\", " ") for word in key if word)
            lines += [r"\addlinespace"] * bool(lines) + [
                rf"\multicolumn{{{shown.shape[1]}}}{{l}}{{\emph{{{words}}}}} \\"
            ]
        lines += [line for _, line in rows]
    spec = "l" + "c" * (shown.shape[1] - 1)
    return spec, " & ".join(_broken(name, WIDE) for name in shown.columns) + r" \\", lines


def _broken(text: Any, width: int) -> str:
    """At spaces and underscores, where it is longer."""
    lines = [""]
    for word in re.findall(r"[^ _]+[ _]?", str(text)):
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    joined = r"\\".join(escape(line.strip()) for line in lines)
    return f"{LINES}{joined}{END}" if len(lines) > 1 else joined
