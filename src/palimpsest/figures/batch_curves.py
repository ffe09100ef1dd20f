"""Success and drawdown over the number of simultaneous edits, and what an edit costs then.

SERAC's figure on simultaneous edits (arXiv 2206.06520), MEND's Table 5 (arXiv 2110.11309).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong_captions, overlaps, read, simultaneous, style
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.read import Method, Run
from palimpsest.figures.simultaneous import quantity
from palimpsest.published import UNCHECKED_MARK, load_table

NAMES = ("edit", "rephrase", "dd_near", "dd_far")
Place = tuple[str, str]


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: model and data set; columns: quantities; x: edits at once, logarithmic; one line per method."""
    runs = _simultaneous(spec, run_dirs)
    options = spec.get("options") or {}
    names = list(options.get("quantities") or NAMES)
    methods = _drawn(spec, runs)
    rows = simultaneous.places(spec, runs)
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.2, 0.95 + 2.0 * len(rows))
        axes = figure.subplots(len(rows), len(names), squeeze=False, sharex="row")
        for row, place in enumerate(rows):
            here = simultaneous.at_place(runs, place)
            drifts = simultaneous.judged_by_drift(here)
            for column, quantity_name in enumerate(names):
                axis, own = axes[row][column], []
                shown = _shown(quantity_name, drifts)
                for method in methods if shown else ():
                    own += _line(axis, method, here, shown, options, place)
                    own += _printed_line(axis, method, shown, options, place)
                _scale(axis, own, shown)
                points += own
            _sizes_axis(axes[row], simultaneous.sizes(here))
            _row_title(axes[row][0], place, rows)
        for column, quantity_name in enumerate(names):
            axes[0][column].set_title(quantity(quantity_name).title, pad=8)
            axes[-1][column].set_xlabel("edits at once")
        legend(figure, methods, points)
        style.panel_letters([axis for row in axes for axis in row if axis.axison])
        style.stamp(figure, captions.stamp_text(spec))
        hidden = overlaps.show(figure, [axis for row in axes for axis in row])
        caption = _caption(spec, _lines_runs(spec, runs), names, pd.DataFrame(points), hidden)
        return style.save_figure(figure, name, out, pd.DataFrame(points), caption)


def _simultaneous(spec: dict[str, Any], run_dirs: list[Path]) -> list[Run]:
    """The runs that fit; of several experiments' runs (`with_runs_of`) those of simultaneous edits.

    Raises:
        DataError: there is none.
    """
    runs = [run for run in read.select(spec, run_dirs) if run.spec["protocol"] == simultaneous.PROTOCOL]
    if not runs:
        raise DataError(
            f"no run of simultaneous edits fits figure '{spec.get('name', '?')}'",
            remedy="Check the figure's methods and with_runs_of",
        )
    return runs


def _drawn(spec: dict[str, Any], runs: Sequence[Run]) -> list[Method]:
    """Methods with runs or printed numbers."""
    return [
        method
        for method in read.methods_of(spec, runs)
        if any(method.fits(run) for run in runs) or printed_sizes(spec.get("options") or {}, method)
    ]


