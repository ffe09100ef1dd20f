"""What claims about lifelong streams are made of: one number of one run, with the records behind it where it has any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from palimpsest.claims.verdicts import NotMeasuredError
from palimpsest.errors import SettingsError
from palimpsest.figures import lifelong
from palimpsest.figures.read import Run

TENTH = 0.1  # "first" and "last" mean so much of the edits
ROWS = ("trr", "err", "holdout", "arr", "edits", "keys", "reliability", "generality", "locality")


@dataclass(frozen=True)
class Quantity:
    """A number, the records whose mean it is (None: a plain count or time), and how many things it rests on.

    `lacking`: it is a mean, but the run kept no records at that look (it keeps those of probes at the first and the last).
    """

    value: float
    records: pd.Series | None
    n: int
    lacking: bool = False


def quantities(run: Run, name: str, at: str | int = "end") -> list[tuple[float, Quantity]]:
    """(coefficient, quantity) of one term; an average has two parts.

    Raises:
        NotMeasuredError: the run did not keep it, or its stream is too short for `at`.
        SettingsError: no such quantity.
    """
    if name == "average":
        return [(0.5, row(run, part, at)) for part in ("trr", "err")]
    if name in ROWS:
        return [(1.0, row(run, name, at))]
    if name not in OTHERS:
        known = ", ".join((*ROWS, "average", *OTHERS))
        raise SettingsError(f"claims: unknown quantity '{name}'; known: {known}")
    return [(1.0, OTHERS[name](run))]


def row(run: Run, name: str, at: str | int) -> Quantity:
    """A quantity of the metric table, with its records where they were kept at that look."""
    found = lifelong.look(run, name, at)
    if found is None:
        reached = lifelong.value(run, "edits") or 0
        when = {"start": "before editing", "end": "at the end"}.get(str(at), f"after {at} edits")
        raise NotMeasuredError(f"{_words(run)}: {name} was not measured {when} ({reached:,.0f} edits made)")
    split, metric = lifelong.where(run, name, at)
    if split == "stream" and metric in ("edits_made", "keys"):
        return Quantity(float(found["value"]), None, int(lifelong.value(run, "edits", at) or 0))
    rows = run.records
    rows = rows[(rows["split"] == split) & (rows["metric"] == metric) & (rows["step"] == found["step"])]
    if not len(rows):
        return Quantity(float(found["value"]), None, int(found["n"]), lacking=True)
    index = split + "\n" + rows["edit"].astype(str) + "\n" + rows["order"].astype(str)
    return Quantity(
        float(found["value"]), pd.Series(rows["value"].to_numpy(), index=index.to_numpy()), len(rows)
    )


def _words(run: Run) -> str:
    return f"{run.spec.get('title') or run.spec['editor']}, seed {run.seed}"


def _errors_before(run: Run) -> Quantity:
    """Items of the stream that the unedited model gets wrong."""
    before = row(run, "err", "start")
    wrong = round((1.0 - before.value) * before.n)  # a count; the mean is one of rounded numbers
    return Quantity(float(wrong), None, before.n)


def _seconds(run: Run) -> np.ndarray:
    found = lifelong.edit_seconds(run)
    if not len(found):
        raise NotMeasuredError(f"{_words(run)}: run.json has no history.edit_seconds")
    return found


def _tenth(values: np.ndarray | pd.Series, last: bool) -> np.ndarray | pd.Series:
    size = max(round(TENTH * len(values)), 1)
    return values[-size:] if last else values[:size]


def _mean_seconds(run: Run) -> Quantity:
    found = _seconds(run)
    return Quantity(float(found.mean()), None, len(found))


def _median_seconds(last: bool) -> Callable[[Run], Quantity]:
    def find(run: Run) -> Quantity:
        found = _seconds(run)  # all of them are counted: the seeds decide, no draws of a tenth's
        return Quantity(float(np.median(_tenth(found, last))), None, len(found))

    return find


def _success(last: bool | None) -> Callable[[Run], Quantity]:
    """Mean score of edits right after they were made: of the first or last tenth, or (None) of all."""

    def find(run: Run) -> Quantity:
        rows = run.records[run.records["metric"] == "edit_success"].sort_values("step")
        if not len(rows):
            raise NotMeasuredError(f"{_words(run)}: no records of edit_success")
        if last is None:  # paired with the same items of another method
            items = "es\n" + rows["edit"].astype(str) + "\n" + rows["order"].astype(str)
            part = pd.Series(rows["value"].to_numpy(), index=items.to_numpy())
            return Quantity(float(part.mean()), part, len(part))
        part = pd.Series(_tenth(rows["value"].to_numpy(), last))
        part.index = pd.Index(f"es {'last' if last else 'first'}\n{number}" for number in range(len(part)))
        return Quantity(float(part.mean()), part, len(part))

    return find


def _forward(unedited: bool) -> Callable[[Run], Quantity]:
    def find(run: Run) -> Quantity:
        kept = (run.info.get("history") or {}).get("forward") or []
        if not kept:
            raise NotMeasuredError(f"{_words(run)}: run.json has no history.forward")
        return Quantity(
            float(kept[-1]["seconds_unedited" if unedited else "seconds"]), None, int(kept[-1]["n_edits"])
        )

    return find


def _radius(last: bool) -> Callable[[Run], Quantity]:
    def find(run: Run) -> Quantity:
        history = lifelong.codebook_history(run)
        history = history[history["keys"] > 0] if len(history) else history
        if len(history) < 2:
            raise NotMeasuredError(f"{_words(run)}: run.json has fewer than two looks in history.codebook")
        entry = history.iloc[-1 if last else 0]
        return Quantity(float(entry["q0.5"]), None, int(history.iloc[-1]["n_edits"]))

    return find


OTHERS: dict[str, Callable[[Run], Quantity]] = {
    "errors_before": _errors_before,
    "seconds": _mean_seconds,
    "seconds_first": _median_seconds(last=False),
    "seconds_last": _median_seconds(last=True),
    "es": _success(last=None),
    "es_first": _success(last=False),
    "es_last": _success(last=True),
    "forward": _forward(unedited=False),
    "forward_unedited": _forward(unedited=True),
    "radius_first": _radius(last=False),
    "radius_last": _radius(last=True),
}
