"""Table 2 of GRACE: every method on three tasks after the whole stream, with keys and edit time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.figures import captions, lifelong, lifelong_captions, read, tables
from palimpsest.figures.lifelong import LOWER_IS_BETTER, PRINTED, Spread
from palimpsest.figures.read import UNEDITED, Method, Run
from palimpsest.published import PrintedValue, find_printed, load_table

# Heading -> quantity; the third column is the average of both retentions, or ARR in the generation task.
COLUMNS = ("TRR", "ERR", "Avg or ARR", "edits", "keys", "mean s / edit")
# Of tables with questions: the same answers, scored as SQuAD does and by exact match.
ANSWERS = {"ERR, SQuAD F1": "err_squad", "ERR, exact": "err_exact"}
# A replay or a first edit takes many times as long as the rest: beside the mean, what most single edits take.
SINGLE = {"s / edit: median [quartiles]": "seconds_of_single_edits"}
_NO_SCORE = ("edits", "keys", "seconds_per_edit", *SINGLE.values(), *ANSWERS.values())


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Write the table in all its forms; see the package's `draw`."""
    runs = read.select(spec, run_dirs)
    methods = read.methods_of(spec, runs)
    points = measured_points(spec, runs, methods)
    table = tables.mark_fewer_seeds(layout(points), points, ("task", "model", "dataset"))
    words = [*_words(spec, runs, methods, points), captions.blanks(table.groups)]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(table, name, out, points, caption, captions.stamp_text(spec))


def measured_points(spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method]) -> pd.DataFrame:
    """One row per place, method and quantity: mean and deviation over seeds, printed number with its evidence."""
    rows: list[dict[str, Any]] = []
    only = {
        (entry["editor"], entry.get("variant") or "default"): entry["tasks"]
        for entry in spec.get("methods") or ()
        if entry.get("tasks")
    }
    for place in lifelong.places_of(spec, runs):
        here = lifelong.at_place(runs, place)
        rows += _rows(spec, place, UNEDITED, here, at="start")
        for method in methods:
            if place[0] in only.get((method.editor, method.variant), (place[0],)):
                own = [] if method.not_run else [run for run in here if method.fits(run)]
                rows += _rows(spec, place, method, own, at="end")
    return pd.DataFrame(rows)


def _rows(
    spec: dict[str, Any], place: tuple[str, str, str], method: Method, runs: Sequence[Run], at: str
) -> list[dict[str, Any]]:
    rows = []
    shown = (
        dict(zip(COLUMNS, _quantities(place[0]), strict=True))
        | SINGLE
        | (ANSWERS if place[0] == "qa" else {})
    )
    for column, quantity in shown.items():
        measured = _measure(runs, quantity, at)
        printed = _printed(spec, place[0], method, quantity)
        rows.append(
            {
                "task": place[0],
                "model": place[1],
                "dataset": place[2],
                "method": method.title,
                "editor": method.editor,
                "variant": method.variant,
                "column": column,
                "quantity": quantity,
                "status": "measured" if runs else "not run",
                **({key: number for key, number in measured._asdict().items()} if measured else {}),
                "printed": printed.printed if printed else None,
                "shown": printed.shown if printed else None,
                "evidence": printed.evidence if printed else None,
                "source": printed.source if printed else None,
            }
        )
    return rows


def _quantities(task: str) -> tuple[str, ...]:
    return (
        "trr",
        "err",
        "arr" if task in LOWER_IS_BETTER else "average",
        "edits",
        "keys",
        "seconds_per_edit",
    )


def _measure(runs: Sequence[Run], quantity: str, at: str) -> Spread | None:
    if quantity in ("seconds_per_edit", *SINGLE.values()):
        measure = lifelong.seconds_over_seeds if quantity == "seconds_per_edit" else lifelong.single_seconds
        return measure(runs) if at == "end" else None
    if at == "start":
        if quantity in ("edits", "keys"):
            return None
        first = {run.seed: run for run in reversed(runs)}  # all methods start from the same model and stream
        return lifelong.over_seeds(list(first.values()), quantity, at)
    return lifelong.over_seeds(runs, quantity, at)


