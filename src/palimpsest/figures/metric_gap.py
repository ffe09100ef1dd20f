"""The same edits under three definitions of success: a known trap of the field, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from palimpsest.figures import captions, read, style
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.read import Method, Run

COLUMNS = {
    "edit": ("reliability", "Edit prompts"),
    "rephrase": ("generality", "Rephrasings"),
    "locality": ("locality", "Locality prompts"),
}
DEFINITIONS = {
    "token": ("teacher-forced token accuracy", "o", "#0072B2"),
    "exact_match": ("all tokens right, teacher-forced", "D", "#E69F00"),
    "generation_match": ("free generation", "s", "#D55E00"),
}


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: data sets; columns: splits; one row of dots per method."""
    runs = read.select(spec, run_dirs)
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    places = [
        (model, dataset)
        for model in read.ordered(spec.get("models"), (run.spec["model"] for run in runs))
        for dataset in read.ordered(spec.get("datasets"), (run.spec["dataset"] for run in runs))
    ]
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 0.95 + (0.4 + 0.27 * len(methods)) * len(places))
        axes = figure.subplots(len(places), len(COLUMNS), squeeze=False, sharex=True, sharey=True)
        for row, (model, dataset) in enumerate(places):
            here = [run for run in runs if (run.spec["model"], run.spec["dataset"]) == (model, dataset)]
            for column, split in enumerate(COLUMNS):
                points += _panel(
                    axes[row][column], methods, here, split, spec.get("options") or {}, (model, dataset)
                )
            title = captions.dataset_title(dataset)
            axes[row][0].set_title(
                f"{title}, {model}" if len({m for m, _ in places}) > 1 else title,
                loc="left",
                fontweight="bold",
                fontsize=8.5,
            )
        for column, (_, title) in enumerate(COLUMNS.values()):
            axes[-1][column].set_xlabel(title.lower())
        axes[0][0].set_yticks(range(len(methods)), [method.title for method in methods])
        axes[0][0].set_ylim(len(methods) - 0.4, -0.6)
        handles = [
            axes[0][0].plot(
                [], [], ls="none", marker=marker, color=colour, mec="white", mew=0.6, ms=6, label=title
            )[0]
            for title, marker, colour in DEFINITIONS.values()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, handletextpad=0.2)
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            captions.counts(runs),
            "Last snapshot: all edits made.",
            captions.intervals((spec.get("options") or {}).get("level", LEVEL), "Bars"),
            "The three definitions judge the same edited models; numbers made by different ones cannot be "
            "compared.",
        ]
        if any(run.spec["editor"] == "comeba_hk" for run in runs):
            words.append(
                "COMEBA-HK's hooks decide over the whole row: teacher-forced, the row holds the whole answer; in free generation "
                "only what was said so far. So generation can be right where the forced answer is not."
            )
        return style.save_figure(figure, name, out, pd.DataFrame(points), captions.caption(spec, *words))


def _panel(
    axis: Axes,
    methods: list[Method],
    runs: list[Run],
    split: str,
    options: dict[str, Any],
    place: tuple[str, str],
) -> list[dict[str, Any]]:
    points = []
    for row, method in enumerate(methods):
        own = [run for run in runs if method.fits(run)]
        for number, (definition, (title, marker, colour)) in enumerate(DEFINITIONS.items()):
            metric = COLUMNS[split][0] if definition == "token" else definition
            found = read.measure(
                own, metric, split, None, options.get("draws", DRAWS), options.get("level", LEVEL)
            )
            if not found:
                continue
            height = row + 0.22 * (number - 1)
            axis.plot([found.low, found.high], [height] * 2, color=colour, lw=1.2, alpha=0.7)
            axis.plot(
                [found.mean], [height], ls="none", marker=marker, color=colour, mec="white", mew=0.5, ms=5
            )
            points.append(
                {
                    "model": place[0],
                    "dataset": place[1],
                    "method": method.title,
                    "split": split,
                    "metric": metric,
                    "definition": title,
                    **found._asdict(),
                }
            )
    axis.set_xlim(-0.03, 1.03)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axis.tick_params(axis="y", length=0)
    return points
