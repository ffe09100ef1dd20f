"""From runs to the verdict of one test: which runs a term means, its cells, the bootstrap, the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.claims.finding import find_runs
from palimpsest.claims.statistics import STATISTICS, WHOLE_SWEEP, Cell, Layout, outlier
from palimpsest.claims.statistics import shown as shown_numbers
from palimpsest.claims.verdicts import MIN_RECORDS, ClaimTest, NotMeasuredError, Outcome, decide
from palimpsest.errors import SettingsError
from palimpsest.figures.bootstrap import DRAWS, LEVEL, joint_means_of_seeds, limits, statistic_draws
from palimpsest.figures.read import Run, identified

_OVER_SNAPSHOTS = ("slope", "level", "early_drop", "steadiest")


@dataclass(frozen=True)
class Term:
    """One method (or one value of a sweep) in a test: its coefficient and, per data set and seed, its run."""

    title: str
    times: float
    runs: dict[tuple[str, int], Run]


def sweep_value(run: Run, sweep: str) -> float | None:
    """Where a run stands in a sweep; None where it does not belong to it."""
    settings = run.settings
    if sweep == "lambda":
        value = settings.get("lam_ratio")
        return float(value if value is not None else settings["lam"])
    if sweep == "layers":
        return float(len(settings.get("layers") or ()))
    if sweep == "alpha":
        return None if settings.get("fixed_alpha") else float(settings["alpha_z"])
    if sweep == "batch_size":
        return float(run.spec["batch_size"])
    raise SettingsError(f"claims: unknown sweep '{sweep}'")


def find_terms(test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]]) -> list[Term]:
    """The runs behind every term of a test.

    Raises:
        NotMeasuredError: a term has no run for one of the test's data sets.
    """
    part = test.part
    if part["statistic"] in WHOLE_SWEEP:
        return _sweep_terms(test, methods, runs, part["terms"][0])
    terms = []
    for entry in part["terms"]:
        method = methods[entry["method"]]
        chosen: dict[tuple[str, int], Run] = {}
        title = method["title"]
        for dataset in test.datasets:
            own, note = _runs_of(test, entry, method, methods, runs, dataset)
            chosen |= {(dataset, run.seed): run for run in reversed(own)}
            # A term with a protocol of its own stands beside the same method in another one.
            when = f" ({entry['protocol'].replace('_', ' ')})" if "protocol" in entry else ""
            title = method["title"] + note + when
        terms.append(Term(title, float(entry.get("times", 1)), chosen))
    return terms


def _candidates(
    test: ClaimTest,
    entry: dict[str, Any],
    method: dict[str, Any],
    runs: dict[str, list[Run]],
    dataset: str,
    free: bool,
) -> list[Run]:
    """Runs of one method; `free`: in any variant with hooks."""
    protocol = entry.get("protocol") or test.part.get("protocol")

    def fits(run: Run) -> bool:
        meant = run.settings.get("hooks", True) if free else run.method[1] == method["variant"]
        there = protocol is None or run.spec["protocol"] == protocol
        return bool(meant and there and run.spec["editor"] == method["editor"])

    words = f" ({protocol or 'any protocol'})"
    return find_runs(test, dataset, method["title"], runs, fits, entry.get("experiments"), words)


def _runs_of(
    test: ClaimTest,
    entry: dict[str, Any],
    method: dict[str, Any],
    methods: dict[str, Any],
    runs: dict[str, list[Run]],
    dataset: str,
) -> tuple[list[Run], str]:
    """Runs of one term, and what tells them apart in words."""
    if "place" in entry:
        by_value = _by_value(test, entry, method, runs, dataset)
        values = sorted(by_value)
        place = len(values) // 2 if entry["place"] == "middle" else int(entry["place"])
        if len(values) < 2 or not -len(values) <= place < len(values):
            raise NotMeasuredError(f"the sweep over {test.part['sweep']} has {len(values)} value(s)")
        return by_value[values[place]], f" at {test.part['sweep']} {values[place]:g}"
    if "where" in entry:
        found = [
            run
            for run in _candidates(test, entry, method, runs, dataset, free=True)
            if all(run.settings.get(name, False) == value for name, value in entry["where"].items())
        ]
        words = ", ".join(f"{name} {value}" for name, value in entry["where"].items())
        if not found:
            raise NotMeasuredError(f"{method['title']} with {words}: no finished run")
        return found, f" ({words})"
    if entry.get("lambda") == "below_memit":
        return _below_memit(test, entry, method, methods["M"], runs, dataset)
    return _candidates(test, entry, method, runs, dataset, free=bool(entry.get("any_variant"))), ""


def _by_value(
    test: ClaimTest, entry: dict[str, Any], method: dict[str, Any], runs: dict[str, list[Run]], dataset: str
) -> dict[float, list[Run]]:
    low, high = test.part.get("between", (float("-inf"), float("inf")))
    by_value: dict[float, list[Run]] = {}
    for run in _candidates(test, entry, method, runs, dataset, free=True):
        value = sweep_value(run, test.part["sweep"])
        if value is not None and low <= value <= high:
            by_value.setdefault(value, []).append(run)
    return by_value


def _below_memit(
    test: ClaimTest,
    entry: dict[str, Any],
    method: dict[str, Any],
    memit: dict[str, Any],
    runs: dict[str, list[Run]],
    dataset: str,
) -> tuple[list[Run], str]:
    """Runs at the largest lambda that is still below MEMIT's own."""
    bar = sweep_value(_candidates(test, entry, memit, runs, dataset, free=False)[0], "lambda")
    assert bar is not None
    for experiment in entry.get("experiments") or test.part["experiments"]:
        try:
            one = {**entry, "experiments": [experiment]}
            found = _candidates(test, one, method, runs, dataset, free=True)
        except NotMeasuredError:
            continue
        below = sorted(
            {value for run in found if (value := sweep_value(run, "lambda")) is not None and value < bar}
        )
        if below:
            return [
                run for run in found if sweep_value(run, "lambda") == below[-1]
            ], f" at lambda {below[-1]:g}"
    raise NotMeasuredError(
        f"{method['title']} with a lambda below MEMIT's {bar:g} on {test.model}, {dataset}: no run"
    )


