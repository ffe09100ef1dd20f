"""Retention along the stream: TRR, ERR, hold-out or ARR, and ES against edits made, for all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from palimpsest.figures import captions, lifelong, lifelong_captions, overlaps, read, style
from palimpsest.figures.lifelong import LOWER_IS_BETTER, Spread
from palimpsest.figures.read import Method, Run

_EDITS = "edits against items"  # what the third panel shows where a task has neither hold-out nor accurates
_FAR = 100  # so many times above the next method a perplexity is named at the edge instead of drawn to scale
_AFTER = ("err", "es", "reliability", "generality")
_NAMES = {**lifelong.TITLES, _EDITS: "Edits needed"}


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: tasks; columns: quantities; one line per method, with the spread over seeds."""
    runs = read.select(spec, run_dirs)
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    places = lifelong.places_of(spec, runs)
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.9, 0.75 + 1.95 * len(places))
        axes = figure.subplots(len(places), 4, squeeze=False)
        for row, place in enumerate(places):
            here = lifelong.at_place(runs, place)
            for column, quantity in enumerate(_quantities(here)):
                panel = axes[row][column]
                points += draw_panel(panel, methods, here, place, quantity)
                panel.set_title(_NAMES[quantity], pad=7)
                panel.set_xlabel("items seen" if quantity == _EDITS else "edits made", labelpad=2)
            title = lifelong.TASK_TITLES[place[0]]
            axes[row][0].set_ylabel(
                f"{title}\n{lifelong_captions.score_title(place[0])}", fontweight="bold", labelpad=6
            )
        method_legend(figure, methods)
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        hidden = overlaps.show(figure, [axis for row in axes for axis in row])
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), _caption(spec, runs, points, hidden)
        )


def _quantities(runs: Sequence[Run]) -> tuple[str, ...]:
    measured = [name for name in ("holdout", "arr") if any(len(lifelong.curve(run, name)) for run in runs)]
    return "trr", "err", measured[0] if measured else _EDITS, "es"


def draw_panel(
    axis: Axes,
    methods: Sequence[Method],
    runs: Sequence[Run],
    place: tuple[str, str, str],
    quantity: str,
    band: Callable[[Sequence[Run], str, pd.DataFrame], pd.DataFrame] | None = None,
) -> list[dict[str, Any]]:
    """One quantity of one task against edits made: lines, bands over seeds, the unedited model dotted.

    `band` gives other limits (columns low and high; none where they are not known) for a method's runs and points.
    """
    points = []
    for method in methods:
        own = [run for run in runs if method.fits(run)]
        table = _line(own, quantity)
        if not len(table):
            continue
        colour = style.method_colour(method.editor, method.variant)
        if band is not None:
            table = band(own, quantity, table)
            _lone_bars(axis, table, colour)
        axis.fill_between(table["x"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["x"],
            table["mean"],
            color=colour,
            marker=style.method_marker(method.editor, method.variant),
            ls=dashes(method),
            mec="white",
            mew=0.5,
            ms=4,
            zorder=4 if dashes(method) != "-" else 3 if method.editor == "grace" else 2,
        )
        identity = {"task": place[0], "model": place[1], "dataset": place[2], "method": method.title}
        points += [{**identity, "quantity": quantity, **row} for row in table.to_dict("records")]
    _finish(axis, runs, place[0], quantity)
    if place[0] in LOWER_IS_BETTER or quantity == "arr":
        _name_what_is_far(axis, methods, points)
    return points


def _lone_bars(axis: Axes, table: pd.DataFrame, colour: Any) -> None:
    """Limits of a point whose neighbours have none make no band. At the start all methods are the same model."""
    known = table["low"].notna()
    lone = table[
        known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False) & (table["x"] > 0)
    ]
    axis.vlines(lone["x"], lone["low"], lone["high"], color=colour, lw=1.2, alpha=0.6)


