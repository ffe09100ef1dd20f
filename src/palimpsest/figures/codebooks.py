"""What happens inside GRACE's codebook along the stream: how many keys, how wide their balls, which events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from palimpsest import published
from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, lifelong_captions, read, style
from palimpsest.figures.read import Method, Run
from palimpsest.figures.stream_curves import dashes, method_legend

_BANDS = (("q0", "q1", 0.10), ("q0.05", "q0.95", 0.18), ("q0.25", "q0.75", 0.30))
_EVENT_COLOURS = {
    "add": "#882255",
    "split": "#D55E00",
    "overwrite": "#333333",
    "expand": "#56B4E9",
    "hit": "#BDBDBD",
}
_EVENT_TITLES = {
    "add": "add: a new key",
    "split": "split: a new key, both balls smaller",
    "overwrite": "overwrite: same key, new label",
    "expand": "expand: same label, wider ball",
    "hit": "hit: same label, inside",
}


def draw_keys(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """A panel per task: keys against edits made, a line per method with a codebook; dotted: a key per edit."""
    runs = [run for run in read.select(spec, run_dirs) if len(lifelong.curve(run, "keys"))]
    if not runs:
        raise DataError("no run counted keys (split 'stream', metric 'keys')", remedy="Give runs of GRACE")
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    places = lifelong.places_of(spec, runs)
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.9, 2.95)
        axes = figure.subplots(1, len(places), squeeze=False)[0]
        for axis, place in zip(axes, places, strict=True):
            points += _keys_panel(axis, methods, lifelong.at_place(runs, place), place, spec)
            axis.set_title(lifelong.TASK_TITLES[place[0]], pad=8)
        axes[0].set_ylabel("keys in the codebook")
        method_legend(figure, methods)
        style.panel_letters(axes)
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            lifelong_captions.streams(runs),
            "Dotted: one key per edit.",
            lifelong_captions.bands(runs),
            *dict.fromkeys(
                f"Cross: the authors' {point['mean']:g} keys after {point['n_edits']:g} edits."
                for point in points
                if point["source"] == "printed"
            ),
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _printed(spec: dict[str, Any]) -> dict[str, Any] | None:
    """The paper's number of keys in question answering, and after how many edits; None where it is not asked for."""
    table = ((spec.get("options") or {}).get("published") or {}).get("table")
    if not table:
        return None
    place = {"dataset": "zsRE", "model": "T5-small", "method": "GRACE"}
    keys, edits = (published.find_printed(table, metric=metric, **place) for metric in ("keys", "edits"))
    if keys is None or edits is None:
        return None
    return {"method": "GRACE", "source": "printed", "n_edits": edits.value, "mean": keys.value}