def _sweep_terms(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], entry: dict[str, Any]
) -> list[Term]:
    method = methods[entry["method"]]
    (dataset,) = test.datasets
    by_value = _by_value(test, entry, method, runs, dataset)
    needed = 3 if test.part["statistic"] == "interior_maximum" else 2
    if len(by_value) < needed:
        raise NotMeasuredError(
            f"the sweep over {test.part['sweep']} has {len(by_value)} value(s), needs {needed}"
        )
    return [
        Term(
            f"{test.part['sweep']} {value:g}",
            1.0,
            {(dataset, run.seed): run for run in reversed(by_value[value])},
        )
        for value in sorted(by_value)
    ]


def judge_terms(test: ClaimTest, terms: Sequence[Term], spec: dict[str, Any]) -> Outcome:
    """Statistic, interval, verdict and evidence of one test.

    Raises:
        NotMeasuredError: no seed is common to all terms, or a metric or snapshot is missing.
    """
    statistic = test.part["statistic"]
    if statistic == "constant":
        return _constant(test, terms)
    seeds = _common_seeds(test, terms)
    draws, level = int(spec.get("draws", DRAWS)), float(spec.get("level", LEVEL))
    if statistic == "outlier":
        found = [_outlier(test, terms[0], seed, draws) for seed in seeds]
    elif statistic in STATISTICS:
        found = _from_cells(test, terms, seeds, draws)
    else:
        raise SettingsError(f"claim {test.claim}: unknown statistic '{statistic}'")
    values = tuple(value for value, _, _, _ in found)
    low, high = limits(np.mean([drawn for _, drawn, _, _ in found], axis=0), level)
    n = sum(records for _, _, _, records in found)
    enough = min(records for _, _, _, records in found) >= MIN_RECORDS
    verdict = decide(values, low, high, test.hedged) if enough else "undecided"
    means = np.mean([shown for _, _, shown, _ in found], axis=0)
    words = _words(test, terms, means, values, low, high)
    lacking = _lacking(test, terms[0], seeds)
    if lacking:
        verdict, words = "undecided", f"{words}; {lacking}"
    return Outcome(
        test,
        verdict,
        words,
        float(np.mean(values)),
        low,
        high,
        values,
        n,
    )


def _common_seeds(test: ClaimTest, terms: Sequence[Term]) -> list[int]:
    per_term = [
        {seed for dataset, seed in term.runs if dataset == name} for term in terms for name in test.datasets
    ]
    seeds = sorted(set.intersection(*per_term))
    if not seeds:
        raise NotMeasuredError(f"no seed is common to {', '.join(term.title for term in terms)}")
    return seeds


def _lacking(test: ClaimTest, term: Term, seeds: Sequence[int]) -> str:
    """Why a test says nothing although it can be computed; empty where it counts.

    `provided: {metric: LEAST}` of a part: its first method must reach LEAST, mean over data sets and seeds at the last
    snapshot. An editor that writes nothing harms nothing and generalises to nothing.
    """
    for metric, least in (test.part.get("provided") or {}).items():
        own = [term.runs[dataset, seed] for dataset in test.datasets for seed in seeds]
        reached = [float(run.record_values(metric).mean()) for run in own if run.snapshots(metric)]
        mean = float(np.mean(reached)) if reached else float("nan")
        if not mean >= float(least):
            return f"does not count: {metric} of {term.title} is {mean:.3f}, below {float(least):g}"
    return ""


# Of one seed: the statistic, its draws, each term's last mean (of the first metric), records of its smallest cell.
_Found = tuple[float, np.ndarray, np.ndarray, int]


