"""What neither paper has: GRACE and its baselines under consecutive editing, COMEBA-HK and MEMIT in a lifelong stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import captions, lifelong, lifelong_captions, read, style, tables
from palimpsest.figures.lifelong import LOWER_IS_BETTER
from palimpsest.figures.lifelong_table import score
from palimpsest.figures.read import UNEDITED, Method, Run
from palimpsest.figures.stream_curves import draw_panel, method_legend

# What the edits keep, what other phrasings of them get, what else stays: the two protocols' names of the same things.
CONSECUTIVE = ("reliability", "generality", "locality")
COLUMNS = (
    "Reliability or ERR",
    "Generality or hold-out",
    "Locality or TRR",
    "ARR",
    "edits",
    "keys",
    "s / edit",
)
_MEANINGS = ("the edits", "other phrasings", "everything else")
Place = tuple[
    str, str, str
]  # (task, or the protocol's name when it is not the lifelong one; model; data set)


def draw_table(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Blocks: protocol, model and data set; rows: methods."""
    runs = read.select(spec, run_dirs)
    methods = read.methods_of(spec, runs)
    points = pd.DataFrame(_points(spec, runs, methods))
    words = [
        _runs_words(runs),
        lifelong_captions.scores([run for run in runs if _lifelong(run)]),
        "Consecutive editing: reliability, generality and locality, teacher-forced token accuracies; every edit is made. "
        "Lifelong: ERR, hold-out and TRR; an item is edited only if the model errs on it.",
        lifelong_captions.ahead([run for run in runs if _lifelong(run)]),
        f"{captions.spread(runs)}. Unedited: the same prompts before any edit. Bold: the best of its block. "
        "Not shown: methods that a block did not run.",
    ]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(_layout(points), name, out, points, caption, captions.stamp_text(spec))