def _name_what_is_far(axis: Axes, methods: Sequence[Method], points: Sequence[dict[str, Any]]) -> None:
    """A method that explodes would press all others into one line: the axis ends above them, and its name and last value
    stand at the edge."""
    table = pd.DataFrame(points)
    table = table.assign(high=table["high"].fillna(table["mean"]), low=table["low"].fillna(table["mean"]))
    tops = table.groupby("method")["high"].max().sort_values()
    near = tops[: next((n for n in range(1, len(tops)) if tops.iloc[n] > _FAR * tops.iloc[n - 1]), len(tops))]
    far = [method for method in methods if method.title in tops.index and method.title not in near.index]
    if not far:
        return
    lows = table.loc[table["method"].isin(near.index), "low"]
    bottom, named = (
        0.8 * float(lows.min()),
        0.06 + 0.1 * len(far),
    )  # the share of the height that the names take
    axis.set_ylim(bottom, bottom * (1.1 * near.iloc[-1] / bottom) ** (1 / (1 - named)))
    perplexity_axis(axis)
    for line, method in enumerate(far):
        last = [point["mean"] for point in points if point["method"] == method.title][-1]
        axis.annotate(
            f"{method.title}: {float(f'{last:.2g}'):,.0f} \N{UPWARDS ARROW}",
            (0.97, 0.96 - 0.1 * line),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize="small",
            color=style.method_colour(method.editor, method.variant),
        )


def _line(runs: Sequence[Run], quantity: str) -> pd.DataFrame:
    """Points of one method: x, items seen, and the spread over seeds."""
    if quantity != _EDITS:
        table = lifelong.curve_over_seeds(runs, quantity)
        if quantity in _AFTER:  # before any edit these are scores of the whole stream, another set
            table = table[table["step"] > 0]
        return table.assign(x=table["n_edits"])
    frames = [lifelong.curve(run, "err").assign(value=lambda rows: rows["n_edits"]) for run in runs]
    rows: list[dict[str, Any]] = []
    for step, part in pd.concat(frames).groupby("step", sort=True) if frames else ():
        found: Spread | None = lifelong.spread(part["value"])
        assert found is not None
        rows.append({"step": step, "n_edits": found.mean, **found._asdict(), "x": step})
    return pd.DataFrame(rows)


def _finish(axis: Axes, runs: Sequence[Run], task: str, quantity: str) -> None:
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    if quantity == _EDITS:
        longest = max((lifelong.value(run, "seen") or 0.0) for run in runs)
        axis.plot([0, longest], [0, longest], color=style.FAINT, lw=0.8, ls=":", zorder=1)
        axis.set_ylim(bottom=0)
        return
    if quantity != "es":
        before = lifelong.over_seeds(runs, quantity, "start")
        if before is not None:
            axis.axhline(before.mean, color=style.FAINT, lw=0.9, ls=":", zorder=1)
    if task in LOWER_IS_BETTER or quantity == "arr":
        perplexity_axis(axis)
    else:
        style.unit_axis(axis)


def perplexity_axis(axis: Axes) -> None:
    """A logarithmic y axis with plain numbers, of at least one decade."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high / low < 10:
        middle = (low * high) ** 0.5
        axis.set_ylim(middle / 10**0.5, middle * 10**0.5)
    few = axis.get_ylim()[1] / axis.get_ylim()[0] < 200
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0) if few else (1.0,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.plain_number(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())


def dashes(method: Method) -> str:
    """The published form of a method is broken, the corrected one whole."""
    return style.method_dashes(method.editor, method.variant)


def method_legend(figure: Figure, methods: Sequence[Method]) -> None:
    """Names of all methods above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=style.method_colour(method.editor, method.variant),
            marker=style.method_marker(method.editor, method.variant),
            ls=dashes(method),
            mec="white",
            mew=0.5,
            label=method.title,
        )
        for method in methods
    ]
    columns = len(handles) if len(handles) <= 5 else -(-len(handles) // 2)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.6, handlelength=2.2
    )


def _caption(spec: dict[str, Any], runs: Sequence[Run], points: Sequence[dict[str, Any]], *seen: str) -> str:
    shown = {point["quantity"] for point in points}
    words = [
        lifelong_captions.streams(runs),
        lifelong_captions.scores(runs),
        lifelong_captions.legend(shown),
        lifelong_captions.edits_made(runs),
        lifelong_captions.bands(runs),
        lifelong_captions.ends(runs),
        lifelong_captions.replays(runs, shown),
        lifelong_captions.gated(runs),
        "Dotted: the unedited model (for ERR: its score on the whole stream).",
    ]
    if _EDITS in shown:
        words.append("Edits needed: errors met so far, each of which is edited; dotted: every item an error.")
    if any(lifelong.task_of(run) in LOWER_IS_BETTER for run in runs):
        words.append(
            "Perplexities are drawn on logarithmic axes; a method far above all others is named at the edge with its last value."
        )
    return captions.caption(spec, *words, *seen, metrics=False)
