"""What the hooks see: Figure 3 of COMEBA-HK, and two figures the paper lacks.

The z-score of a token says how far the edited weights move it, compared with the other tokens of its own
sequence (paper Eq. 17). It cannot exceed (n - 1) / sqrt(n) in a sequence of n tokens, whatever was edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from palimpsest.errors import DataError
from palimpsest.figures import captions, read, style
from palimpsest.figures.bootstrap import DRAWS, limits, mean_draws
from palimpsest.figures.read import Run

SPLIT_TITLES = {
    "edit": "edit prompts",
    "rephrase": "rephrasings",
    "locality": "locality prompts",
    "unrelated": "unrelated prompts",
    "unedited": "unedited subjects",
}
SPLIT_COLOURS = {
    "edit": "#D55E00",
    "rephrase": "#CC79A7",
    "locality": "#009E73",
    "unrelated": "#56B4E9",
    "unedited": "#0072B2",
}


def inspected(spec: dict[str, Any], runs: Sequence[Run]) -> pd.DataFrame:
    """Inspection rows of all runs at their last step and one layer, with model and data set.

    Raises:
        DataError: no run was inspected.
    """
    frames = []
    for run in runs:
        rows = run.inspection
        if len(rows):
            rows = rows[rows["step"] == rows["step"].max()]
            frames.append(rows.assign(model=run.spec["model"], dataset=run.spec["dataset"]))
    if not frames:
        raise DataError(
            f"no run of figure '{spec.get('name')}' has inspection rows",
            remedy="Set options.inspect of its runs to true",
        )
    table = pd.concat(frames, ignore_index=True)
    layer = (spec.get("options") or {}).get("layer", "last")
    wanted = table.groupby("run")["layer"].transform("max") if layer == "last" else int(layer)
    return table[table["layer"] == wanted].reset_index(drop=True)


def draw_zscores(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Figure 3: the z-score at the last subject token of every record, with its prompt's ceiling."""
    runs = read.select(spec, run_dirs)
    table = inspected(spec, runs)
    splits = [
        split
        for split in (spec.get("options") or {}).get("splits", ["edit", "rephrase"])
        if (table["split"] == split).any()
    ]
    seed = table["seed"].min()
    shown = table[(table["seed"] == seed) & table["split"].isin(splits) & table["z_subject"].notna()]
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 0.4 + 2.2 * len(splits))
        axes = figure.subplots(len(splits), 2, width_ratios=[3.4, 1], squeeze=False, sharey=True)
        for row, split in enumerate(splits):
            rows = shown[shown["split"] == split].reset_index(drop=True)
            _record_panel(axes[row][0], rows, split, last=row == len(splits) - 1)
            _distribution_panel(axes[row][1], rows, last=row == len(splits) - 1)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handletextpad=0.4)
        for axis, letter in zip([row[0] for row in axes], "abcdef", strict=False):
            axis.text(-0.075, 1.02, letter, transform=axis.transAxes, fontweight="bold", fontsize=9.5)
        style.stamp(figure, captions.stamp_text(spec))
        columns = [
            "model",
            "dataset",
            "seed",
            "edit",
            "split",
            "layer",
            "tokens",
            "z_subject",
            "z_max_other",
            "ceiling",
            "alpha",
        ]
        words = [captions.counts(runs), *_zscore_words(shown, splits, int(seed)), captions.alpha_words(runs)]
        return style.save_figure(
            figure, name, out, shown[columns], captions.caption(spec, *words, metrics=False)
        )


def _record_panel(axis: Axes, rows: pd.DataFrame, split: str, last: bool) -> None:
    position = np.arange(len(rows))
    axis.vlines(position, rows["z_max_other"], rows["z_subject"], color=style.GRID, lw=0.8, zorder=1)
    axis.plot(
        position,
        rows["ceiling"],
        ls="none",
        marker="_",
        ms=5,
        mew=1.0,
        color=style.FAINT,
        label="ceiling of its length",
    )
    axis.plot(
        position,
        rows["z_max_other"],
        ls="none",
        marker=".",
        ms=3.4,
        color="#56B4E9",
        label="largest other token",
    )
    axis.plot(
        position,
        rows["z_subject"],
        ls="none",
        marker="o",
        ms=3.6,
        mec="white",
        mew=0.4,
        color="#D55E00",
        label="last subject token",
    )
    alpha = rows["alpha"].dropna()
    if len(alpha):
        axis.axhline(float(alpha.min()), color=style.INK, lw=0.9, ls="--", label="final α")
    axis.set_ylabel(f"z-score\n{SPLIT_TITLES.get(split, split)}")
    axis.set_xlim(-1.5, len(rows) + 0.5)
    axis.grid(axis="x", visible=False)
    if last:
        axis.set_xlabel("record, in order of editing")