def _line(
    axis: Axes, method: Method, runs: Sequence[Run], name: str, options: dict[str, Any], place: Place
) -> list[dict[str, Any]]:
    own = same_seeds([run for run in runs if method.fits(run)] if not method.not_run else [])
    sample = options.get("draws", DRAWS), options.get("level", LEVEL)
    found = {k: simultaneous.measure(own, name, k, *sample) for k in simultaneous.sizes(own)}
    rows = [{"k": k, **interval._asdict()} for k, interval in found.items() if interval]
    if rows:
        table = pd.DataFrame(rows)
        colour = style.method_colour(method.editor, method.variant)
        axis.fill_between(table["k"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["k"], table["mean"], color=colour, marker=marker(method), ms=5.6, mec="white", mew=0.5
        )
    same = {"model": place[0], "dataset": place[1], "method": method.title, "quantity": name}
    return [{**same, "source": "measured", **row} for row in rows]


def _lines_runs(spec: dict[str, Any], runs: Sequence[Run]) -> list[Run]:
    """The runs that lines are drawn of."""
    kept = []
    for place in simultaneous.places(spec, runs):
        at = simultaneous.at_place(runs, place)
        for method in read.methods_of(spec, runs):
            kept += [run for run in same_seeds([run for run in at if method.fits(run)]) if run not in kept]
    return kept


def same_seeds(runs: Sequence[Run]) -> list[Run]:
    """The runs of the seeds that every k has: runs of several experiments may have more of them at some k, which is no line."""
    at = {k: {run.seed for run in runs if k in simultaneous.sizes([run])} for k in simultaneous.sizes(runs)}
    common = set.intersection(*at.values()) if at else set()
    return [run for run in runs if run.seed in common] or list(runs)


def printed_sizes(options: dict[str, Any], method: Method) -> list[int]:
    """Every k for which the published table has a number of the method."""
    published = options.get("published") or {}
    if not published.get("table") or not method.published:
        return []
    cells = [cell for cell in load_table(published["table"]) if cell.method == method.published]
    return sorted({int(cell.metric.partition("@")[2]) for cell in cells if "@" in cell.metric})


def _printed_line(
    axis: Axes, method: Method, name: str, options: dict[str, Any], place: Place
) -> list[dict[str, Any]]:
    """The paper's numbers as hollow marks on a dotted line."""
    published = options.get("published") or {}
    metric = quantity(name).printed
    if not metric or not printed_sizes(options, method):
        return []
    wanted = (published["dataset"], published["model"], method.published)
    rows: list[dict[str, Any]] = []
    for cell in load_table(published["table"]):
        if (cell.dataset, cell.model, cell.method) == wanted and cell.metric.partition("@")[0] == metric:
            rows.append({"k": int(cell.metric.partition("@")[2]), "mean": cell.value, "shown": cell.shown})
    if not rows:
        return []
    rows.sort(key=lambda row: int(row["k"]))
    table = pd.DataFrame(rows)
    colour = style.method_colour(method.editor, method.variant)
    axis.plot(
        table["k"], table["mean"], color=colour, ls=":", lw=1.0, marker=marker(method),
        mfc="white", mec=colour, mew=1.0, zorder=2,
    )  # fmt: skip
    same = {"model": place[0], "dataset": place[1], "method": method.title, "quantity": name}
    return [{**same, "source": "printed", **row} for row in rows]


def marker(method: Method) -> str:
    """The editor's mark."""
    return style.method_marker(method.editor, method.variant)


def _shown(name: str, drifts: bool) -> str:
    """What is drawn for a quantity: in dialogue a divergence for a share; "" where it has none (ES − DD)."""
    if not drifts:
        return name
    return "" if name == "es_minus_dd" else simultaneous.DRIFTS.get(name, name)


def _scale(axis: Axes, points: Sequence[dict[str, Any]], shown: str) -> None:
    """Shares from 0 to 1, and below where something lies there; divergences from 0; no axes where nothing is to be drawn."""
    if not shown:
        axis.set_axis_off()
        return
    if shown in simultaneous.DRIFTS.values():
        axis.set_ylim(bottom=0)
        axis.set_title(quantity(shown).title, pad=4)
        return
    lowest = min((min(point["mean"], point.get("low", 0.0)) for point in points), default=0.0)
    style.unit_axis(axis)
    if lowest < -0.03:
        below = [(-1.0, "−1"), (-0.5, "−.5")] if lowest < -0.5 else [(-0.5, "−.5")]
        axis.set_ylim(below[0][0] - 0.03, 1.03)
        axis.set_yticks(*zip(*below, (0, "0"), (0.5, ".5"), (1, "1"), strict=True))


def _sizes_axis(axes: Sequence[Axes], measured: Sequence[int]) -> None:
    """Logarithmic, with a tick at each k that was run and room for its number."""
    for axis in axes:
        axis.set_xscale("log")
        shown: list[int] = []
        for k in sorted(measured, reverse=True):
            if not shown or k * 1.7 < shown[-1]:
                shown.append(k)
        axis.set_xticks(shown, [f"{k:,}" for k in shown])
        axis.minorticks_off()


def _row_title(axis: Axes, place: Place, rows: Sequence[Place]) -> None:
    title = captions.dataset_title(place[1])
    several = len({model for model, _ in rows}) > 1
    axis.set_ylabel(f"{title}\n{place[0]}" if several else title, fontweight="bold")


def legend(figure: Figure, methods: Sequence[Method], points: Sequence[dict[str, Any]]) -> None:
    """Names of all lines drawn, above the panels."""
    drawn: dict[str, set[str]] = {}
    for point in points:
        drawn.setdefault(point["method"], set()).add(point["source"])
    handles = []
    for method in methods:
        sources = drawn.get(method.title)
        if sources:
            measured = "measured" in sources
            colour = style.method_colour(method.editor, method.variant)
            edge, width = ("white", 0.5) if measured else (colour, 1.0)
            handles.append(
                Line2D(
                    [], [], color=colour, marker=marker(method), ls="-" if measured else ":",
                    mfc=colour if measured else "white", mec=edge, mew=width, ms=5.6,
                    label=method.title if measured else f"{method.title}, printed",
                )
            )  # fmt: skip
    if any({"measured", "printed"} <= sources for sources in drawn.values()):
        label = "that method, as printed"
        handles.append(
            Line2D([], [], color=style.INK, ls=":", marker="o", mfc="white", mew=1.0, ms=5.6, label=label)
        )
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 3),
        columnspacing=1.4,
        handlelength=1.8,
    )