def draw_curves(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: protocol, model and data set; columns: the edits, other phrasings, everything else."""
    runs = read.select(spec, run_dirs)
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    places = places_of(spec, runs)
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.6, 0.8 + 1.95 * len(places))
        axes = figure.subplots(len(places), 3, squeeze=False)
        for row, place in enumerate(places):
            here = _at(runs, place)
            for column, quantity in enumerate(_quantities(place, here)):
                axis = axes[row][column]
                if quantity is None:
                    axis.set_axis_off()
                    continue
                points += draw_panel(axis, methods, here, place, quantity)
                meaning = f"\n{_MEANINGS[column]}" if row == 0 else ""
                axis.set_title(lifelong.TITLES[quantity] + meaning, pad=7)
                axis.set_xlabel("edits made", labelpad=2)
            axes[row][0].set_ylabel(_title(place, short=True), fontweight="bold", labelpad=6)
        method_legend(figure, methods)
        style.panel_letters([axis for row in axes for axis in row if axis.axison])
        style.stamp(figure, captions.stamp_text(spec))
        words = [
            _runs_words(runs),
            lifelong_captions.scores([run for run in runs if _lifelong(run)]),
            lifelong_captions.LEGEND,
            lifelong_captions.bands(runs),
            "Dotted: the unedited model.",
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _lifelong(run: Run) -> bool:
    return bool(run.spec["protocol"] == "lifelong")


def places_of(spec: dict[str, Any], runs: Sequence[Run]) -> list[Place]:
    """All blocks: consecutive editing first, then the lifelong streams by task."""
    plain = lifelong.places_of(spec, [run for run in runs if not _lifelong(run)])
    protocols = {
        (run.spec["model"], run.spec["dataset"]): run.spec["protocol"] for run in runs if not _lifelong(run)
    }
    first = list(dict.fromkeys((str(protocols[place[1:]]), *place[1:]) for place in plain))
    return first + lifelong.places_of(spec, [run for run in runs if _lifelong(run)])


def _at(runs: Sequence[Run], place: Place) -> list[Run]:
    streams = place[0] in lifelong.SCORES
    return [run for run in lifelong.at_place(runs, place) if _lifelong(run) == streams]


def _quantities(place: Place, runs: Sequence[Run]) -> tuple[str | None, ...]:
    if place[0] not in lifelong.SCORES:
        return CONSECUTIVE
    held = any(len(lifelong.curve(run, "holdout")) for run in runs)
    arr = any(len(lifelong.curve(run, "arr")) for run in runs)
    return "err", "holdout" if held else "arr" if arr else None, "trr"


def _title(place: Place, short: bool = False) -> str:
    dataset = captions.dataset_title(place[2])
    if place[0] not in lifelong.SCORES:
        return (
            f"Consecutive\n{dataset}"
            if short
            else f"{place[0].replace('_', ' ').capitalize()} editing: {place[1]} on {dataset}"
        )
    title = lifelong.TASK_TITLES[place[0]]
    named = lifelong_captions.score_title(place[0])
    return (
        f"Lifelong\n{dataset}, {named}"
        if short
        else f"Lifelong, {title.lower()} ({named}): {place[1]} on {dataset}"
    )


def _points(spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method]) -> list[dict[str, Any]]:
    rows = []
    for place in places_of(spec, runs):
        here = _at(runs, place)
        streams = place[0] in lifelong.SCORES
        quantities = ("err", "holdout", "trr") if streams else CONSECUTIVE
        for method in [UNEDITED, *methods]:
            before = method is UNEDITED
            own = here if before else [run for run in here if method.fits(run)]
            if not own:
                continue
            for column, quantity in zip(
                COLUMNS, (*quantities, "arr", "edits", "keys", "seconds_per_edit"), strict=True
            ):
                if before:
                    found = _unedited(own, quantity)
                elif quantity == "seconds_per_edit":
                    found = lifelong.seconds_over_seeds(own)
                elif quantity == "edits" and not streams:
                    found = lifelong.spread(float(run.info["edits_applied"]) for run in own)
                else:
                    found = lifelong.over_seeds(own, quantity)
                rows.append(
                    {
                        "protocol": "lifelong" if streams else place[0],
                        "task": place[0] if streams else "",
                        "model": place[1],
                        "dataset": place[2],
                        "block": _title(place),
                        "method": method.title,
                        "column": column,
                        "quantity": quantity,
                        **(found._asdict() if found else {}),
                    }
                )
    return rows


def _unedited(runs: Sequence[Run], quantity: str) -> lifelong.Spread | None:
    """A score before any edit, over the seeds; all methods' runs of a seed start from the same model and items."""
    if quantity in ("edits", "keys", "seconds_per_edit"):
        return None
    return lifelong.over_seeds(list({run.seed: run for run in runs}.values()), quantity, "start")


def _layout(points: pd.DataFrame) -> tables.Table:
    """Blocks of rows; a column that no block has is left out, and what an unedited model has is never the best."""
    groups, emphasis = [], set()
    empty = points.groupby("column")["mean"].count()
    columns = [column for column in COLUMNS if empty[column]]
    points = points[points["column"].isin(columns)]
    for number, (block, part) in enumerate(points.groupby("block", sort=False)):
        lower = part["task"].iloc[0] in LOWER_IS_BETTER
        scores = part[part["column"].isin(COLUMNS[:4])].dropna(subset=["mean"])
        scores = scores[scores["method"] != UNEDITED.title]
        best = {
            quantity: own["mean"].min() if lower or quantity == "arr" else own["mean"].max()
            for quantity, own in scores.groupby("quantity")
        }
        rows = []
        for index, (title, own) in enumerate(part.groupby("method", sort=False)):
            cells = [str(title)]
            for _, point in own.iterrows():
                if title != UNEDITED.title and best.get(point["quantity"]) == point["mean"]:
                    emphasis.add((number, index, len(cells)))
                cells.append(_cell(point, lower))
            rows.append(cells)
        groups.append((str(block), rows))
    return tables.Table(["Method", *columns], groups, frozenset(emphasis))


def _cell(point: pd.Series, lower: bool) -> str:
    mean, quantity = point["mean"], point["quantity"]
    if pd.isna(mean):
        return ""
    if quantity in ("edits", "keys"):
        return f"{mean:,.0f}"
    if quantity == "seconds_per_edit":
        return f"{mean:.3f}" if mean < 1 else f"{mean:.1f}"
    return score(point, lower or quantity == "arr")


def _runs_words(runs: Sequence[Run]) -> str:
    streams = [run for run in runs if _lifelong(run)]
    others = [run for run in runs if not _lifelong(run)]
    words = [captions.counts(others)] if others else []
    return " ".join([*words, lifelong_captions.streams(streams)] if streams else words)
