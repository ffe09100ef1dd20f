"""Tables 1 and 2 of COMEBA-HK: every method on every model and data set, measured beside printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import captions, read, style, tables
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.read import UNEDITED, Method, Run
from palimpsest.published import find_printed

METRICS = ("reliability", "generality", "locality")
HALF = 0.5  # of the best reliability of its block: a row below it is not praised for what it kept


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Write the table in all its forms; see the package's `draw`."""
    runs = read.select(spec, run_dirs)
    methods = read.methods_of(spec, runs)
    points = measured_points(spec, runs, methods)
    table = tables.mark_fewer_seeds(layout(points, methods), points, ("model", "dataset"))
    caption = captions.caption(spec, *_words(spec, runs, methods, points))
    return tables.save_table(table, name, out, points, caption, captions.stamp_text(spec))


def measured_points(spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method]) -> pd.DataFrame:
    """One row per model, data set, method and metric: measured with intervals, printed, difference."""
    options = spec.get("options") or {}
    # A control model without a counterpart in the paper shows what was run on it, and no empty rows.
    printed_models = (options.get("published") or {}).get("models")
    metrics = options.get("metrics") or METRICS
    rows: list[dict[str, Any]] = []
    for model in spec.get("models") or read.ordered(None, (run.spec["model"] for run in runs)):
        for dataset in spec.get("datasets") or read.ordered(None, (run.spec["dataset"] for run in runs)):
            here = [run for run in runs if (run.spec["model"], run.spec["dataset"]) == (model, dataset)]
            before = [
                _point(options, model, dataset, UNEDITED, metric, read.one_per_seed(here))
                for metric in metrics
            ]
            if any(point["status"] == "measured" for point in before):
                rows += before
            for method in methods:
                chosen = [] if method.not_run else [run for run in here if method.fits(run)]
                points = [_point(options, model, dataset, method, metric, chosen) for metric in metrics]
                if chosen or not printed_models or any(point["printed"] for point in points):
                    rows += points
    return pd.DataFrame(rows)


def _point(
    options: dict[str, Any], model: str, dataset: str, method: Method, metric: str, runs: Sequence[Run]
) -> dict[str, Any]:
    split = options.get("locality_split") if metric == "locality" else None
    at = 0 if method is UNEDITED else None
    found = (
        read.measure(runs, metric, split, at, options.get("draws", DRAWS), options.get("level", LEVEL))
        if runs
        else None
    )
    published = options.get("published") or {}
    printed_model = (published.get("models") or {}).get(model)
    printed_dataset = captions.printed_dataset(dataset, published)
    printed = None
    if published.get("table") and printed_model and printed_dataset and method.published:
        printed = find_printed(
            published["table"],
            dataset=printed_dataset,
            model=printed_model,
            method=method.published,
            metric=metric,
        )
    return {
        "model": model,
        "dataset": dataset,
        "method": method.title,
        "editor": method.editor,
        "variant": method.variant,
        "metric": metric,
        "status": "measured" if found else "not run",
        **({key: value for key, value in found._asdict().items()} if found else {}),
        "printed": printed.printed if printed else None,
        "printed_model": printed_model if printed else None,
        "printed_at": printed.location if printed else None,
        "difference": found.mean - printed.value if found and printed else None,
    }


def layout(points: pd.DataFrame, methods: Sequence[Method]) -> tables.Table:
    """Text cells: measured with its interval, printed, difference, for each metric; best measured in bold."""
    metrics = list(dict.fromkeys(points["metric"]))
    columns = ["Method"]
    for metric in metrics:
        columns += [style.METRIC_TITLES.get(metric, metric), "printed", "diff."]
    groups, emphasis, faint = [], set(), set()
    for number, ((model, dataset), part) in enumerate(points.groupby(["model", "dataset"], sort=False)):
        best = _best(part)
        rows = []
        shown = [method for method in [UNEDITED, *methods] if method.title in set(part["method"])]
        for index, method in enumerate(shown):
            cells = [method.title]
            own = part[part["method"] == method.title].set_index("metric")
            for metric in metrics:
                point = own.loc[metric]
                if (method.title, metric) in best:
                    emphasis.add((number, index, len(cells)))
                cells += _cells(point)
            if (own["status"] == "not run").all():
                faint.add((number, index))
            rows.append(cells)
        printed = sorted({str(value) for value in part["printed_model"].dropna()})
        beside = f" (printed: {', '.join(printed)})" if printed else ""
        groups.append((f"{model}, {captions.dataset_title(str(dataset))}{beside}", rows))
    return tables.Table(columns, groups, frozenset(emphasis), frozenset(faint))


