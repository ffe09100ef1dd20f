"""Metrics against the batch size: Figure 11 of COMEBA-HK (single round)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from palimpsest.figures import captions, overlaps, read, style
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.curves import METRICS
from palimpsest.figures.read import UNEDITED, Method, Run


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: model and data set; columns: metrics; x: edits per batch, logarithmic; one line per method."""
    runs = read.select(spec, run_dirs)
    options = spec.get("options") or {}
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    rows = list(dict.fromkeys((run.spec["model"], run.spec["dataset"]) for run in runs))
    sizes = sorted({int(run.spec["batch_size"]) for run in runs})
    points: list[dict[str, Any]] = []
    cut = False
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.15, 0.6 + 2.05 * len(rows))
        axes = figure.subplots(len(rows), len(METRICS), squeeze=False, sharex=True)
        for row, (model, dataset) in enumerate(rows):
            here = [run for run in runs if (run.spec["model"], run.spec["dataset"]) == (model, dataset)]
            for column, metric in enumerate(METRICS):
                for method in methods:
                    points += _line(axes[row][column], method, here, metric, options, (model, dataset))
                before = read.before_editing(read.one_per_seed(here), metric)
                if before is not None and metric != "locality":
                    style.unedited_line(axes[row][column], before)
                    same = {"model": model, "dataset": dataset, "metric": metric}
                    points.append({**same, "method": UNEDITED.title, "mean": before})
                shown = [
                    p for p in points if (p["model"], p["dataset"], p["metric"]) == (model, dataset, metric)
                ]
                cut |= _finish(axes[row][column], sizes, min(p.get("low", p["mean"]) for p in shown))
            axes[row][0].set_ylabel(captions.dataset_title(dataset), fontweight="bold")
            own = [
                point
                for point in points
                if (point["model"], point["dataset"], point["metric"]) == (model, dataset, METRICS[-1])
            ]
            last = {point["method"]: point for point in own}
            style.end_labels(
                axes[row][-1],
                [
                    (
                        last[method.title]["batch_size"],
                        last[method.title]["mean"],
                        method.title,
                        style.method_colour(method.editor, method.variant),
                    )
                    for method in methods
                    if method.title in last
                ],
            )
        for column, metric in enumerate(METRICS):
            axes[0][column].set_title(style.METRIC_TITLES[metric], pad=8)
            axes[-1][column].set_xlabel("edits per batch")
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        foot = style.CUT_WORDS if cut else ""
        words = [
            captions.counts(runs),
            "Fresh state for every batch.",
            foot,
            overlaps.show(figure, [axis for row in axes for axis in row]),
            "Dotted: the unedited model." if any(p["method"] == UNEDITED.title for p in points) else "",
            captions.intervals(options.get("level", LEVEL)),
        ]
        return style.save_figure(figure, name, out, pd.DataFrame(points), captions.caption(spec, *words))


def _line(
    axis: Axes, method: Method, runs: list[Run], metric: str, options: dict[str, Any], place: tuple[str, str]
) -> list[dict[str, Any]]:
    points = []
    own = [run for run in runs if method.fits(run)]
    split = options.get("locality_split") if metric == "locality" else None
    for size in sorted({int(run.spec["batch_size"]) for run in own}):
        chosen = [run for run in own if run.spec["batch_size"] == size]
        found = read.measure(
            chosen, metric, split, None, options.get("draws", DRAWS), options.get("level", LEVEL)
        )
        if found:
            points.append(
                {
                    "model": place[0],
                    "dataset": place[1],
                    "method": method.title,
                    "metric": metric,
                    "batch_size": size,
                    **found._asdict(),
                }
            )
    if points:
        table = pd.DataFrame(points)
        colour = style.method_colour(method.editor, method.variant)
        axis.fill_between(table["batch_size"], table["low"], table["high"], color=colour, alpha=0.16, lw=0)
        axis.plot(
            table["batch_size"],
            table["mean"],
            color=colour,
            marker=style.method_marker(method.editor, method.variant),
            mec="white",
            mew=0.6,
        )
    return points


def _finish(axis: Axes, sizes: list[int], lowest: float) -> bool:
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    return style.share_axis(axis, lowest)
