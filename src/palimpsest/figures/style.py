"""One look for all figures: colours and marks of methods, fonts, letters, labels, stamps, saving."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from palimpsest.files import write_atomic, write_text

WIDTH = 7.2  # inches: a text block of two columns
INK = "#222222"
FAINT = "#8a8a8a"
GRID = "#e6e6e6"

# From Okabe and Ito's palette on: methods that share a figure of lines differ for colour-blind readers too (a test holds it).
# A method keeps its colour in every figure.
METHOD_COLOURS = {
    ("comeba_hk", "default"): "#D55E00",
    ("comeba_hk", "no_hooks"): "#009E73",
    ("comeba_hk", "released"): "#CC79A7",
    ("memit", "default"): "#0072B2",
    ("rome", "default"): "#F0A35E",
    ("ft", "default"): "#7A7A7A",
    ("ft", "target_new"): "#333333",
    ("mend", "default"): "#56B4E9",
    ("mend", "k10"): "#1F6FA8",
    ("mend", "mean"): "#E08BA8",
    ("mend", "toolkit"): "#A9D6F0",
    ("mend", "only_alpha"): "#4B6B7A",
    ("serac", "default"): "#B8A100",
    ("serac", "packaged"): "#B8A100",
    ("serac", "random_negatives"): "#8A5A83",
    ("serac", "diagonal"): "#FFB6A3",
    ("serac", "short"): "#33BBEE",
    ("serac", "prompting"): "#6B8E23",
    ("serac", "prompt_only"): "#7D6B00",
    ("serac", "last_batch"): "#4B0082",
    ("lu", "default"): "#332288",
    ("retrieval", "default"): "#117733",
    ("enn", "default"): "#E69F00",
    ("ke", "default"): "#661100",
    ("grace", "default"): "#882255",
    ("grace", "published"): "#DD6699",
    ("ft_ewc", "default"): "#DDBB8A",
    ("ft_retrain", "default"): "#5B2C0A",
    ("defer", "default"): "#111111",
    ("memory", "default"): "#3F4FB5",
}
# None of a method above: a new one is not drawn as an old one.
SPARE_COLOURS = ("#EE8866", "#999933", "#AA3377", "#BBCC33", "#88CCEE", "#DDCC77", "#6699CC")
METHOD_MARKERS = {
    "comeba_hk": "o",
    "memit": "s",
    "rome": "D",
    "ft": "^",
    "mend": "v",
    "serac": "P",
    "grace": "X",
    "ft_ewc": "<",
    "ft_retrain": ">",
    "defer": "d",
    "memory": "p",
    "lu": "*",
    "retrieval": "8",
    "enn": "D",
}
# Forms of one method in one figure, told apart by more than a shade.
VARIANT_MARKERS = {("comeba_hk", "no_hooks"): "D", ("comeba_hk", "released"): "v"}
VARIANT_DASHES = {("comeba_hk", "no_hooks"): "-."}
CUT_WORDS = "Two strokes at the foot of an axis: it does not begin at 0."
METRIC_TITLES = {"reliability": "Reliability", "generality": "Generality", "locality": "Locality"}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.8,
    "ytick.labelsize": 7.8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.2,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "palimpsest",
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Use the house style inside the block; the caller's settings come back afterwards."""
    settings: Any = {**matplotlib.rcParamsDefault, "backend": "agg", **_RC}  # type: ignore[dict-item]
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float = WIDTH, height: float = 4.0) -> Figure:
    """An empty figure that no window system or global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)  # type: ignore[union-attr,call-arg]
    return figure


def method_colour(editor: str, variant: str = "default") -> str:
    """The method's colour: fixed for the methods of the papers, a stable spare one for others."""
    if (editor, variant) in METHOD_COLOURS:
        return METHOD_COLOURS[editor, variant]
    if variant in ("*", "") and (editor, "default") in METHOD_COLOURS:
        return METHOD_COLOURS[editor, "default"]
    return SPARE_COLOURS[sum(map(ord, editor + variant)) % len(SPARE_COLOURS)]