def _keys_panel(
    axis: Axes,
    methods: Sequence[Method],
    runs: Sequence[Run],
    place: tuple[str, str, str],
    spec: dict[str, Any],
) -> list[dict[str, Any]]:
    points = []
    ends = []
    for method in methods:
        table = lifelong.curve_over_seeds([run for run in runs if method.fits(run)], "keys")
        if not len(table):
            continue
        colour = style.method_colour(method.editor, method.variant)
        axis.fill_between(table["n_edits"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["n_edits"], table["mean"], color=colour, ls=dashes(method), mec="white", mew=0.5,
            marker=style.method_marker(method.editor, method.variant), label=method.title,
            zorder=3 if dashes(method) == "-" else 4,
        )  # fmt: skip
        same = {
            "task": place[0],
            "model": place[1],
            "dataset": place[2],
            "method": method.title,
            "source": "measured",
        }
        points += [{**same, **row} for row in table.to_dict("records")]
        ends.append(float(table["mean"].max()))
    longest = max(lifelong.value(run, "edits") or 0.0 for run in runs)
    axis.plot([0, longest], [0, longest], color=style.FAINT, lw=0.9, ls=":", zorder=1)
    printed = _printed(spec) if place[0] == "qa" else None
    if printed and longest >= printed["n_edits"]:
        axis.plot(
            [printed["n_edits"]], [printed["mean"]], marker="+", ms=9, mew=1.6, color=style.INK, ls="none", zorder=5
        )  # fmt: skip
        points.append({"task": place[0], **printed})
    axis.set_xlim(left=0)
    axis.set_ylim(0, max(1.0, 1.08 * max(ends), 1.02 * longest))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlabel("edits made")
    return points


def draw_radii(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Above: quantiles of the radii over the stream; below: what every edit did to the codebook, summed up."""
    runs = [run for run in read.select(spec, run_dirs) if len(lifelong.codebook_history(run))]
    if not runs:
        raise DataError(
            "no run kept the radii of its codebook", field="history.codebook", remedy="Give runs of GRACE"
        )
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    wanted = (spec.get("options") or {}).get(
        "method"
    )  # one form of GRACE: its title, else the last one listed
    method = next((m for m in methods if wanted in (m.title, m.variant)), methods[-1])
    runs = [run for run in runs if method.fits(run)]
    places = lifelong.places_of(spec, runs)
    tables = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.9, 4.9)
        axes = figure.subplots(2, len(places), squeeze=False)
        for column, place in enumerate(places):
            history = pd.concat(
                [
                    lifelong.codebook_history(run).assign(seed=run.seed)
                    for run in lifelong.at_place(runs, place)
                ]
            )
            mean = history.groupby("step").mean().reset_index()
            _radii_panel(axes[0][column], mean, history)
            _events_panel(axes[1][column], mean)
            axes[0][column].set_title(lifelong.TASK_TITLES[place[0]], pad=8)
            tables.append(
                history.assign(task=place[0], model=place[1], dataset=place[2], method=method.title)
            )
        axes[0][0].set_ylabel("radius (logarithmic)", labelpad=6)
        axes[1][0].set_ylabel("edits", labelpad=6)
        happened = pd.concat(tables).reindex(columns=list(_EVENT_COLOURS)).fillna(0.0).any()
        handles = [
            Patch(color=_EVENT_COLOURS[event], label=_EVENT_TITLES[event])
            for event in _EVENT_COLOURS
            if happened[event]
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.2)
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            f"{method.title}.",
            lifelong_captions.streams(runs),
            "Above: median radius of all keys, bands from the darkest: middle half, 5 % to 95 %, all; means over seeds. "
            "Thin lines: the seeds' own medians. Radii are on logarithmic axes. "
            "Below: what the edits made so far did to the codebook.",
        ]
        return style.save_figure(
            figure, name, out, pd.concat(tables), captions.caption(spec, *words, metrics=False)
        )


def _radii_panel(axis: Axes, mean: pd.DataFrame, history: pd.DataFrame) -> None:
    colour = style.method_colour("grace")
    for low, high, strength in _BANDS:
        axis.fill_between(
            mean["n_edits"], mean[low].clip(lower=1e-6), mean[high], color=colour, alpha=strength, lw=0
        )
    for _, own in history.groupby("seed"):
        axis.plot(own["n_edits"], own["q0.5"], color=colour, lw=0.6, alpha=0.6)
    axis.plot(mean["n_edits"], mean["q0.5"], color=colour, marker="X", mec="white", mew=0.5)
    axis.set_yscale("log")
    least, most = mean["q0"].min(), mean["q1"].max()
    if 0 < least and most < 1.3 * least:  # a constant has no range of its own
        axis.set_ylim(least / 1.5, most * 1.5)
    style.log_ticks(axis)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _events_panel(axis: Axes, mean: pd.DataFrame) -> None:
    if "init" in mean:
        mean = mean.assign(add=mean["add"].fillna(0.0) + mean["init"].fillna(0.0))
    shown = [event for event in _EVENT_COLOURS if event in mean]
    axis.stackplot(
        mean["n_edits"],
        *(mean[event].fillna(0.0) for event in shown),
        colors=[_EVENT_COLOURS[event] for event in shown],
        lw=0,
    )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_xlabel("edits made")