def _caption(
    spec: dict[str, Any], runs: Sequence[Run], names: Sequence[str], points: pd.DataFrame, hidden: str
) -> str:
    words = [
        simultaneous.counts(runs),
        simultaneous.definitions(names, runs),
        _coincide(points),
        hidden,
        captions.intervals((spec.get("options") or {}).get("level", LEVEL)),
        captions.trained_once(runs),
        captions.measured_radii(runs),
        "Where all edits of a seed make one batch, the interval is of its records and says nothing about other batches.",
    ]
    printed = points[points["source"] == "printed"]
    if len(printed):
        published = spec["options"]["published"]
        words.append(
            f"Hollow marks, dotted: printed in the paper ({published['dataset']}, {published['model']}; a bound such as >.99 is "
            f"drawn at its number){'; ' + published['note'] if published.get('note') else ''}."
        )
        if printed["shown"].str.endswith(UNCHECKED_MARK).any():
            words.append(lifelong_captions.unchecked())
    missing = [
        method.title
        for method in read.methods_of(spec, runs)
        if method.not_run or not any(method.fits(run) for run in runs)
    ]
    if missing:
        words.append(f"Not run: {', '.join(missing)}.")
    return captions.caption(spec, *words, metrics=False)


def _coincide(points: pd.DataFrame) -> str:
    """Which lines hide each other: three or more methods that stay at one value in a panel."""
    words = []
    measured = points[points["source"] == "measured"]
    several = len(measured[["model", "dataset"]].drop_duplicates()) > 1
    for (_, dataset, name), own in measured.groupby(["model", "dataset", "quantity"], sort=False):
        levels: dict[float, list[str]] = {}
        for method, line in own.groupby("method", sort=False):
            if line["mean"].max() - line["mean"].min() < 0.005:
                levels.setdefault(round(float(line["mean"].mean()), 2), []).append(str(method))
        where = quantity(str(name)).title + (f" of {captions.dataset_title(str(dataset))}" if several else "")
        words += [
            f"{', '.join(methods)} coincide at {level:g} ({where})"
            for level, methods in levels.items()
            if len(methods) > 2
        ]
    return "; ".join(words) + "." if words else ""


def draw_cost(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: model and data set; left: seconds per edit; right: bytes kept; x: edits at once; one line per method."""
    runs = _simultaneous(spec, run_dirs)
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    rows = simultaneous.places(spec, runs)
    measures = (("seconds per edit", simultaneous.edit_seconds), ("bytes kept", simultaneous.state_bytes))
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 0.8 + 2.2 * len(rows))
        axes = figure.subplots(len(rows), 2, squeeze=False, sharex=True)
        for row, place in enumerate(rows):
            here = simultaneous.at_place(runs, place)
            for axis, (title, read_value) in zip(axes[row], measures, strict=True):
                for method in methods:
                    own = [run for run in here if method.fits(run)]
                    found = _over_seeds(own, read_value)
                    points += [
                        {"model": place[0], "dataset": place[1], "method": method.title, "measure": title,
                         "source": "measured", **entry} for entry in found
                    ]  # fmt: skip
                    _cost_line(axis, method, found)
                _log_axis(axis, title)
            _sizes_axis(axes[row], simultaneous.sizes(here))
            if len(rows) > 1:
                axes[row][0].set_ylabel(f"{captions.dataset_title(place[1])}: seconds per edit")
        for axis in axes[-1]:
            axis.set_xlabel("edits at once")
        legend(figure, methods, points)
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            simultaneous.counts(runs),
            "Left: median over batches of the wall-clock seconds of a batch per edit, mean over seeds; right: what the editor "
            "keeps: of a method that writes, the edited weights; of one that stores edits, these and what was computed of "
            "them; of SERAC the texts and its two trained networks.",
            lifelong_captions.bands(runs),
            overlaps.show(figure, [axis for row in axes for axis in row]),
            "Training of the learned editors is not in it. Times depend on the machine; compare methods, not numbers.",
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _over_seeds(runs: Sequence[Run], read_value: Any) -> list[dict[str, Any]]:
    """Per k mean, least and most of the seeds. Of several runs of a seed the first that measured k counts."""
    rows = []
    for k in simultaneous.sizes(runs):
        measured = [(run.seed, value) for run in runs if (value := read_value(run, k)) is not None]
        if found := list(dict(reversed(measured)).values()):
            rows.append({"k": k, "mean": sum(found) / len(found), "low": min(found), "high": max(found)})
    return rows


def _cost_line(axis: Axes, method: Method, rows: Sequence[dict[str, Any]]) -> None:
    table = pd.DataFrame([row for row in rows if row["low"] > 0])  # nothing kept has no place on this axis
    if table.empty:
        return
    colour = style.method_colour(method.editor, method.variant)
    axis.fill_between(table["k"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
    axis.plot(table["k"], table["mean"], color=colour, marker=marker(method), ms=5.6, mec="white", mew=0.5)


def _log_axis(axis: Axes, title: str) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(10))
    form = (lambda value, _: f"{value:g}") if title.startswith("seconds") else _bytes
    axis.yaxis.set_major_formatter(FuncFormatter(form))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(title)


def _bytes(value: float, _: Any = None) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"