def method_marker(editor: str, variant: str = "default") -> str:
    """The mark of an editor, so that lines can be told apart without colour."""
    return VARIANT_MARKERS.get((editor, variant), METHOD_MARKERS.get(editor, "h"))


def method_dashes(editor: str, variant: str = "default") -> str:
    """Whole lines, broken ones for a form that was published or released."""
    published = variant in ("published", "official", "released")
    return VARIANT_DASHES.get((editor, variant), "--" if published else "-")


def sequence_colours(count: int) -> list[Any]:
    """`count` colours from dark to light for the values of a setting, in order."""
    return [matplotlib.colormaps["viridis"](position) for position in np.linspace(0.0, 0.86, max(count, 1))]


def unedited_line(axis: Axes, value: float) -> None:
    """A thin dotted line where the unedited model stands, with its name at an end where no line drawn before covers it."""
    points = [np.asarray(line.get_xydata(), dtype=float) for line in axis.get_lines()]
    axis.axhline(value, color=FAINT, lw=0.9, ls=":", zorder=1)
    drawn = np.concatenate([*points, np.empty((0, 2))])
    near = drawn[np.abs(drawn[:, 1] - value) < 0.1][:, 0]
    middle = (0 + drawn[:, 0].max()) / 2 if len(drawn) else 0.0
    if (near <= middle).any() and (near > middle).any():
        return
    left = not (near <= middle).any()
    axis.annotate(
        "unedited",
        (0.02 if left else 0.98, value),
        ha="left" if left else "right",
        xycoords=axis.get_yaxis_transform(),
        xytext=(0, 1.5),
        textcoords="offset points",
        fontsize=6.5,
        color=FAINT,
        zorder=1,
    )


def panel_letters(axes: Sequence[Axes]) -> None:
    """a, b, c, ... at the upper left outside of each panel."""
    for letter, axis in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
        axis.set_title(letter, loc="left", fontweight="bold", fontsize=9.5, pad=5)


def unit_axis(axis: Axes, low: float = 0.0) -> None:
    """A y axis for shares: 0 to 1 with a little room, ticks at quarters."""
    axis.set_ylim(low - 0.03, 1.03)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_yticklabels(["0", ".25", ".5", ".75", "1"])


def share_axis(axis: Axes, lowest: float) -> bool:
    """`unit_axis`, or where nothing lies in its lower half one from the tenth below `lowest`, with two strokes at its foot.

    Returns:
        whether the axis begins above 0.
    """
    start = math.floor(10 * lowest + 1e-9) / 10
    if start < 0.5:
        unit_axis(axis)
        return False
    start = min(start, 0.8)  # nearer, and noise would fill the panel
    room = 0.06 * (1 - start)
    axis.set_ylim(start - room, 1 + room)
    ticks = np.linspace(start, 1, round(10 * (1 - start)) + 1)
    axis.set_yticks(ticks, ["1" if tick > 0.99 else f"{tick:.1f}".removeprefix("0") for tick in ticks])
    for height in (0.0, 0.022):
        axis.plot(
            (-0.022, 0.022), (height, height + 0.02), transform=axis.transAxes, color="#555555", lw=0.9,
            clip_on=False, zorder=6,
        )  # fmt: skip
    return True


def plain_number(value: float) -> str:
    """A tick of a logarithmic axis: 0.03, 1,000, and from a million on 3·10⁶."""
    if value < 1e6:
        return f"{value:,.0f}" if value >= 100 else f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10**power:.2g}"
    return f"$10^{{{power}}}$" if factor == "1" else rf"${factor}\cdot 10^{{{power}}}$"


