"""Judging claims about simultaneous edits: sums of success and drawdown over k, times, and printed numbers.

at_once       sum of coefficient x quantity over the terms, minus `above`; a term has a method, `of` (a quantity of
              figures/simultaneous.py), `at` (k, or `own`: the only one of its run) and `times`. `noise` widens the interval
              for the verdict, where terms come from different trainings
edit_seconds  the same with seconds per edit, which have no records: every seed counts, and one alone decides nothing
printed       the same with the numbers of published tables (`table`, dataset, model, method, metric): no run is needed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.claims.finding import AGAINST, by_seed, common_seeds, find_runs, method_of
from palimpsest.claims.verdicts import (
    AS_PRINTED,
    MIN_RECORDS,
    ClaimTest,
    NotMeasuredError,
    Outcome,
    decide,
    outcome,
    over_seeds,
)
from palimpsest.errors import SettingsError
from palimpsest.figures.bootstrap import DRAWS, LEVEL, joint_means_of_seeds, limits
from palimpsest.figures.read import Run
from palimpsest.figures.simultaneous import PROTOCOL, QUANTITIES, edit_seconds, sizes
from palimpsest.published import find_printed

OWN = "own"  # instead of a number of edits: the one that the run has


def tests_of_part(
    claim: dict[str, Any],
    part: dict[str, Any],
    runs: dict[str, list[Run]],
    spec: dict[str, Any] | None = None,
) -> Iterator[ClaimTest]:
    """Every model and data set that the part's experiments ran, times its baselines (`against`).

    A part may name the `datasets` it is about, as the claims' spec maps them to those of the runs.
    """
    if part["statistic"] == "printed":
        names = tuple(dict.fromkeys(str(term["metric"]) for term in part["terms"]))
        yield ClaimTest(claim["id"], part, "as printed", (str(part["terms"][0]["dataset"]),), names)
        return
    found = [run for name in part["experiments"] for run in runs.get(name, ())]
    found = [run for run in found if run.spec["protocol"] == PROTOCOL]
    called = (spec or {}).get("datasets") or {}
    wanted = {called.get(name, name) for name in part.get("datasets") or ()}
    places = sorted(
        {
            (run.spec["model"], run.spec["dataset"])
            for run in found
            if not wanted or run.spec["dataset"] in wanted
        }
    )
    names = tuple(dict.fromkeys(str(term.get("of", part["statistic"])) for term in part["terms"]))
    for model, dataset in places or [("no model", "no data set")]:
        for baseline in part.get(AGAINST) or [None]:
            yield ClaimTest(claim["id"], {**part, AGAINST: baseline}, model, (dataset,), names)


def judge_batches(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """Statistic, interval, verdict and evidence of one test.

    Raises:
        NotMeasuredError: a run, a k or a printed cell is missing.
        SettingsError: an unknown quantity.
    """
    return STATISTICS[test.part["statistic"]](test, methods, runs, spec)


def _by_seed(test: ClaimTest, method: dict[str, Any], runs: dict[str, list[Run]]) -> dict[int, Run]:
    """Runs of one method at the test's place."""

    def fits(run: Run) -> bool:
        same = run.method == (method["editor"], method["variant"])
        return same and bool(run.spec["protocol"] == PROTOCOL)

    return by_seed(find_runs(test, test.datasets[0], method["title"], runs, fits))


def _chosen(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]]
) -> tuple[list[dict[int, Run]], list[int]]:
    """Runs by seed of every term, and the seeds that all have."""
    chosen = [_by_seed(test, method_of(test, entry, methods), runs) for entry in test.part["terms"]]
    return chosen, common_seeds(chosen)


def _size(entry: dict[str, Any], run: Run) -> int:
    """The number of edits a term is about."""
    if entry["at"] != OWN:
        return int(entry["at"])
    measured = sizes([run])
    if len(measured) != 1:
        raise NotMeasuredError(
            f"{run.spec.get('title') or run.spec['editor']}, seed {run.seed}: {len(measured)} sizes of batches, expected one"
        )
    return measured[0]


def _sizes_words(entry: dict[str, Any], own: dict[int, Run]) -> str:
    return " or ".join(str(k) for k in sorted({_size(entry, run) for run in own.values()}))


