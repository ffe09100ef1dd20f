"""What an edit and a question cost while keys accumulate: seconds per edit, and the forward pass with look-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, lifelong_captions, read, style
from palimpsest.figures.read import Method, Run
from palimpsest.figures.stream_curves import dashes, method_legend

WINDOWS = 10  # the stream in tenths: medians, since single edits are noisy


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Left: a panel per task, median seconds per edit in tenths of the stream; right: forward time against keys."""
    runs = read.select(spec, run_dirs)
    timed = [run for run in runs if len(lifelong.edit_seconds(run))]
    if not timed:
        raise DataError(
            "no run kept the seconds of its edits", field="history.edit_seconds", remedy="Run again"
        )
    methods = [method for method in read.methods_of(spec, timed) if any(method.fits(run) for run in timed)]
    places = lifelong.places_of(spec, timed)
    forward = forward_times(runs, methods)
    panels = len(places) + bool(len(forward))
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.9, 3.0)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for axis, place in zip(axes, places, strict=False):
            points += _edit_panel(axis, methods, lifelong.at_place(timed, place), place)
            axis.set_title(lifelong.TASK_TITLES[place[0]], pad=8, fontsize=8.5)
        axes[0].set_ylabel("seconds per edit")
        _same_y(axes[: len(places)])
        if len(forward):
            _forward_panel(axes[-1], forward)
            forward = forward.drop(columns="seeds")
            points += [{"measure": "forward", **dict(row)} for _, row in forward.iterrows()]
        method_legend(figure, methods)
        style.panel_letters(axes)
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            lifelong_captions.streams(timed),
            "Median wall-clock seconds of an edit in every tenth of the stream, mean over seeds.",
            lifelong_captions.ahead(timed),
            lifelong_captions.bands(timed),
            lifelong_captions.gated(timed),
        ]
        if len(forward):
            words.append(
                "Right: a forward pass with look-up against one of the unedited model, at the keys of each look: median "
                "over seeds, pale: every seed; dotted: no overhead. " + _noise(forward)
            )
        words.append("Times depend on the machine; compare methods, not numbers.")
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _edit_panel(
    axis: Axes, methods: Sequence[Method], runs: Sequence[Run], place: tuple[str, str, str]
) -> list[dict[str, Any]]:
    points = []
    for method in methods:
        rows = []
        for run in runs:
            if method.fits(run):
                seconds = lifelong.edit_seconds(run)
                parts = np.array_split(np.arange(len(seconds)), WINDOWS)
                rows += [
                    (number, float(part.mean() + 1), float(np.median(seconds[part])))
                    for number, part in enumerate(parts)
                    if len(part)
                ]
        if not rows:
            continue
        frame = pd.DataFrame(rows, columns=["tenth", "edit", "seconds"])
        table = frame.groupby("tenth").agg(
            edit=("edit", "mean"), mean=("seconds", "mean"), low=("seconds", "min"), high=("seconds", "max")
        )
        colour = style.method_colour(method.editor, method.variant)
        axis.fill_between(table["edit"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["edit"], table["mean"], color=colour, ls=dashes(method), mec="white", mew=0.5, ms=4,
            marker=style.method_marker(method.editor, method.variant),
        )  # fmt: skip
        same = {
            "measure": "edit",
            "task": place[0],
            "model": place[1],
            "dataset": place[2],
            "method": method.title,
        }
        points += [{**same, **row} for row in table.to_dict("records")]
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(10))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("edits made")
    return points


def _same_y(axes: Sequence[Axes]) -> None:
    low = min(axis.get_ylim()[0] for axis in axes)
    high = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(low, high)


def _noise(forward: pd.DataFrame) -> str:
    """Whether the seeds agree that the look-up costs time: single passes are short and their times noisy."""
    asked = forward[forward["keys"] > 0]
    split = int(((asked["low"] < 1) & (asked["high"] > 1)).sum())
    if not split:
        return ""
    return (
        f"At {split} of {len(asked)} points one seed lies below 1 and another above it: what the look-up costs is within the "
        "noise of timing a single short pass there, and ups and downs of the lines mean nothing."
    )


def forward_times(runs: Sequence[Run], methods: Sequence[Method]) -> pd.DataFrame:
    """Seconds of a forward pass with and without the codebook, at every look: task, method, keys, median ratio, extremes."""
    rows = [
        {
            "task": lifelong.task_of(run),
            "method": method.title,
            "editor": method.editor,
            "variant": method.variant,
            "step": entry["step"],
            "keys": entry["keys"],
            "ratio": entry["seconds"] / entry["seconds_unedited"],
        }
        for run in runs
        for method in methods
        if method.fits(run)
        for entry in (run.info.get("history") or {}).get("forward") or ()
        if entry.get("keys") is not None
    ]
    if not rows:
        return pd.DataFrame()
    grouped = pd.DataFrame(rows).groupby(["task", "method", "editor", "variant", "step"], sort=False)
    return grouped.agg(
        keys=("keys", "mean"),
        median=("ratio", "median"),
        low=("ratio", "min"),
        high=("ratio", "max"),
        seeds=("ratio", list),
    ).reset_index()


_TASK_MARKERS = {"qa": "o", "classification": "s", "generation": "^"}


def _forward_panel(axis: Axes, forward: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    tasks = [task for task in lifelong.SCORES if task in set(forward["task"])]
    for _, own in forward.groupby(["task", "method"], sort=False):
        colour = style.method_colour(own["editor"].iloc[0], own["variant"].iloc[0])
        for _, look in own.iterrows():
            axis.plot(
                [look["keys"]] * len(look["seeds"]),
                look["seeds"],
                ".",
                color=colour,
                ms=3,
                alpha=0.3,
                mew=0,
                zorder=1.5,
            )
        axis.plot(
            own["keys"], own["median"], color=colour, mec="white", mew=0.5, ms=4, lw=1.2,
            marker=_TASK_MARKERS.get(own["task"].iloc[0], "o"), ls="--" if own["variant"].iloc[0] == "published" else "-",
        )  # fmt: skip
    axis.axhline(1.0, color=style.FAINT, lw=0.9, ls=":", zorder=1)
    low, high = min(0.9, forward["low"].min() - 0.03), max(1.25, forward["high"].max() * 1.05)
    axis.set_ylim(low, low + (high - low) * (1 + 0.18 * len(tasks)))  # room for the legend above all lines
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("keys in the codebook")
    axis.set_ylabel("forward time / unedited")
    axis.set_title("Forward pass, noisy" if _noise(forward) else "Forward pass", pad=8, fontsize=8.5)
    handles = [
        Line2D(
            [],
            [],
            color=style.FAINT,
            marker=_TASK_MARKERS.get(task, "o"),
            ls="none",
            label=lifelong.TASK_TITLES[task],
        )
        for task in tasks
    ]
    axis.legend(handles=handles, loc="upper right", handletextpad=0.2)