def _printed(spec: dict[str, Any], task: str, method: Method, quantity: str) -> PrintedValue | None:
    published = (spec.get("options") or {}).get("published") or {}
    if not published.get("table") or task not in PRINTED:
        return None
    dataset, model = PRINTED[task]
    if method is UNEDITED:
        metric = {"trr": "upstream_score", "err": "edits_score"}.get(quantity)
        table, title = published.get("before", ""), ""
        return (
            find_printed(table, dataset=dataset, model=model, method=title, metric=metric)
            if metric and table
            else None
        )
    if not method.published:
        return None
    return find_printed(
        published["table"], dataset=dataset, model=model, method=method.published, metric=quantity
    )


def layout(points: pd.DataFrame) -> tables.Table:
    """Text cells: measured with its deviation beside printed; the best measured value of a block in bold."""
    columns = ["Method"]
    printed = points["printed"].notna().any()
    for column in dict.fromkeys(points["column"]):
        title = _third(points) if column == COLUMNS[2] else column
        columns += [title, "printed"] if printed and column in COLUMNS else [title]
    groups, emphasis, faint = [], set(), set()
    for number, (place, part) in enumerate(points.groupby(["task", "model", "dataset"], sort=False)):
        task, model, dataset = map(str, place)
        best = _best(part, task)
        rows = []
        for index, (title, own) in enumerate(part.groupby("method", sort=False)):
            cells = [str(title)]
            for _, point in own.iterrows():
                if (title, point["quantity"]) in best:
                    emphasis.add((number, index, len(cells)))
                cells.append(_measured(point))
                if printed and point["column"] in COLUMNS:
                    cells.append(point["shown"] if isinstance(point["shown"], str) else _absent(point))
            if (own["status"] == "not run").all():
                faint.add((number, index))
            rows.append(cells + [""] * (len(columns) - len(cells)))
        beside = f"; printed: {' on '.join(reversed(PRINTED[task]))}" if part["printed"].notna().any() else ""
        title = f"{lifelong.TASK_TITLES[task]} ({lifelong_captions.score_title(task)})"
        groups.append((f"{title}: {model} on {captions.dataset_title(dataset)}{beside}", rows))
    return tables.Table(columns, groups, frozenset(emphasis), frozenset(faint))


def _third(points: pd.DataFrame) -> str:
    """The heading of the column that some tasks use for one quantity and some for another."""
    shown = [name for name in ("average", "arr") if (points["quantity"] == name).any()]
    return " or ".join(lifelong.TITLES[name] for name in shown)


def _best(part: pd.DataFrame, task: str) -> set[tuple[Any, Any]]:
    """(method, quantity) of the best measured values. What changes nothing keeps everything: TRR and ARR count only where
    ERR is better than before any edit.
    """
    if "mean" not in part:
        return set()
    sign = -1 if task in LOWER_IS_BETTER else 1
    scores = part[part["quantity"].isin(["trr", "err", "average", "arr"])].dropna(subset=["mean"])
    edited = scores[scores["editor"] != UNEDITED.editor]
    errors = scores[scores["quantity"] == "err"].set_index("method")["mean"] * sign
    if UNEDITED.title in errors.index:
        works = errors > errors[UNEDITED.title]
        kept = edited["method"].isin(works.index[works])
        edited = edited[kept | ~edited["quantity"].isin(["trr", "arr"])]
    values = edited["mean"] * sign
    best = edited[values == values.groupby(edited["quantity"]).transform("max")]
    return set(zip(best["method"], best["quantity"], strict=True))


def _absent(point: pd.Series) -> str:
    """A dash where the paper could have printed a number; nothing where it makes no sense."""
    unlikely = point["quantity"] in ("keys", "seconds_per_edit") or point["editor"] == "unedited"
    return "" if unlikely and point["quantity"] not in ("trr", "err") else "–"


def _measured(point: pd.Series) -> str:
    if point["status"] != "measured":
        return "not run" if point["quantity"] not in _NO_SCORE else ""
    mean, std, quantity = point.get("mean", np.nan), point.get("std", np.nan), point["quantity"]
    if pd.isna(mean):
        return ""
    if quantity in ("edits", "keys"):
        return f"{mean:,.0f} ± {std:,.0f}" if std >= 0.5 else f"{mean:,.0f}"
    if quantity == "seconds_per_edit":
        return seconds(mean)
    if quantity in SINGLE.values():
        return f"{seconds(mean)} [{seconds(point['low'])}, {seconds(point['high'])}]"
    return score(point, point["task"] in LOWER_IS_BETTER)


