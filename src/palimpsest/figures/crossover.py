"""What neither paper has: GRACE and its baselines under consecutive editing, COMEBA-HK and MEMIT in a lifelong stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import captions, lifelong, lifelong_captions, overlaps, read, style, tables
from palimpsest.figures.bootstrap import DRAWS, LEVEL, interval_over_seeds
from palimpsest.figures.lifelong import LOWER_IS_BETTER
from palimpsest.figures.lifelong_table import perplexity, seconds
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
UNRANKED = ("edits", "keys", "seconds_per_edit")
_MEANINGS = ("the edits", "other phrasings", "everything else")
Place = tuple[
    str, str, str
]  # (task, or the protocol's name when it is not the lifelong one; model; data set)


def draw_table(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Blocks: protocol, model and data set; rows: methods."""
    runs = read.select(spec, run_dirs)
    methods = read.methods_of(spec, runs)
    points = pd.DataFrame(_points(spec, runs, methods))
    table = tables.mark_fewer_seeds(_layout(points), points, ("block",))
    words = [
        *_protocol_words(runs, methods, points.dropna(subset=["mean"])["quantity"]),
        lifelong_captions.ahead([run for run in runs if _lifelong(run)]),
        captions.intervals((spec.get("options") or {}).get("level", LEVEL), "Square brackets"),
        "Unedited: the same prompts before any edit. Bold: the best of its block; of locality, TRR and ARR among the rows whose "
        "reliability or ERR is better than the unedited model's with its whole interval. "
        "Not shown: methods that a block did not run. Blank: not defined for this row, or not counted by the protocol.",
    ]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(table, name, out, points, caption, captions.stamp_text(spec))


def draw_curves(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: protocol, model and data set; columns: the edits, other phrasings, everything else."""
    runs = read.select(spec, run_dirs)
    methods = [method for method in read.methods_of(spec, runs) if any(method.fits(run) for run in runs)]
    places = places_of(spec, runs)
    points: list[dict[str, Any]] = []
    options = spec.get("options") or {}
    band = partial(_band, draws=options.get("draws", DRAWS), level=options.get("level", LEVEL))
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
                points += draw_panel(axis, methods, here, place, quantity, band)
                meaning = f"\n{_MEANINGS[column]}" if row == 0 else ""
                axis.set_title(lifelong.TITLES[quantity] + meaning, pad=7)
                axis.set_xlabel("edits made", labelpad=2)
            axes[row][0].set_ylabel(_title(place, short=True), fontweight="bold", labelpad=6)
        method_legend(figure, methods)
        style.panel_letters([axis for row in axes for axis in row if axis.axison])
        style.stamp(figure, captions.stamp_text(spec))
        shown = pd.DataFrame(points)
        words = [
            *_protocol_words(runs, methods, shown["quantity"]),
            captions.intervals(options.get("level", LEVEL)),
            "Where a run keeps the records of its first and last look alone, a bar at the end."
            if shown["low"].isna().any()
            else "",
            "Dotted: the unedited model.",
            overlaps.show(figure, [axis for row in axes for axis in row]),
        ]
        return style.save_figure(
            figure, name, out, pd.DataFrame(points), captions.caption(spec, *words, metrics=False)
        )


def _limits(
    runs: Sequence[Run],
    quantity: str,
    look: Callable[[Run], Any],
    at: str = "end",
    draws: int = DRAWS,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Bootstrap limits of the mean over seeds at one look, from its records; not a number where a run kept none."""
    per_seed: dict[int, list[Any]] = {}
    for run in runs:
        found = look(run)
        if found is None:
            continue
        split, metric = lifelong.where(run, quantity, at)
        values = run.record_values(metric, split, int(found["n_edits"]))
        if not len(values):
            return float("nan"), float("nan")
        per_seed.setdefault(run.seed, []).append(read.identified(run, values))
    if not per_seed:
        return float("nan"), float("nan")
    found = interval_over_seeds({seed: pd.concat(own) for seed, own in per_seed.items()}, draws, level)
    return found.low, found.high


def _band(
    runs: Sequence[Run], quantity: str, table: pd.DataFrame, draws: int = DRAWS, level: float = LEVEL
) -> pd.DataFrame:
    """The points of a line with the limits of their records."""
    by_edits = any((run.spec.get("options") or {}).get("until_edits") for run in runs)
    field = "n_edits" if by_edits else "step"

    def at(value: float) -> Callable[[Run], Any]:
        def look(run: Run) -> Any:
            rows = lifelong.curve(run, quantity)
            rows = rows[rows[field] == value]
            return rows.iloc[0] if len(rows) else None

        return look

    limits = [_limits(runs, quantity, at(value), draws=draws, level=level) for value in table[field]]
    return table.assign(low=[low for low, _ in limits], high=[high for _, high in limits])


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
    options = spec.get("options") or {}
    sample = options.get("draws", DRAWS), options.get("level", LEVEL)
    rows = []
    for place in places_of(spec, runs):
        here = _at(runs, place)
        streams = place[0] in lifelong.SCORES
        quantities = ("err", "holdout", "trr") if streams else CONSECUTIVE
        for method in [UNEDITED, *methods]:
            before = method is UNEDITED
            own = read.one_per_seed(here) if before else [run for run in here if method.fits(run)]
            if not own:
                continue
            for column, quantity in zip(
                COLUMNS, (*quantities, "arr", "edits", "keys", "seconds_per_edit"), strict=True
            ):
                if before:
                    found = None if quantity in UNRANKED else lifelong.over_seeds(own, quantity, "start")
                elif quantity == "seconds_per_edit":
                    found = lifelong.seconds_over_seeds(own)
                elif quantity == "edits" and not streams:
                    found = lifelong.spread(float(run.info["edits_applied"]) for run in own)
                else:
                    found = lifelong.over_seeds(own, quantity)
                at = "start" if before else "end"
                limits = float("nan"), float("nan")
                if found and quantity not in UNRANKED:
                    look = partial(lifelong.look, quantity=quantity, at=at)
                    limits = _limits(own, quantity, look, at, *sample)
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
                        "interval_low": limits[0],
                        "interval_high": limits[1],
                    }
                )
    return rows