def _distribution_panel(axis: Axes, rows: pd.DataFrame, last: bool) -> None:
    finite = rows[["z_subject", "z_max_other"]].to_numpy(dtype=float)
    if not np.isfinite(finite).any():
        return
    edges = np.linspace(np.nanmin(finite) - 0.05, np.nanmax(finite) + 0.05, 28)
    for column, colour in (("z_max_other", "#56B4E9"), ("z_subject", "#D55E00")):
        axis.hist(
            rows[column].dropna(), bins=list(edges), orientation="horizontal", color=colour, alpha=0.75, lw=0
        )
    axis.grid(axis="x", visible=False)
    axis.tick_params(labelleft=False)
    if last:
        axis.set_xlabel("records")


def _zscore_words(rows: pd.DataFrame, splits: Sequence[str], seed: int) -> list[str]:
    words = [f"Hook layer {', '.join(map(str, sorted(rows['layer'].unique())))}, records of seed {seed}."]
    for split in splits:
        own = rows[rows["split"] == split]
        if own.empty:
            continue
        first = (own["z_subject"] > own["z_max_other"]).mean()
        words.append(
            f"{SPLIT_TITLES.get(split, split).capitalize()} (n = {len(own)}): "
            f"minimum {own['z_subject'].min():.2f}, median {own['z_subject'].median():.2f}; "
            f"the subject's token is the largest in {first:.0%}; "
            f"its median z-score is {(own['z_subject'] / own['ceiling']).median():.0%} of the largest possible one."
        )
    words.append(
        "Grey ticks: that largest one, (n − 1)/√n in a sequence of n tokens. Dashed: α after the last batch."
    )
    return words


