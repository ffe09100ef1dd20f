"""Tables of simultaneous edits: success and drawdown of every method at one size, measured beside printed.

SERAC's main table and its table of scope classifiers (arXiv 2206.06520); MEND's Tables 3, 4, 6, 9 and 11 (arXiv 2110.11309).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import captions, lifelong_captions, read, simultaneous, tables
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.read import UNEDITED, Method, Run
from palimpsest.figures.simultaneous import DRIFTS, OF_RIGHT_ANSWERS, quantity

HALF = 0.5  # of the best success of its block: a row below it is not praised for what it kept
SUCCESS = ("es", "edit")  # whether edits work at all: the first that a table shows
COLUMNS = ("es", "rephrase", "dd", "dd_near", "dd_far", "es_minus_dd")


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Write the table in all its forms; see the package's `draw`."""
    runs = read.select(spec, run_dirs)
    methods = read.methods_of(spec, runs)
    points = measured_points(spec, runs, methods)
    table = tables.mark_fewer_seeds(layout(points), points, ("model", "dataset"))
    words = [*_words(spec, runs, methods, points), captions.blanks(table.groups)]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(table, name, out, points, caption, captions.stamp_text(spec))


def measured_points(spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method]) -> pd.DataFrame:
    """One row per model, data set, method and column: measured with its interval, printed, status."""
    options = spec.get("options") or {}
    columns = options.get("columns") or COLUMNS
    rows: list[dict[str, Any]] = []
    for place in simultaneous.places(spec, runs):
        here = simultaneous.at_place(runs, place)
        drifts, knows = simultaneous.judged_by_drift(here), simultaneous.known_outside(here)
        at = options.get("at")
        k = int(at) if at else max(simultaneous.sizes(here), default=0)
        for method in [UNEDITED, *methods]:
            own = [run for run in here if method.fits(run)] if not method.not_run else []
            for column in columns:
                rows.append(_point(spec, place, method, column, own, here, k, drifts, knows))
    return pd.DataFrame(rows)


def _point(
    spec: dict[str, Any],
    place: tuple[str, str],
    method: Method,
    column: str,
    own: Sequence[Run],
    here: Sequence[Run],
    k: int,
    drifts: bool,
    knows: bool,
) -> dict[str, Any]:
    options = spec.get("options") or {}
    sample = options.get("draws", DRAWS), options.get("level", LEVEL)
    name = DRIFTS.get(column, column) if drifts else column
    # A likelihood and a divergence make no difference; what was never right is not lost.
    senseless = (drifts and column == "es_minus_dd") or (not knows and name in OF_RIGHT_ANSWERS)
    if senseless:
        found = None
    elif method is UNEDITED:  # all methods start from the same model and edits
        first = {run.seed: run for run in reversed(here)}
        found = simultaneous.measure(list(first.values()), name, 0, *sample)
    else:
        found = simultaneous.measure(own, name, k, *sample)
    printed = simultaneous.printed(spec, place[1], method.published, name)
    return {
        "model": place[0],
        "dataset": place[1],
        "method": method.title,
        "editor": method.editor,
        "variant": method.variant,
        "k": k,
        "column": column,
        "quantity": name,
        "status": _status(senseless, bool(own) or method is UNEDITED),
        **(found._asdict() if found else {}),
        "printed": printed.printed if printed else None,
        "shown": printed.shown if printed else None,
        "evidence": printed.evidence if printed else None,
        "printed_on": f"{printed.dataset}, {printed.model}" if printed else None,
        "printed_at": printed.location if printed else None,
    }


def _status(senseless: bool, run: bool) -> str:
    return "no such quantity" if senseless else "measured" if run else "not run"


def layout(points: pd.DataFrame) -> tables.Table:
    """Text cells: measured with its interval, and printed where a paper has the number; the best measured in bold."""
    names = _shown(points)
    beside = [name for name in names if points[points["column"] == name]["printed"].notna().any()]
    columns = ["Method"]
    for name in names:
        columns += [quantity(name).title, "printed"] if name in beside else [quantity(name).title]
    groups, emphasis, faint = [], set(), set()
    for number, (place, part) in enumerate(points.groupby(["model", "dataset"], sort=False)):
        best = _best(part)
        rows: list[list[str]] = []
        for _, own in part.groupby("method", sort=False):
            if own["editor"].iloc[0] == UNEDITED.editor and not _measured(own):
                continue
            cells = [str(own["method"].iloc[0])]
            for _, point in own[own["column"].isin(names)].iterrows():
                if (point["method"], point["column"]) in best:
                    emphasis.add((number, len(rows), len(cells)))
                cells.append(_cell(point))
                if point["column"] in beside:
                    cells.append(_printed_cell(point))
            if not (own["status"] == "measured").any():
                faint.add((number, len(rows)))
            rows.append(cells)
        groups.append((_group_title(str(place[0]), str(place[1]), part), rows))
    return tables.Table(columns, groups, frozenset(emphasis), frozenset(faint))