def _records(run: Run, quantity: str, k: int) -> list[tuple[float, pd.Series]]:
    """(coefficient, values by record) of a quantity at k edits."""
    if quantity not in QUANTITIES:
        raise SettingsError(f"claims: unknown quantity '{quantity}'; known: {', '.join(QUANTITIES)}")
    parts = []
    for times, split, metric in QUANTITIES[quantity].parts:
        values = run.record_values(metric, split, k)
        if values.empty:
            raise NotMeasuredError(
                f"{run.spec.get('title') or run.spec['editor']}, seed {run.seed}: {metric} ({split}) was not measured with "
                f"{k} edits"
            )
        parts.append((times, values))
    return parts


def _at_once(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    chosen, seeds = _chosen(test, methods, runs)
    draws, above = int(spec.get("draws", DRAWS)), float(test.part.get("above", 0))
    tables, coefficients = {}, {}
    for seed in seeds:
        cells = [
            (float(entry.get("times", 1)) * times, column)
            for entry, own in zip(test.part["terms"], chosen, strict=True)
            for times, column in _records(own[seed], str(entry["of"]), _size(entry, own[seed]))
        ]
        tables[seed] = pd.concat([column for _, column in cells], axis=1, keys=range(len(cells)))
        coefficients[seed] = np.array([times for times, _ in cells])
    found = joint_means_of_seeds(tables, draws)
    values = [float(means @ coefficients[seed]) - above for seed, (means, _) in found.items()]
    drawn = [sample @ coefficients[seed] - above for seed, (_, sample) in found.items()]
    counts = [int(table.count().min()) for table in tables.values()]
    low, high = limits(np.mean(drawn, axis=0), float(spec.get("level", LEVEL)))
    noise = float(test.part.get("noise", 0))  # what one training differs from the next
    verdict = decide(values, low - noise, high + noise) if min(counts) >= MIN_RECORDS else "undecided"
    words = []
    for entry, own in zip(test.part["terms"], chosen, strict=True):
        parts = [_records(own[seed], str(entry["of"]), _size(entry, own[seed])) for seed in seeds]
        mean = np.mean([sum(times * column.mean() for times, column in part) for part in parts])
        plain = str(entry["of"]).replace("_", " ")
        words.append(
            f"{method_of(test, entry, methods)['title']} {plain} with {_sizes_words(entry, own)} edits {mean:.4g}"
        )
    if noise:
        words[-1] += f" (two trainings: less than {noise:g} more or less says nothing)"
    return outcome(test, verdict, ", ".join(words), values, low, high, sum(counts))


def _seconds(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    chosen, seeds = _chosen(test, methods, runs)
    found: list[list[float]] = []
    for entry, own in zip(test.part["terms"], chosen, strict=True):
        row = []
        for seed in seeds:
            k = _size(entry, own[seed])
            seconds = edit_seconds(own[seed], k)
            if seconds is None:
                raise NotMeasuredError(f"{method_of(test, entry, methods)['title']}: no times with {k} edits")
            row.append(seconds)
        found.append(row)
    times = np.array([float(entry.get("times", 1)) for entry in test.part["terms"]])
    values = (times @ np.array(found) - float(test.part.get("above", 0))).tolist()
    verdict, low, high = over_seeds(values)
    words = [
        f"{method_of(test, entry, methods)['title']} {np.mean(row):.3g} s per edit with {_sizes_words(entry, own)} edits"
        for entry, own, row in zip(test.part["terms"], chosen, found, strict=True)
    ]
    return outcome(test, verdict, ", ".join(words), values, low, high, len(seeds), drawn=False)


def _printed(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """Unchecked numbers are refused: no verdict may rest on them."""
    value, words = -float(test.part.get("above", 0)), []
    for entry in test.part["terms"]:
        cell = find_printed(
            entry["table"],
            dataset=entry["dataset"],
            model=entry["model"],
            method=entry["method"],
            metric=entry["metric"],
        )
        if cell is None or cell.evidence == "unchecked":
            raise NotMeasuredError(
                f"{entry['table']} has no checked number for {entry['method']}, {entry['metric']}"
            )
        value += float(entry.get("times", 1)) * cell.value
        words.append(f"{cell.method} {cell.metric} {cell.shown}")
    verdict = AS_PRINTED if decide([value], value, value) == "holds" else "fails"
    evidence = f"as printed: {', '.join(words)}; statistic {value:+.3g}"
    return Outcome(test, verdict, evidence, value, value, value, (value,), len(words))


STATISTICS: dict[str, Callable[..., Outcome]] = {
    "at_once": _at_once,
    "edit_seconds": _seconds,
    "printed": _printed,
}
