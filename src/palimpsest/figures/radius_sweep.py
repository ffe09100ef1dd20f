"""GRACE's two choices, radius and edited block: what they cost and give, and how many keys they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, lifelong_captions, read, style
from palimpsest.figures.lifelong import LOWER_IS_BETTER
from palimpsest.figures.read import Run
from palimpsest.figures.stream_curves import perplexity_axis


def radius_of(run: Run) -> tuple[float, bool]:
    """(initial radius, whether it is a multiple of the median distance between neighbouring upstream queries)."""
    ratio = run.settings.get("radius_ratio")
    return (float(ratio), True) if ratio is not None else (float(run.settings["radius"]), False)


def radius_words(relative: bool) -> str:
    """How the radius axis is named."""
    return "radius / median distance" if relative else "initial radius"


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Above: radius x block at the end of the stream; below: along the stream, a row per block, a line per radius."""
    runs = read.select(spec, run_dirs)
    places = lifelong.places_of(spec, runs)
    if len(places) > 1:
        raise DataError(
            f"the sweep shows one task, the runs have {len(places)}", remedy="Name one model and data set"
        )
    quantities = [
        name
        for name in ("trr", "err", "holdout", "arr", "keys")
        if any(len(lifelong.curve(r, name)) for r in runs)
    ][-4:]
    relative = radius_of(runs[0])[1]
    blocks = sorted({int(run.settings["layer"]) for run in runs})
    radii = sorted({radius_of(run)[0] for run in runs})
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.9, 1.6 + (0.3 + 1.55) * len(blocks))
        axes = figure.subplots(
            1 + len(blocks),
            len(quantities),
            squeeze=False,
            height_ratios=[0.35 + 0.24 * len(blocks), *[1.3] * len(blocks)],
        )
        for column, quantity in enumerate(quantities):
            points += _grid(axes[0][column], runs, quantity, blocks, radii, places[0][0])
            for row, block in enumerate(blocks, start=1):
                points += _lines(axes[row][column], runs, quantity, block, radii, places[0][0])
            _one_scale(list(axes[1:, column]))
            axes[-1][column].set_xlabel("edits made", labelpad=2)
            axes[0][column].set_title(lifelong.TITLES[quantity], pad=7)
            axes[0][column].set_xlabel(radius_words(relative), labelpad=3)
        axes[0][0].set_ylabel("edited block", labelpad=6)
        for row, block in enumerate(blocks, start=1):
            axes[row][0].set_ylabel(f"block {block}", fontweight="bold", labelpad=6)
        title = "initial " + radius_words(relative).removeprefix("initial ")
        figure.legend(
            *_every_line(list(axes[1:, 0]), radii),
            loc="outside lower center", ncols=len(radii), title=title, title_fontsize=8,
        )  # fmt: skip
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            lifelong_captions.streams(runs),
            lifelong_captions.scores(runs),
            lifelong_captions.legend(quantities),
            "Above: after the whole stream, mean over seeds; a darker cell is better (of keys and perplexities: lower), on each "
            "panel's own scale. Below: a row per block, a line per radius, dotted the unedited model.",
            lifelong_captions.bands(runs),
            "Blocks count from 0."
            + (
                " Radii are multiples of the median distance from an upstream query to its nearest neighbour."
                if relative
                else ""
            ),
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _chosen(runs: Sequence[Run], block: int, radius: float) -> list[Run]:
    return [run for run in runs if int(run.settings["layer"]) == block and radius_of(run)[0] == radius]


def _grid(
    axis: Axes, runs: Sequence[Run], quantity: str, blocks: Sequence[int], radii: Sequence[float], task: str
) -> list[dict[str, Any]]:
    points = []
    values = np.full((len(blocks), len(radii)), np.nan)
    for row, block in enumerate(blocks):
        for column, radius in enumerate(radii):
            found = lifelong.over_seeds(_chosen(runs, block, radius), quantity)
            if found is not None:
                values[row, column] = found.mean
                points.append(
                    {
                        "panel": "grid",
                        "quantity": quantity,
                        "block": block,
                        "radius": radius,
                        **found._asdict(),
                    }
                )
    logarithmic = quantity in ("keys", "arr") or task in LOWER_IS_BETTER
    low, high = np.nanmin(values), np.nanmax(values)
    norm = (
        LogNorm(max(low, 1e-9), max(high, low * 1.01))
        if logarithmic
        else Normalize(min(low, high - 0.1), high)
    )
    colours = matplotlib.colormaps["BuPu"]
    shades = np.array(norm(np.ma.masked_invalid(values)).filled(np.nan))
    shades = (1 - shades if logarithmic else shades) * 0.72 + 0.06  # darker is better
    for (row, column), shade in np.ndenumerate(shades):
        colour = colours(shade) if np.isfinite(shade) else "#f4f4f4"
        axis.add_patch(matplotlib.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, lw=0))
        axis.text(
            column, row, _cell(float(values[row, column]), quantity, task), ha="center", va="center", fontsize=6.6,
            color="white" if np.isfinite(shade) and shade > 0.55 else style.INK,
        )  # fmt: skip
    axis.set_xlim(-0.5, len(radii) - 0.5)
    axis.set_ylim(len(blocks) - 0.5, -0.5)  # in the order of the rows below
    axis.set_xticks(range(len(radii)), [f"{radius:g}" for radius in radii])
    axis.set_yticks(range(len(blocks)), [str(block) for block in blocks])
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return points


def _cell(number: float, quantity: str, task: str) -> str:
    if not np.isfinite(number):
        return ""
    if quantity == "keys":
        return f"{number:,.0f}"
    if task in LOWER_IS_BETTER or quantity == "arr":
        return f"{number:.1f}" if number < 100 else f"{number:,.0f}"
    return f"{number:.2f}".removeprefix("0")


def _lines(
    axis: Axes, runs: Sequence[Run], quantity: str, block: int, radii: Sequence[float], task: str
) -> list[dict[str, Any]]:
    points = []
    for radius, colour in zip(radii, style.sequence_colours(len(radii)), strict=True):
        own = _chosen(runs, block, radius)
        if not own:  # a sweep may vary one of the two at a time
            continue
        table = lifelong.curve_over_seeds(own, quantity)
        if quantity == "err":
            table = table[table["step"] > 0]
        axis.fill_between(table["n_edits"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["n_edits"],
            table["mean"],
            color=colour,
            marker="o",
            ms=3.2,
            mec="white",
            mew=0.4,
            label=f"{radius:g}",
        )
        same = {"panel": "line", "quantity": quantity, "block": block, "radius": radius}
        points += [{**same, **row} for row in table.to_dict("records")]
    before = lifelong.over_seeds(
        [run for run in runs if int(run.settings["layer"]) == block], quantity, "start"
    )
    if before is not None and quantity != "keys":
        axis.axhline(before.mean, color=style.FAINT, lw=0.9, ls=":", zorder=1)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    if quantity == "keys":
        axis.set_ylim(bottom=0)
    elif task in LOWER_IS_BETTER or quantity == "arr":
        perplexity_axis(axis)
    else:
        style.unit_axis(axis)
    return points


def _one_scale(axes: Sequence[Axes]) -> None:
    """The blocks of a column can be compared."""
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    right = max(axis.get_xlim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(min(lows), max(highs))
        axis.set_xlim(0, right)


def _every_line(axes: Sequence[Axes], radii: Sequence[float]) -> tuple[list[Any], list[str]]:
    """One handle per radius: a block may lack some."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [f"{radius:g}" for radius in radii if f"{radius:g}" in found]
    return [found[label] for label in labels], labels