def score(point: pd.Series, lower: bool) -> str:
    """A cell: perplexity (`lower`) or share, with its deviation over seeds, which one seed does not have."""
    mean, std = point["mean"], point["std"] if point["seeds"] > 1 else None
    if lower:
        return perplexity(mean, std)
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def seconds(value: float) -> str:
    """Three decimals below a second, one above; a cache's tenths of a millisecond are not 0."""
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}" if value >= 0.002 else f"{value:.4f}"


def perplexity(mean: float, std: float | None = None) -> str:
    """Perplexities run from 1 to many thousands: two decimals, then one, then none; the deviation likewise."""
    digits = 2 if mean < 100 else 1 if mean < 1000 else 0
    form, beside = (".1e", ".0e") if mean >= 1e6 else (f",.{digits}f", f",.{digits}f")
    return f"{mean:{form}}" if std is None else f"{mean:{form}} ± {std:{beside}}"


def _edited_always(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """Where, and by which methods, items are edited that the model gets right.

    The released error test of questions calls every answer wrong (spec, Q3): of encoder-decoders alone, never of classes.
    """
    parts = []
    if "generation" in lifelong.tasks_of(runs):
        parts.append("every sentence of a biography is edited")
    asked = [run for run in runs if lifelong.task_of(run) == "qa"]
    every = [run for run in asked if lifelong.value(run, "edits") == lifelong.value(run, "seen")]
    as_released = [run for run in every if run.settings.get("compat") in ("official", "edit_always")]
    eager = [method.title for method in methods if any(method.fits(run) for run in as_released)]
    if eager and len(every) < len(asked):
        one = len(eager) == 1
        parts.append(f"{' and '.join(eager)} edit{'s' if one else ''} every question")
    return f", except that {', and '.join(parts)}" if parts else ""


def _words(
    spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method], points: pd.DataFrame
) -> list[str]:
    words = [
        lifelong_captions.streams(runs),
        lifelong_captions.scores(runs),
        lifelong_captions.legend(points["quantity"]),
        f"{captions.spread(runs)}. Seconds: the mean is over all edits, so that a replay counts; median and quartiles are of "
        f"single edits. An item is edited only if the model errs "
        f"on it (edits){_edited_always(runs, methods)}.",
        "Unedited: the same prompts before any edit (ERR: the whole stream).",
        lifelong_captions.ahead(runs),
        lifelong_captions.gated(runs),
    ]
    words.append(captions.trained_once(runs))
    if points["printed"].notna().any():
        words += ["Printed numbers are the paper's, on its models and data.", _elsewhere(spec)]
    if (points["evidence"] == "unchecked").any():
        words.append(lifelong_captions.unchecked())
    missing = [
        method.title for method in methods if method.not_run or not any(method.fits(run) for run in runs)
    ]
    if missing:
        words.append(f"Not run: {', '.join(missing)}.")
    kept = " and ".join(name.upper() for name in ("trr", "arr") if (points["quantity"] == name).any())
    words.append(
        f"Bold: the best measured value of its block, of {kept} among the rows whose ERR is better than the unedited model's."
    )
    if points["printed"].notna().any():
        words.append("A dash: the paper prints no number.")
    if points["quantity"].isin(ANSWERS.values()).any():
        words.append(
            "ERR, SQuAD F1 and exact: the same answers by words, without case, articles and punctuation, and right as a whole "
            "(the released F1 gives a wrong answer of one token .5 for its end token)."
        )
    words.append(_memory(runs, methods))
    return words


def _elsewhere(spec: dict[str, Any]) -> str:
    """What others measured with the released code, on the task that the paper calls SCOTUS."""
    table = spec["options"]["published"].get("elsewhere")
    found = {
        cell.metric: cell
        for cell in (load_table(table) if table else ())
        if (cell.dataset, cell.model, cell.method) == ("SCOTUS", "BERT", "GRACE")
    }
    if not found:
        return ""
    trr, err, edits = (found[metric].shown for metric in ("trr", "err", "edits"))
    first = found["trr"]
    return (
        f"Of GRACE on SCOTUS, {first.note} had TRR {trr} and ERR {err} after {edits} edits ({first.paper})."
    )


def _memory(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """When the layer of the memory begins to act, and which row has it as released."""
    own = [run for run in runs if run.spec["editor"] == "memory"]
    if all(run.settings.get("from_start") for run in own):
        return ""
    released = [run for run in own if run.settings.get("from_start")]
    row = next((method.title for method in methods if any(method.fits(run) for run in released)), "")
    where = f"the row {row}" if row else "grace_baselines"
    return f"Memory acts from its first edit on; as released, in {where}, it acts before any edit too."
