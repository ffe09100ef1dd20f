"""Runs of the lifelong protocol as numbers: retention, hold-out, edits, keys, times, and their spread over seeds.

The paper's words: TRR is the score on upstream prompts, ERR on all edits made so far, ES on an edit right after it
was made, ARR the perplexity of texts that were right from the start. What a score is depends on the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from palimpsest.figures.read import Method, Run
from palimpsest.results import RADIUS_QUANTILES

SCORES = {"qa": "token_f1", "classification": "accuracy", "generation": "perplexity"}
SCORE_TITLES = {"token_f1": "F1", "accuracy": "accuracy", "perplexity": "perplexity"}
TASK_TITLES = {
    "qa": "Question answering",
    "classification": "Label shift",
    "generation": "Biographies",
}
LOWER_IS_BETTER = frozenset({"generation"})
# Our task's data set in the paper, under which its numbers are kept.
PRINTED = {
    "qa": ("zsRE", "T5-small"),
    "classification": ("SCOTUS", "BERT"),
    "generation": ("Hallucination", "GPT2-XL"),
}
# Quantity -> (split, metric); None: the score of the task.
QUANTITIES: dict[str, tuple[str, str | None]] = {
    "trr": ("upstream", None),
    "err": ("edit", None),
    "err_squad": ("edit", "squad_f1"),  # other definitions of the score of answers (spec, Q11)
    "err_exact": ("edit", "exact_match"),
    "holdout": ("holdout", None),
    "arr": ("accurate", "perplexity"),
    "es": ("stream", "edit_success"),
    "keys": ("stream", "keys"),
    "edits": ("stream", "edits_made"),
    "seen": ("stream", "items_seen"),
    # Of the consecutive protocol, for the cross-over.
    "reliability": ("edit", "reliability"),
    "generality": ("rephrase", "generality"),
    "locality": ("locality", "locality"),
}
TITLES = {
    "trr": "TRR",
    "err": "ERR",
    "average": "Avg",
    "holdout": "Hold-out",
    "arr": "ARR",
    "es": "ES",
    "keys": "Keys",
    "reliability": "Reliability",
    "generality": "Generality",
    "locality": "Locality",
}


class Spread(NamedTuple):
    """A mean over seeds, its standard deviation (0 with one seed) and the seeds' own extremes."""

    mean: float
    std: float
    low: float
    high: float
    seeds: int


def task_of(run: Run) -> str:
    """The run's task: what its options say, or else what its scores tell."""
    named = (run.spec.get("options") or {}).get("task")
    if named:
        return str(named)
    found = set(run.metrics.loc[run.metrics["split"] == "upstream", "metric"])
    return next((task for task, score in SCORES.items() if score in found), "qa")


def tasks_of(runs: Iterable[Run]) -> list[str]:
    """Tasks found, in the paper's order."""
    found = {task_of(run) for run in runs}
    return [task for task in SCORES if task in found]