def _from_cells(test: ClaimTest, terms: Sequence[Term], seeds: Sequence[int], draws: int) -> list[_Found]:
    """Every seed's statistic; the resampled records are the same in all of them."""
    statistic: Callable[..., Any] = STATISTICS[test.part["statistic"]]
    tables = {seed: _table(test, terms, seed) for seed in seeds}
    joined = joint_means_of_seeds({seed: table for seed, (_, table) in tables.items()}, draws)
    found = []
    for seed, (means, drawn) in joined.items():
        cells, table = tables[seed]
        layout = Layout(cells, test.part, [term.times for term in terms])
        shown = shown_numbers(test.part["statistic"], means, layout)
        sizes: dict[tuple[int, str, str], int] = {}  # early snapshots have fewer records: the last one counts
        for cell, count in zip(cells, table.count(), strict=True):
            place = (cell.term, cell.metric, cell.dataset)
            sizes[place] = max(sizes.get(place, 0), int(count))
        value, sample = float(statistic(means, layout)), np.asarray(statistic(drawn, layout))
        found.append((value, sample, shown, min(sizes.values())))
    return found


def _table(test: ClaimTest, terms: Sequence[Term], seed: int) -> tuple[list[Cell], pd.DataFrame]:
    """The cells of one seed, and its records with a column for each."""
    columns: dict[Cell, pd.Series] = {}
    for number, term in enumerate(terms):
        for dataset in test.datasets:
            run = term.runs[dataset, seed]
            for metric in test.metrics:
                split, _, plain = metric.rpartition(".")
                snapshots = run.snapshots(plain, split or None)
                if not snapshots:
                    raise NotMeasuredError(f"{term.title}, {dataset}, seed {seed}: {metric} was not measured")
                for n_edits in snapshots if test.part["statistic"] in _OVER_SNAPSHOTS else snapshots[-1:]:
                    columns[Cell(number, metric, dataset, n_edits)] = identified(
                        run, run.record_values(plain, split or None, n_edits)
                    )
    if test.part["statistic"] in _OVER_SNAPSHOTS:
        shared = set.intersection(
            *({cell.n_edits for cell in columns if cell.term == number} for number in range(len(terms)))
        )
        if len(shared) < 2:
            raise NotMeasuredError(f"{len(shared)} snapshot(s) are common to all terms, needs 2")
    return list(columns), pd.concat(columns.values(), axis=1, keys=range(len(columns)))


def _outlier(test: ClaimTest, term: Term, seed: int, draws: int) -> _Found:
    rows = term.runs[test.datasets[0], seed].inspection
    rows = rows[(rows["split"] == test.metrics[0])] if len(rows) else rows
    if not len(rows):
        raise NotMeasuredError(f"{term.title}, seed {seed}: no inspection rows for {test.metrics[0]}")
    rows = rows[(rows["step"] == rows["step"].max()) & (rows["layer"] == rows["layer"].max())]
    values = rows[["z_subject", "z_max_other"]].dropna().to_numpy(dtype=np.float64)
    if not len(values):
        raise NotMeasuredError(f"{term.title}, seed {seed}: z-scores of {test.metrics[0]} are all empty")
    value, drawn = statistic_draws(values, outlier, draws, stream=1000 + seed)
    return value, drawn, np.array([np.median(values[:, 0])]), len(values)


def _constant(test: ClaimTest, terms: Sequence[Term]) -> Outcome:
    """The metric's first and last rows must be equal in every seed; no bootstrap, it is a count of bytes."""
    seen = []
    for run in terms[0].runs.values():
        rows = run.metrics[
            (run.metrics["metric"] == test.metrics[0]) & (run.metrics["n_edits"] > 0)
        ].sort_values("n_edits")
        if len(rows) < 2:
            raise NotMeasuredError(
                f"{terms[0].title}: {test.metrics[0]} was measured at {len(rows)} step(s), needs 2"
            )
        seen.append(
            (rows["n_edits"].iloc[0], rows["value"].iloc[0], rows["n_edits"].iloc[-1], rows["value"].iloc[-1])
        )
    same = all(first == last for _, first, _, last in seen)
    start, first, end, last = max(seen, key=lambda row: abs(row[3] - row[1]))
    evidence = (
        f"{terms[0].title}: {first:,.0f} after {start:,} edits, {last:,.0f} after {end:,} ({len(seen)} seeds)"
    )
    return Outcome(test, "holds" if same else "fails", evidence, float(last - first), n=len(seen))


def _words(
    test: ClaimTest,
    terms: Sequence[Term],
    means: np.ndarray,
    values: Sequence[float],
    low: float,
    high: float,
) -> str:
    shown = ", ".join(f"{term.title} {mean:.3f}" for term, mean in zip(terms, means, strict=False))
    if test.part.get("together"):
        shown = f"{len(test.metrics) * len(test.datasets)} comparisons"
    seeds = f"{sum(value > 0 for value in values)} of {len(values)} seeds positive"
    bar = float(test.part.get("above", 0))
    name = f"margin over {bar:+g}:" if bar else "statistic"
    return f"{shown}; {name} {np.mean(values):+.3f} [{low:+.3f}, {high:+.3f}], {seeds}".replace(
        "-0.000", "+0.000"
    )