def _shown(points: pd.DataFrame) -> list[str]:
    """The columns, but for a number that only some kinds of models have, and none of these."""
    return [
        name
        for name in dict.fromkeys(points["column"])
        if not quantity(name).whole or _measured(points[points["column"] == name])
    ]


def _measured(points: pd.DataFrame) -> bool:
    return "mean" in points and bool(points["mean"].notna().any())


def _group_title(model: str, dataset: str, part: pd.DataFrame) -> str:
    k = int(part["k"].iloc[0])
    title = f"{model}, {captions.dataset_title(dataset)}, {k:,} edit{'s' if k != 1 else ''} at once"
    on = list(dict.fromkeys(part["printed_on"].dropna()))
    return f"{title}; printed: {'; '.join(on)}" if on else title


def _best(part: pd.DataFrame) -> set[tuple[Any, Any]]:
    """(method, column) of the best measured values. What changes nothing loses nothing: columns where less is better count
    only in rows whose success lies above the unedited model's with its whole interval, and is at least half of the best one. A
    success of 0 is not the best of anything.
    """
    if not _measured(part):
        return set()
    edited = part[(part["editor"] != UNEDITED.editor) & part["mean"].notna()]
    success = part[part["column"].isin(SUCCESS) & part["mean"].notna()]
    success = success[success["column"] == success["column"].iloc[0]] if len(success) else success
    before = success[success["editor"] == UNEDITED.editor]["mean"]
    works = (
        set(success.loc[success["low"] > before.iloc[0], "method"]) if len(before) else set(edited["method"])
    )
    if len(success):
        works &= set(success.loc[success["mean"] >= HALF * success["mean"].max(), "method"])
    found = set()
    for name, own in edited.groupby("column"):
        lower = quantity(str(name)).lower
        ranked = own[own["method"].isin(works)] if lower else own
        if lower is not None and len(ranked):
            best = ranked["mean"].min() if lower else ranked["mean"].max()
            if lower or best > 0:
                found |= {(title, name) for title in ranked.loc[ranked["mean"] == best, "method"]}
    return found


def _cell(point: pd.Series) -> str:
    if point["status"] == "no such quantity":
        return ""
    if point["status"] != "measured":
        return "not run"
    mean = point.get("mean")
    if mean is None or pd.isna(mean):
        return ""
    if point["low"] == point["high"] == mean and quantity(str(point["column"])).whole:  # one seed, no records
        return f"{mean:z.3f}".replace("-", "−")
    return f"{mean:z.3f} [{point['low']:z.3f}, {point['high']:z.3f}]".replace("-", "−")


def _printed_cell(point: pd.Series) -> str:
    """A dash where the paper could have printed a number; nothing in a row that no paper has."""
    if isinstance(point["shown"], str):
        return point["shown"]
    return "" if point["editor"] == UNEDITED.editor else "–"


def _elsewhere(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """Methods that stand in some blocks only, with those they stand in, or those they do not, whichever are fewer."""
    every = simultaneous.places({}, runs)
    words = []
    for method in methods:
        own = simultaneous.places({}, [run for run in runs if method.fits(run)])
        lacking = [place for place in every if place not in own]
        named = lacking if len(lacking) <= len(own) else own
        places = " and ".join(f"{model} with {captions.dataset_title(dataset)}" for model, dataset in named)
        if lacking:
            words.append(f"{method.title} ({'not on' if named is lacking else 'only on'} {places})")
    return ", ".join(words)


def _words(
    spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method], points: pd.DataFrame
) -> list[str]:
    level = (spec.get("options") or {}).get("level", LEVEL)
    words = [
        simultaneous.counts(runs),
        simultaneous.definitions(_shown(points), runs),
        captions.intervals(level, "Square brackets"),
        captions.trained_once(runs),
        captions.measured_radii(runs),
    ]
    unedited = _measured(points[points["editor"] == UNEDITED.editor])
    if unedited:
        words.append("Unedited: the same prompts before any edit.")
    has_printed = points["printed"].notna().any()
    if has_printed:
        words.append("Printed numbers are the paper's, on its models and data.")
    if (points["evidence"] == "unchecked").any():
        words.append(lifelong_captions.unchecked())
    missing = [
        method.title for method in methods if method.not_run or not any(method.fits(run) for run in runs)
    ]
    if missing:
        words.append(f"Not run: {', '.join(missing)}.")
    if elsewhere := _elsewhere(runs, [method for method in methods if method.title not in missing]):
        words.append(f"Not run on all: {elsewhere}.")
    bold = "Bold: the best measured value of its block"
    if unedited and any(quantity(name).lower for name in points["column"].unique()):
        bold += (
            ", of what was lost among the rows whose ES lies above the unedited model's with its whole interval and is at least "
            "half of the best"
        )
    words.append(f"{bold}.")
    if has_printed:
        words.append("A dash: the paper prints no number.")
    return words