def draw_unedited_subjects(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Do subjects that were never edited light up as well? Distributions of z at the subject."""
    runs = read.select(spec, run_dirs)
    table = inspected(spec, runs)
    # A locality prompt comes without its subject's place: its largest token stands in.
    table = table.assign(
        z=table["z_subject"].fillna(table["z_max"]),
        swapped=table["swapped_subject"].where(table["z_subject"].notna(), table["swapped_any"]),
    )
    table = table[table["z"].notna()]
    splits = [split for split in SPLIT_TITLES if (table["split"] == split).any()]
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 3.0)
        left, right = figure.subplots(1, 2)
        ends = []
        for split in splits:
            values = np.sort(table.loc[table["split"] == split, "z"].to_numpy(dtype=float))
            share = np.arange(1, len(values) + 1) / len(values)
            label = f"{SPLIT_TITLES[split]} (n = {len(values):,})"
            left.step(values, share, where="post", color=SPLIT_COLOURS[split], label=label)
            ends.append((split, values))
        largest = table.loc[table["z_subject"].isna(), "split"].unique()
        beside = ", ".join(SPLIT_TITLES[split] for split in splits if split in largest)
        left.set_xlabel(
            "z-score at the last subject token" + (f"\n({beside}: at the largest token)" if beside else "")
        )
        left.set_ylabel("share of prompts at or below")
        style.unit_axis(left)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            handlelength=1.1,
            columnspacing=1.2,
        )
        points = _median_rows(right, table, splits)
        alpha = table["alpha"].dropna()
        if len(alpha):
            for axis in (left, right):
                axis.axvline(float(alpha.median()), color=style.INK, lw=0.9, ls="--", zorder=1)
                axis.annotate(
                    "α", (float(alpha.median()), 1), xycoords=axis.get_xaxis_transform(), xytext=(3, -1),
                    textcoords="offset points", ha="left", va="top", fontsize=8,
                )  # fmt: skip
        style.panel_letters([left, right])
        style.stamp(figure, captions.stamp_text(spec))
        words = [captions.counts(runs), _unedited_words(table, splits)]
        return style.save_figure(figure, name, out, points, captions.caption(spec, *words, metrics=False))


def _median_rows(axis: Axes, table: pd.DataFrame, splits: Sequence[str]) -> pd.DataFrame:
    """Quartiles of z per split, with the share whose subject token is swapped."""
    points = []
    for row, split in enumerate(splits):
        own = table[table["split"] == split]
        values = own["z"].to_numpy(dtype=float)
        q05, q25, q50, q75, q95 = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        axis.plot([q05, q95], [row, row], color=SPLIT_COLOURS[split], lw=1.2)
        axis.plot([q25, q75], [row, row], color=SPLIT_COLOURS[split], lw=5, solid_capstyle="butt")
        axis.plot([q50], [row], marker="o", color="white", mec=SPLIT_COLOURS[split], mew=1.4, ms=6)
        swapped = own["swapped"].dropna().astype(bool).mean()
        points.append(
            {
                "split": split,
                "n": len(values),
                "q05": q05,
                "q25": q25,
                "median": q50,
                "q75": q75,
                "q95": q95,
                "swapped_subject": swapped,
                "median_share_of_ceiling": (own["z"] / own["ceiling"]).median(),
            }
        )
    axis.set_yticks(
        range(len(splits)),
        [f"{SPLIT_TITLES[point['split']]}\n{point['swapped_subject']:.0%} swapped" for point in points],
    )
    axis.set_ylim(len(splits) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("z-score: median, quartiles, 5–95 %")
    return pd.DataFrame(points)


def _unedited_words(table: pd.DataFrame, splits: Sequence[str]) -> str:
    medians = ", ".join(
        f"{SPLIT_TITLES[split]} {table.loc[table['split'] == split, 'z'].median():.2f}" for split in splits
    )
    return (
        f"Medians: {medians}. The z-score compares a token with the other tokens of its own sequence, so a "
        "high value for unedited subjects means that it finds the subject rather than the edited "
        "subject. Locality prompts: their largest token. Dashed: median α."
    )


def draw_reachable_alpha(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """The share of sequences too short to ever reach alpha, against alpha, per data set and split.

    An evaluation reads a prompt together with its answer; what the model generates from reads the prompt alone.
    """
    runs = read.select(spec, run_dirs)
    table = inspected(spec, runs)
    table = table.drop_duplicates(["model", "dataset", "edit", "split", "tokens"])
    options = spec.get("options") or {}
    grid = np.round(np.arange(options.get("from", 0.5), options.get("to", 3.5) + 1e-9, 0.01), 2)
    datasets = read.ordered(spec.get("datasets"), table["dataset"])
    points = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 2.9)
        axes = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
        for axis, dataset in zip(axes, datasets, strict=True):
            here = table[table["dataset"] == dataset]
            splits = [split for split in SPLIT_TITLES if (here["split"] == split).any()]
            for above, split in zip(range(len(splits))[::-1], splits, strict=True):
                own = here.loc[here["split"] == split, "tokens"].to_numpy()
                points += _reach_lines(
                    axis, own, dataset, split, grid, options.get("draws", DRAWS), 1.4 + 0.8 * above
                )
            # The first line is left of most steps, the second right of them: each name stands on the empty side.
            for value, mark, low in (
                (options.get("alpha", 2.2), "paper's start", False),
                (3.0, "fixed 3", True),
            ):
                axis.axvline(value, color=style.INK, lw=0.8, ls="--", zorder=1)
                axis.text(
                    value + (0.07 if low else -0.03), 0.03 if low else 0.98, mark, rotation=90, fontsize=7.2, color=style.INK,
                    ha="left" if low else "right", va="bottom" if low else "top",
                )  # fmt: skip
            axis.set_title(captions.dataset_title(dataset), pad=6)
            axis.set_xlabel("α")
            style.unit_axis(axis)
        axes[0].set_ylabel("share of sequences that\ncan never reach α")
        handles = {
            label: handle
            for axis in axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=4,
            handlelength=1.1,
            columnspacing=1.2,
        )
        style.panel_letters(list(axes))
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            captions.counts(runs),
            "A sequence of n tokens has a largest possible z-score of (n − 1)/√n.",
            "Solid: a prompt with one answer token, as an evaluation reads it (longer answers reach further). "
            "Dotted: the prompt alone, as generation starts. "
            "Bands: 95 % bootstrap interval over prompts, those of all seeds together.",
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _reach_lines(
    axis: Axes, tokens: np.ndarray, dataset: str, split: str, grid: np.ndarray, draws: int, width: float
) -> list[dict[str, Any]]:
    """tokens: [prompts], their lengths without answer; width: of the line, more for one that others will lie on."""
    points = []
    for answer_tokens in (1, 0):
        length = tokens + answer_tokens
        ceilings = (length - 1) / np.sqrt(length)
        for alpha in grid:
            below = (ceilings < alpha).astype(float)
            low, high = limits(mean_draws(below, draws))
            points.append(
                {
                    "dataset": dataset,
                    "split": split,
                    "answer_tokens": answer_tokens,
                    "alpha": alpha,
                    "share": below.mean(),
                    "low": low,
                    "high": high,
                    "n": len(below),
                }
            )
    table, colour = pd.DataFrame(points), SPLIT_COLOURS[split]
    evaluated, alone = (table[table["answer_tokens"] == count] for count in (1, 0))
    axis.plot(
        grid, evaluated["share"], color=colour, label=SPLIT_TITLES[split], drawstyle="steps-post", lw=width
    )
    axis.fill_between(grid, evaluated["low"], evaluated["high"], color=colour, alpha=0.15, lw=0)
    axis.plot(grid, alone["share"], color=colour, lw=0.9, ls=":", drawstyle="steps-post")
    return points