def _best(part: pd.DataFrame) -> set[tuple[str, str]]:
    """(method, metric) of the best measured values. What changes nothing keeps everything: locality counts only in rows
    whose reliability lies above the unedited model's with its whole interval, and is at least half of the best one.
    """
    measured = part[(part["status"] == "measured") & (part["editor"] != UNEDITED.editor)]
    reliability = part[part["metric"] == "reliability"].set_index("method")
    if UNEDITED.title in reliability.index:
        works = reliability["low"] > reliability.loc[UNEDITED.title, "mean"]
        works &= reliability["mean"] >= HALF * reliability["mean"].max()
        measured = measured[(measured["metric"] != "locality") | measured["method"].map(works)]
    return {
        (str(point["method"]), str(metric))
        for metric, own in measured.groupby("metric")
        for _, point in own[own["mean"] == own["mean"].max()].iterrows()
    }


def _cells(point: pd.Series) -> list[str]:
    nothing = "" if point["editor"] == UNEDITED.editor else "–"
    printed = point["printed"] if isinstance(point["printed"], str) else nothing
    if point["status"] != "measured":
        return ["not run" if nothing else "", printed, ""]
    measured = f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
    difference = f"{point['difference']:+z.3f}".replace("-", "−") if pd.notna(point["difference"]) else ""
    return [measured, printed, difference]


def _words(
    spec: dict[str, Any], runs: Sequence[Run], methods: Sequence[Method], points: pd.DataFrame
) -> list[str]:
    options = spec.get("options") or {}
    shown = {run.spec["model"] for run in runs}
    named = (options.get("published") or {}).get("models") or {}
    pairs = {ours: theirs for ours, theirs in named.items() if ours in shown}
    words = [captions.counts(runs), captions.intervals(options.get("level", LEVEL), "Square brackets")]
    words.append(captions.trained_once(runs))
    if pairs:
        beside = ", ".join(f"{ours} beside {theirs}" for ours, theirs in pairs.items())
        words.append(
            f"Printed numbers are the paper's, set beside the model of the same shape ({beside}); "
            "diff. = measured − printed."
        )
    words += deviations_without_effect(runs, methods)
    if options.get("published"):
        words.append(second_model_words(runs))
    missing = [
        method.title for method in methods if method.not_run or not any(method.fits(run) for run in runs)
    ]
    if missing:
        words.append(f"Not run: {', '.join(missing)}.")
    bold = "Bold: the best measured value of its block"
    if (points["editor"] == UNEDITED.editor).any():
        words.append("Unedited: the same prompts before any edit.")
        bold += (
            ", of locality among the rows whose reliability lies above the unedited model's with its whole interval and is at "
            "least half of the best"
        )
    words.append(f"{bold}. A dash: the paper prints no number.")
    return words


def deviations_without_effect(runs: Sequence[Run], methods: Sequence[Method]) -> list[str]:
    """Rows that are named for dropping all but the last chunk of a batch, where batches are no larger than that chunk."""
    found = {}
    for run in runs:
        chunk, size = run.settings.get("last_chunk_only"), int(run.spec["batch_size"])
        title = next((method.title for method in methods if method.fits(run)), None)
        if chunk and title and size <= chunk:
            found[title] = (
                f"{title}: batches of {size} are no larger than its chunk of {chunk}, so that no edit is dropped."
            )
    return list(found.values())


def second_model_words(runs: Sequence[Run]) -> str:
    """What answers in SERAC's scope, where it was trained before: the printed rows have a model that was not."""
    named = [str(run.settings.get("counterfactual")) for run in runs if run.spec["editor"] == "serac"]
    trained = sorted({Path(name.partition("@")[0]).name for name in named if "@" in name})
    if not trained:
        return ""
    return (
        f"SERAC's second model starts from {' and '.join(trained)}; that of the printed rows is a random GPT-J toy, which cannot "
        "copy an answer."
    )
