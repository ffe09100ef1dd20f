"""Tables as csv, markdown, LaTeX (booktabs) and, for the gallery, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import style
from palimpsest.figures.read import UNEDITED
from palimpsest.files import write_atomic, write_text

_TEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "^": r"\^{}",
    "~": r"\~{}",
    "<": "$<$",
    ">": "$>$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "−": "$-$",
}


@dataclass(frozen=True)
class Table:
    """Ready text cells in groups of rows.

    Attributes:
        columns: heading of each column; the first is the row's name.
        groups: (title of the group, rows of text).
        emphasis: (group, row, column) of the cells to be set in bold.
        faint: (group, row) of rows that hold no measurement.
        words: columns of text, which begin at the left; numbers end at the right.
        notes: what marks in the table mean, under it.
    """

    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    emphasis: frozenset[tuple[int, int, int]] = field(default_factory=frozenset)
    faint: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    words: frozenset[int] = frozenset({0})
    notes: tuple[str, ...] = ()

    def aligned(self, left: str, right: str) -> list[str]:
        """One mark for each column."""
        return [left if column in self.words else right for column in range(len(self.columns))]


FEWER = "‡"  # a dagger marks printed numbers that are unchecked


def mark_fewer_seeds(table: Table, points: pd.DataFrame, places: Sequence[str]) -> Table:
    """The table with a mark at the name of every row of fewer seeds than the other rows have, and a note that says how many.

    Args:
        table: its groups are those of `points` by the columns `places`, in the same order; a row's first cell is its method.
        points: rows with the columns method and seeds, and `places`.
        places: what tells the table's groups apart.
    """
    if "seeds" not in points:
        return table
    counts = points.dropna(subset=["seeds"]).groupby([*places, "method"])["seeds"].max()
    most = counts[counts.index.get_level_values("method") != UNEDITED.title].max()
    groups, fewer = [], set()
    for (place, _), (title, rows) in zip(points.groupby(list(places), sort=False), table.groups, strict=True):
        named = []
        for cells in rows:
            seeds = counts.get((*place, cells[0]), most)
            if seeds < most:
                fewer.add(int(seeds))
            named.append([f"{cells[0]} {FEWER}" if seeds < most else cells[0], *cells[1:]])
        groups.append((title, named))
    if not fewer:
        return table
    numbers = " or ".join(map(str, sorted(fewer)))
    note = f"{FEWER} Fewer seeds: {numbers}, where the other rows have {int(most)}."
    return replace(table, groups=groups, notes=(*table.notes, note))


def save_table(
    table: Table, name: str, out: Path, points: pd.DataFrame, caption: str, stamp: str = ""
) -> list[Path]:
    """Write csv (the numbers), md, tex, png (the same table as a picture) and the caption."""
    style.save_points(points, out / f"{name}.csv")
    write_text(out / f"{name}.md", markdown(table) + "\n" + caption)
    write_text(out / f"{name}.tex", latex(table, caption))
    write_text(out / f"{name}.caption.md", caption)
    with style.house_style():
        figure = picture(table)
        style.stamp(figure, stamp)
        write_atomic(
            out / f"{name}.png",
            lambda path: figure.savefig(
                path, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08
            ),
        )
    return [out / f"{name}{suffix}" for suffix in (".csv", ".md", ".tex", ".png", ".caption.md")]


def markdown(table: Table) -> str:
    """The table as GitHub markdown; group titles become rows of their own."""
    rule = "|" + "".join(table.aligned(" --- |", " ---: |"))
    lines = ["| " + " | ".join(table.columns) + " |", rule]
    for number, (title, rows) in enumerate(table.groups):
        if title:
            lines.append(f"| **{title}** |" + " |" * (len(table.columns) - 1))
        for index, row in enumerate(rows):
            cells = [
                f"**{cell}**" if (number, index, column) in table.emphasis and cell else cell
                for column, cell in enumerate(row)
            ]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return "\n".join(lines) + "\n" + notes


def latex(table: Table, caption: str) -> str:
    """The table in booktabs style; needs \\usepackage{booktabs}."""
    width = len(table.columns)
    lines = [
        r"\begin{table}",
        r"\centering\small",
        r"\begin{tabular}{" + "".join(table.aligned("l", "r")) + "}",
        r"\toprule",
    ]
    lines += [" & ".join(_tex(column) for column in table.columns) + r" \\"]
    for number, (title, rows) in enumerate(table.groups):
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(title)}}}}} \\")
        for index, row in enumerate(rows):
            cells = [_tex(cell) for cell in row]
            cells = [
                rf"\textbf{{{cell}}}" if (number, index, column) in table.emphasis and cell else cell
                for column, cell in enumerate(cells)
            ]
            lines.append(" & ".join(cells) + r" \\")
    words = _tex(caption.strip().replace("**", "").replace("*", ""))
    notes = [rf"\par\smallskip{{\footnotesize {_tex(note)}}}" for note in table.notes]
    return (
        "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, rf"\caption{{{words}}}", r"\end{table}"])
        + "\n"
    )


def picture(table: Table) -> Any:
    """The table drawn as a figure: rules only."""
    longest = [
        max(len(column), *(len(row[index]) for _, rows in table.groups for row in rows))
        for index, column in enumerate(table.columns)
    ]
    widths = [0.075 * size + 0.24 for size in longest]
    titles = max((len(title) for title, _ in table.groups), default=0)
    widths[0] += max(0.0, 0.07 * titles + 0.12 - sum(widths))  # a group's title runs over the whole width
    lines = 1 + sum(len(rows) + bool(title) for title, rows in table.groups)
    height = lines + len(table.notes)
    figure = style.new_figure(sum(widths), 0.235 * height + 0.12)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, sum(widths))
    axis.set_ylim(height + 0.25, -0.25)
    rights = [sum(widths[: index + 1]) for index in range(len(widths))]

    def write(y: float, row: Sequence[str], number: int = -1, index: int = -1) -> None:
        colour = style.FAINT if (number, index) in table.faint else style.INK
        for column, cell in enumerate(row):
            bold = number == -1 or (number, index, column) in table.emphasis
            left = column in table.words
            x = rights[column] - widths[column] + 0.06 if left else rights[column] - 0.08
            axis.text(
                x,
                y + 0.5,
                cell,
                ha="left" if left else "right",
                va="center",
                fontsize=8,
                color=colour,
                fontweight="bold" if bold else "normal",
            )

    axis.plot([0, rights[-1]], [0, 0], color=style.INK, lw=1.2, clip_on=False)
    write(0, table.columns)
    y = 1.0
    for number, (title, rows) in enumerate(table.groups):
        axis.plot([0, rights[-1]], [y, y], color=style.INK, lw=0.6)
        if title:
            axis.text(
                0.06, y + 0.5, title, ha="left", va="center", fontsize=8, style="italic", color=style.INK
            )
            y += 1
        for index, row in enumerate(rows):
            write(y, row, number, index)
            y += 1
    axis.plot([0, rights[-1]], [y, y], color=style.INK, lw=1.2, clip_on=False)
    for number, note in enumerate(table.notes):
        axis.text(0.06, y + number + 0.6, note, ha="left", va="center", fontsize=7.5, color=style.INK)
    return figure


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text.replace("\\", ""))