def places_of(spec: dict[str, Any], runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(task, model, data set) of all runs: by task, then as the figure's spec lists models and data sets."""
    models, datasets = list(spec.get("models") or ()), list(spec.get("datasets") or ())

    def rank(place: tuple[str, str, str]) -> tuple[Any, ...]:
        task, model, dataset = place
        return (
            list(SCORES).index(task) if task in SCORES else len(SCORES),
            models.index(model) if model in models else len(models),
            datasets.index(dataset) if dataset in datasets else len(datasets),
            place,
        )

    return sorted({(task_of(run), run.spec["model"], run.spec["dataset"]) for run in runs}, key=rank)


def at_place(runs: Iterable[Run], place: tuple[str, str, str], method: Method | None = None) -> list[Run]:
    """Runs of one task, model and data set, and perhaps of one method."""
    return [
        run
        for run in runs
        if (run.spec["model"], run.spec["dataset"]) == place[1:] and (method is None or method.fits(run))
    ]


def where(run: Run, quantity: str, at: str | int = "end") -> tuple[str, str]:
    """(split, metric) of a quantity in this run's tables."""
    split, metric = QUANTITIES[quantity]
    if quantity in ("err", "err_squad", "err_exact") and at == "start":
        split = "stream"  # before any edit: the score on the whole stream
    return split, metric or SCORES[task_of(run)]


def curve(run: Run, quantity: str, at: str | int = "end") -> pd.DataFrame:
    """Rows of one quantity by rising number of items seen: columns step, n_edits, value, n."""
    if quantity == "average":
        parts = [curve(run, name, at).set_index("step") for name in ("trr", "err")]
        if not len(parts[0]) or not len(parts[1]):
            return parts[0].iloc[:0].reset_index()
        mean = parts[0].loc[parts[0].index.intersection(parts[1].index)].copy()
        mean["value"] = (mean["value"] + parts[1].loc[mean.index, "value"]) / 2
        return mean.reset_index()
    split, metric = where(run, quantity, at)
    rows = run.metrics[(run.metrics["split"] == split) & (run.metrics["metric"] == metric)]
    return rows.sort_values("step")[["step", "n_edits", "value", "n"]].reset_index(drop=True)


def look(run: Run, quantity: str, at: str | int = "end") -> pd.Series | None:
    """One row of `curve`: before any edit ("start"), the last one ("end"), or the first with so many edits."""
    rows = curve(run, quantity, at)
    if at == "start":
        rows = rows[rows["n_edits"] == 0].head(1)
    elif at == "end":
        rows = rows[rows["step"] > 0].tail(1)
    else:
        rows = rows[rows["n_edits"] >= int(at)].head(1)
    return rows.iloc[0] if len(rows) else None


def value(run: Run, quantity: str, at: str | int = "end") -> float | None:
    """The number alone; `edits` and `seen` are known from the rows' own columns as well."""
    found = look(run, quantity, at)
    if found is None and quantity in ("edits", "seen"):
        found = look(run, "err", at)
        column = "n_edits" if quantity == "edits" else "step"
        return None if found is None else float(found[column])
    return None if found is None else float(found["value"])


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, sample standard deviation and extremes over seeds; None where nothing was measured."""
    found = np.array([number for number in values if number is not None], dtype=np.float64)
    if not len(found):
        return None
    std = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    return Spread(float(found.mean()), std, float(found.min()), float(found.max()), len(found))


def over_seeds(runs: Sequence[Run], quantity: str, at: str | int = "end") -> Spread | None:
    """A quantity over the seeds of one method at one place."""
    return spread(value(run, quantity, at) for run in runs)


def curve_over_seeds(runs: Sequence[Run], quantity: str) -> pd.DataFrame:
    """Mean edits made, and mean and spread of the quantity over the seeds that have it, per look.

    A look is one of a number of items seen; of a number of edits where the stream goes on until so many were made.
    """
    frames = [curve(run, quantity) for run in runs]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=["step", "n_edits", *Spread._fields])
    rows = []
    # Streams that look after so many edits do so at other items in every seed.
    by_edits = any((run.spec.get("options") or {}).get("until_edits") for run in runs)
    for _, part in pd.concat(frames).groupby("n_edits" if by_edits else "step", sort=True):
        found = spread(part["value"])
        if found is not None:
            step = float(part["step"].mean()) if by_edits else part["step"].iloc[0]
            rows.append({"step": step, "n_edits": float(part["n_edits"].mean()), **found._asdict()})
    return pd.DataFrame(rows)


def edit_seconds(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of every edit made, in order; empty where the run did not keep them."""
    return np.asarray((run.info.get("history") or {}).get("edit_seconds") or [], dtype=np.float64)


def seconds_over_seeds(runs: Sequence[Run]) -> Spread | None:
    """Mean seconds of an edit; the deviation is over single edits of all seeds, as the paper prints it."""
    found = [seconds for run in runs if len(seconds := edit_seconds(run))]
    if not found:  # other protocols keep the sum only
        return spread(_mean_seconds(run) for run in runs)
    every, means = np.concatenate(found), [float(seconds.mean()) for seconds in found]
    return Spread(float(np.mean(means)), float(every.std(ddof=0)), min(means), max(means), len(means))


def single_seconds(runs: Sequence[Run]) -> Spread | None:
    """Median of the seconds of single edits of all seeds, with their quartiles as `low` and `high`."""
    found = [seconds for run in runs if len(seconds := edit_seconds(run))]
    if not found:
        return None
    low, middle, high = np.quantile(np.concatenate(found), (0.25, 0.5, 0.75))
    return Spread(float(middle), float("nan"), float(low), float(high), len(found))


def _mean_seconds(run: Run) -> float | None:
    total, made = (run.info.get("seconds") or {}).get("edit"), run.info.get("edits_applied")
    return float(total) / int(made) if total is not None and made else None


def codebook_history(run: Run) -> pd.DataFrame:
    """What the run kept about its codebook at every look: step, n_edits, keys, radii quantiles, counts of events."""
    rows = []
    for entry in (run.info.get("history") or {}).get("codebook") or ():
        radii = entry.get("radii") or [float("nan")] * len(
            RADIUS_QUANTILES
        )  # a codebook without keys has none
        quantiles = dict(zip(RADIUS_QUANTILES, radii, strict=True))
        rows.append(
            {
                "step": entry["step"],
                "n_edits": entry["n_edits"],
                "keys": entry["keys"],
                **{f"q{name:g}": number for name, number in quantiles.items()},
                **(entry.get("events") or {}),
            }
        )
    return pd.DataFrame(rows)