def _layout(points: pd.DataFrame) -> tables.Table:
    """Blocks of rows; a column that no block has is left out, and what an unedited model has is never the best."""
    groups, emphasis = [], set()
    empty = points.groupby("column")["mean"].count()
    columns = [column for column in COLUMNS if empty[column]]
    points = points[points["column"].isin(columns)]
    for number, (block, part) in enumerate(points.groupby("block", sort=False)):
        lower = part["task"].iloc[0] in LOWER_IS_BETTER
        best = _best(part, lower)
        rows = []
        for index, (title, own) in enumerate(part.groupby("method", sort=False)):
            cells = [str(title)]
            for _, point in own.iterrows():
                if (title, point["quantity"]) in best:
                    emphasis.add((number, index, len(cells)))
                cells.append(_cell(point, lower))
            rows.append(cells)
        groups.append((str(block), rows))
    return tables.Table(["Method", *columns], groups, frozenset(emphasis))


def _best(part: pd.DataFrame, lower: bool) -> set[tuple[Any, Any]]:
    """(method, quantity) of the best values. What changes nothing keeps everything: what else stays counts only in rows whose
    reliability or ERR is better than the unedited model's.
    """
    scores = part[part["column"].isin(COLUMNS[:4])].dropna(subset=["mean"])
    edited = scores[scores["method"] != UNEDITED.title]
    first = scores[scores["column"] == COLUMNS[0]].set_index("method")
    if UNEDITED.title in first.index:
        before = first.loc[UNEDITED.title, "mean"]
        works = (
            first["interval_high"].fillna(first["mean"]) < before
            if lower
            else first["interval_low"].fillna(first["mean"]) > before
        )
        kept = edited["method"].isin(works.index[works])
        edited = edited[kept | ~edited["column"].isin(COLUMNS[2:4])]
    found = set()
    for quantity, own in edited.groupby("quantity"):
        best = own["mean"].min() if lower or quantity == "arr" else own["mean"].max()
        found |= {(title, quantity) for title in own.loc[own["mean"] == best, "method"]}
    return found


def _cell(point: pd.Series, lower: bool) -> str:
    mean, quantity = point["mean"], point["quantity"]
    if pd.isna(mean):
        return ""
    if quantity in ("edits", "keys"):
        return f"{mean:,.0f}"
    if quantity == "seconds_per_edit":
        return seconds(float(mean))
    form = perplexity if lower or quantity == "arr" else "{:.3f}".format
    short = perplexity if lower or quantity == "arr" else "{:.2f}".format
    if pd.isna(point["interval_low"]):
        return form(mean)
    return f"{form(mean)} [{short(point['interval_low'])}, {short(point['interval_high'])}]"


def _protocol_words(runs: Sequence[Run], methods: Sequence[Method], shown: Iterable[str]) -> list[str]:
    """What was run, how each protocol asks, and whom that favours."""
    streams = [run for run in runs if _lifelong(run)]
    said = {
        "qa": "freely generated answers",
        "classification": "the class said",
        "generation": "the perplexity of given texts",
    }
    asked = ", ".join(said[task] for task in lifelong.tasks_of(streams))
    words = [
        _runs_words(runs),
        "Consecutive editing: reliability, generality and locality, teacher-forced token accuracies; every edit is made.",
    ]
    if streams:
        words += [
            f"Lifelong: scores of {asked}; an item is edited only if the model errs on it.",
            lifelong_captions.scores(streams),
            "Of what the model generates, as many tokens count as the answer has; an end token does not.",
            lifelong_captions.legend(shown),
        ]
    late = [run for run in runs if run.settings.get("compat") in ("official", "first_target")]
    titles = [method.title for method in methods if any(method.fits(run) for run in late)]
    if titles and "qa" in lifelong.tasks_of(streams):
        words.append(
            f"{' and '.join(titles)} asks its codebook at the first token of the target: its edits act where the answer is "
            "given and do not fire in free generation (docs/spec/grace.md, Q1 and Q2): the two protocols differ for it."
        )
    return words


def _runs_words(runs: Sequence[Run]) -> str:
    streams = [run for run in runs if _lifelong(run)]
    others = [run for run in runs if not _lifelong(run)]
    words = [captions.counts(others)] if others else []
    return " ".join([*words, lifelong_captions.streams(streams)] if streams else words)