def log_ticks(axis: Axes) -> None:
    """Ticks of a logarithmic y axis whose values are plotted, as plain numbers: dense enough that a narrow range has two."""
    low, high = axis.get_ylim()
    decades = np.log10(high / low)
    steps = (
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
        if decades < 0.45
        else (1, 1.5, 2, 3, 5, 7)
        if decades < 1.2
        else (1, 2, 5)
        if decades < 2
        else (1, 3)
        if decades < 4
        else (1,)
    )
    axis.yaxis.set_major_locator(LogLocator(10, subs=steps, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())


def spread_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions, as little as needed, at least `gap` apart and into [low, high]."""
    order = np.argsort(positions, kind="stable")
    placed = [float(positions[index]) for index in order]
    gap = min(gap, (high - low) / max(len(placed) - 1, 1))
    for _ in range(200):
        moved = False
        for left in range(len(placed) - 1):
            overlap = gap - (placed[left + 1] - placed[left])
            if overlap > 1e-9:
                placed[left] -= overlap / 2
                placed[left + 1] += overlap / 2
                moved = True
        placed[0], placed[-1] = max(placed[0], low), min(placed[-1], high)
        if not moved:
            break
    result = [0.0] * len(placed)
    for rank, index in enumerate(order):
        result[int(index)] = placed[rank]
    return result


def end_labels(
    axis: Axes, ends: Sequence[tuple[float, float, str, Any]], size: float = 7.8, gap: float = 0.085
) -> None:
    """Write each line's name to the right of its end, tied to it by a thin line where it had to move.

    Args:
        axis: a panel whose y limits are final.
        ends: (x, y, text, colour) of each line's last point.
        size: font size.
        gap: smallest distance between labels, as a share of the panel's height.
    """
    if not ends:
        return
    to_axes = axis.transScale + axis.transLimits  # final limits: independent of the panel's place on the page
    starts = [to_axes.transform((x, y)) for x, y, _, _ in ends]
    placed = spread_apart([float(start[1]) for start in starts], gap, 0.02, 0.98)
    for (_, _, text, colour), start, position in zip(ends, starts, placed, strict=True):
        axis.annotate(
            text,
            xy=(float(start[0]), float(start[1])),
            xytext=(1.09, position),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            ha="left",
            fontsize=size,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def stamp(figure: Figure, text: str) -> None:
    """Write a warning across the whole figure, lightly."""
    if text:
        figure.text(
            0.5,
            0.5,
            text,
            ha="center",
            va="center",
            rotation=24,
            fontsize=min(30.0, 9 * figure.get_figheight()),
            color="#B00020",
            alpha=0.16,
            fontweight="bold",
            zorder=100,
            in_layout=False,
        )


def save_figure(figure: Figure, name: str, out: Path, points: pd.DataFrame, caption: str) -> list[Path]:
    """Write pdf, svg, png, csv of the plotted points and caption; the same input gives the same bytes."""
    with house_style():
        figure.draw_without_rendering()  # one layout for the three formats
        _part_titles(figure)
        figure.set_layout_engine(None)  # with one, even "none", each format would be drawn twice
    for suffix in (".pdf", ".svg", ".png"):
        write_atomic(out / f"{name}{suffix}", lambda path, suffix=suffix: _save(figure, path, suffix))  # type: ignore[misc]
    save_points(points, out / f"{name}.csv")
    write_text(out / f"{name}.caption.md", caption)
    return [out / f"{name}{suffix}" for suffix in (".pdf", ".svg", ".png", ".csv", ".caption.md")]


def _part_titles(figure: Figure) -> None:
    """A title that begins at its panel's letter is moved to the right of it."""
    gap = figure.dpi / 14
    for axis in figure.get_axes():
        letter, title = (getattr(axis, name).get_window_extent() for name in ("_left_title", "title"))
        overlap = min(letter.x1 + gap - title.x0, figure.bbox.x1 - title.x1)
        if axis.get_title("left") and axis.get_title() and overlap > 0:
            axis.title.set_x(axis.title.get_position()[0] + overlap / axis.get_window_extent().width)


def save_points(points: pd.DataFrame, path: Path) -> None:
    """The plotted numbers; missing values are empty cells."""
    write_atomic(
        path, lambda target: points.to_csv(target, index=False, lineterminator="\n", float_format="%.6g")
    )


def _save(figure: Figure, path: Path, suffix: str) -> None:
    # No dates: a figure that did not change must not differ.
    metadata: dict[str, dict[str, Any]] = {
        ".pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "palimpsest"},
        ".svg": {"Date": None, "Creator": "palimpsest"},
        ".png": {"Software": None},
    }
    with house_style():
        figure.savefig(os.fspath(path), format=suffix[1:], metadata=metadata[suffix])
