"""Judging claims about lifelong streams: sums of quantities, sweeps of radius and block, checks, the toy figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.claims.finding import AGAINST, by_seed, common_seeds, find_runs, method_of
from palimpsest.claims.quantities import Quantity, quantities
from palimpsest.claims.verdicts import (
    MIN_RECORDS,
    ClaimTest,
    NotMeasuredError,
    Outcome,
    decide,
    outcome,
    over_seeds,
)
from palimpsest.figures import lifelong
from palimpsest.figures.bootstrap import DRAWS, LEVEL, joint_means_of_seeds, limits
from palimpsest.figures.radius_sweep import radius_of
from palimpsest.figures.read import Run
from palimpsest.files import read_json


def tests_of_part(
    claim: dict[str, Any], part: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Iterator[ClaimTest]:
    """Every place of the part's tasks that its experiments ran, times its baselines (`against`) and quantities (`of`)."""
    if part["statistic"] == "toy":
        yield ClaimTest(claim["id"], {**part, "file": spec.get("toy")}, "toy", ("plane",), (part["of"],))
        return
    found = [run for name in part["experiments"] for run in runs.get(name, ())]
    found = [run for run in found if run.spec["protocol"] == part.get("protocol", "lifelong")]
    for task in part["tasks"]:
        places = sorted({(r.spec["model"], r.spec["dataset"]) for r in found if lifelong.task_of(r) == task})
        for model, dataset in places or [("no model", task)]:
            for baseline in part.get(AGAINST) or [None]:
                for name in part.get("of") or [None]:
                    here = {**part, "of": name, AGAINST: baseline}
                    yield ClaimTest(claim["id"], here, model, (dataset,), (name or _names(part),))


def _names(part: dict[str, Any]) -> str:
    named = dict.fromkeys(term["of"] for term in part.get("terms") or () if "of" in term)
    return " and ".join(named) or str(part.get("field", part["statistic"]))


def judge_stream(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """Statistic, interval, verdict and evidence of one test.

    Raises:
        NotMeasuredError: a run, a look, a field or the toy's file is missing.
    """
    return STATISTICS[test.part["statistic"]](test, methods, runs, spec)


def _runs_of(test: ClaimTest, method: dict[str, Any], runs: dict[str, list[Run]]) -> list[Run]:
    """Runs of one method at the test's place."""

    def fits(run: Run) -> bool:
        same = run.spec["editor"] == method["editor"] and method["variant"] in ("*", run.method[1])
        return same and bool(run.spec["protocol"] == test.part.get("protocol", "lifelong"))

    return find_runs(test, test.datasets[0], method["title"], runs, fits)


def _stream(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """Sum of coefficient x quantity over the terms, minus `above`; positive where the claim is right."""
    part = test.part
    chosen = [by_seed(_runs_of(test, method_of(test, entry, methods), runs)) for entry in part["terms"]]
    seeds = common_seeds(chosen)
    draws, level = int(spec.get("draws", DRAWS)), float(spec.get("level", LEVEL))
    above = float(part.get("above", 0))
    cells = {
        seed: [
            (float(entry.get("times", 1)) * share, quantity)
            for entry, own in zip(part["terms"], chosen, strict=True)
            for share, quantity in quantities(
                own[seed], entry.get("of") or part["of"], entry.get("at", "end")
            )
        ]
        for seed in seeds
    }
    values = [sum(times * quantity.value for times, quantity in cells[seed]) - above for seed in seeds]
    counts = []
    for seed in seeds:
        made = [
            int(lifelong.value(own[seed], "edits") or 0) for own in chosen
        ]  # a handful of edits shows nothing
        counts.append(min(*made, *(quantity.n for _, quantity in cells[seed])))
    every = [quantity for seed in seeds for _, quantity in cells[seed]]
    # With the records of one term only, the interval would leave out what the other varies by.
    resampled = any(one.records is not None for one in every) and not any(one.lacking for one in every)
    if resampled:
        low, high = limits(np.mean(values) + _scatter(cells, draws), level)
        verdict = decide(values, low, high)
    else:
        verdict, low, high = over_seeds(values, exact=all(_counts(entry, part) for entry in part["terms"]))
    words = _terms_words(test, methods, chosen, seeds)
    if min(counts) < MIN_RECORDS:
        verdict, words = (
            "undecided",
            f"{words}; too few to decide ({min(counts)} in a mean, {MIN_RECORDS} needed)",
        )
    return outcome(test, verdict, words, values, low, high, sum(counts), drawn=resampled)


def _counts(entry: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether a term is a number of edits, errors or keys, or a radius: known without an error of measurement."""
    return str(entry.get("of") or part["of"]) in (
        "edits",
        "errors_before",
        "keys",
        "radius_first",
        "radius_last",
    )


def _scatter(cells: Mapping[int, Sequence[tuple[float, Quantity]]], draws: int) -> np.ndarray:
    """What resampling the records adds to the mean over seeds of a sum [draws]; all quantities share the resampled ones."""
    tables, coefficients = {}, {}
    for seed, own in cells.items():
        sampled = [(times, quantity.records) for times, quantity in own if quantity.records is not None]
        columns = [records.groupby(level=0).mean() for _, records in sampled]
        if not columns:
            continue
        tables[seed] = pd.concat(columns, axis=1, keys=range(len(columns)))
        coefficients[seed] = np.array([times for times, _ in sampled])
    found = joint_means_of_seeds(tables, draws)
    # A draw in which a small cell has no record is left out by `limits`.
    each = [(drawn - means) @ coefficients[seed] for seed, (means, drawn) in found.items()]
    total: np.ndarray = np.sum(each, axis=0) / len(cells)
    return total


def _terms_words(
    test: ClaimTest, methods: dict[str, Any], chosen: Sequence[dict[int, Run]], seeds: Sequence[int]
) -> str:
    words = []
    for entry, own in zip(test.part["terms"], chosen, strict=True):
        name, at = entry.get("of") or test.part["of"], entry.get("at", "end")
        mean = np.mean([sum(c * q.value for c, q in quantities(own[seed], name, at)) for seed in seeds])
        method = method_of(test, entry, methods)
        when = {"end": "", "start": " before editing"}.get(str(at), f" after {at} edits")
        words.append(f"{method['title']} {_plain(name)}{when} {mean:.4g}")
    return ", ".join(words)


def _plain(name: str) -> str:
    return lifelong.TITLES.get(name, name.replace("_", " ")).replace("Keys", "keys")


def _sweep(test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]]) -> dict[int, pd.DataFrame]:
    """Per seed the sweep's runs: block, radius, and the quantities at its end."""
    method = methods[test.part["terms"][0]["method"]]
    rows = []
    for run in _runs_of(test, method, runs):
        numbers = {name: lifelong.value(run, name) for name in ("trr", "err", "holdout", "keys", "edits")}
        before = lifelong.value(run, "trr", "start")
        rows.append({"seed": run.seed, "block": int(run.settings["layer"]), "radius": radius_of(run)[0],
                     "before": before, **numbers})  # fmt: skip
    table = pd.DataFrame(rows).astype(
        {name: "float64" for name in ("trr", "err", "holdout", "keys", "edits", "before")}
    )
    return {int(str(seed)): part for seed, part in table.groupby("seed")}


def _over_radii(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """`trend`: sign x Spearman's correlation with the radius, minus `above`; `lowest_last`: the least of the others minus
    the value at the largest radius. Mean over the blocks that have at least three radii."""
    del spec
    name, trend = str(test.part["of"]), test.part["statistic"] == "trend"
    values, correlations = [], []
    for table in _sweep(test, methods, runs).values():
        found = []
        for _, own in table.groupby("block"):
            line = own.dropna(subset=[name]).groupby("radius")[name].mean().sort_index()
            if len(line) < 3:
                continue
            if trend:
                ranks = line.rank()
                correlation = np.corrcoef(np.arange(len(line)), ranks)[0, 1] if ranks.nunique() > 1 else 0.0
                found.append(float(test.part["sign"]) * float(correlation))
            else:
                found.append(float(line.iloc[:-1].min() - line.iloc[-1]))
        if found:
            correlations.append(float(np.mean(found)))
            # A correlation that reaches its limit counts: with five values, .8 is one of the few that there are. A margin
            # of nothing is none: curves that are flat say nothing about the largest radius.
            margin = correlations[-1] - float(test.part.get("above", 0))
            values.append(margin + 1e-9 if trend else margin)
    if not values:
        raise NotMeasuredError(f"the sweep over radius has fewer than three values with {name}")
    verdict, low, high = over_seeds(values)
    words = f"{_plain(name)} against radius: " + (
        f"Spearman {float(test.part['sign']) * np.mean(correlations):+.2f}"
        if trend
        else f"margin {np.mean(correlations):+.3f}"
    )
    return outcome(test, verdict, words, values, low, high, len(values), drawn=False)


def _over_blocks(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """`forgiving`: share of blocks that keep TRR within .05 and ERR at .85, at least half; `last_block`: worst ERR or
    most keys per edit. At the radius that most blocks share, the middle one of these, and over the seeds that have at
    least three blocks: the run at the default block is shared with tables of more seeds."""
    del spec
    values, words, most = [], "", 0
    shown: list[tuple[float, ...]] = []
    for table in _sweep(test, methods, runs).values():
        blocks = table.groupby("radius")["block"].nunique()
        shared = sorted(blocks[blocks == blocks.max()].index)
        radius = shared[len(shared) // 2]
        own = table[table["radius"] == radius].groupby("block").mean().sort_index()
        most = max(most, len(own))
        if len(own) < 3:
            continue
        if test.part["statistic"] == "forgiving":
            good = ((own["before"] - own["trr"] <= 0.05) & (own["err"] >= 0.85)).mean()
            values.append(float(good) - 0.5 + 0.25 / len(own))  # exactly half is enough
            shown.append((float(good),))
            words = f"{{:.0%}} of {len(own)} blocks at radius {radius:g}"
        else:
            rest, last = own.iloc[:-1], own.iloc[-1]
            keys = own["keys"] / own["edits"]
            values.append(float(max(rest["err"].min() - last["err"], keys.iloc[-1] - keys.iloc[:-1].max())))
            shown.append((last["err"], rest["err"].min(), keys.iloc[-1], keys.iloc[:-1].max()))
            words = (
                "last block: ERR {:.3f}, others from {:.3f}; keys per edit {:.2f}, others up to {:.2f}; "
                f"at radius {radius:g}"
            )
    if not values:
        raise NotMeasuredError(f"the sweep over blocks has {most} value(s), needs 3")
    verdict, low, high = over_seeds(values)
    words = words.format(*np.mean(shown, axis=0))
    return outcome(test, verdict, words, values, low, high, len(values), drawn=False)


def _field(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """A check that the run itself made and wrote into run.json: true in all seeds."""
    del spec
    method = methods[test.part["terms"][0]["method"]]
    found = []
    for run in _runs_of(test, method, runs):
        value: Any = run.info
        for name in str(test.part["field"]).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            raise NotMeasuredError(
                f"{method['title']}, seed {run.seed}: run.json has no field {test.part['field']}"
            )
        found.append(bool(value))
    words = f"{method['title']}: {test.part['field']} in {sum(found)} of {len(found)} runs"
    return Outcome(test, "holds" if all(found) else "fails", words, n=len(found))


def _toy(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """One part of the toy figure's claim, at the drawn radius, in every seed."""
    del methods, runs, spec
    path = test.part.get("file")
    if not path or not Path(path).is_file():
        raise NotMeasuredError(f"the toy figure was not computed (no {path or 'toy.json'})")
    content = read_json(path)
    rows = pd.DataFrame(content["rows"])
    grace = rows[(rows["method"] == "grace") & (rows["radius"] == content["settings"]["radius"])].set_index(
        "seed"
    )
    tuned, before = (rows[rows["method"] == name].set_index("seed") for name in ("ft", "unedited"))
    name = str(test.part["of"])
    found = {
        "keys": 1.5 - grace["keys"],
        "err": grace["err"] - 1.0 + 1e-9,
        "trr": grace["trr"] - before["trr"] + 0.02,
        "fine-tuning": np.maximum(before["trr"] - tuned["trr"], 1.0 - tuned["err"]) - 0.1,
    }[name]
    shown = {
        "keys": f"GRACE {grace['keys'].mean():.2g} keys",
        "err": f"GRACE ERR {grace['err'].mean():.3f}",
        "trr": f"GRACE TRR {grace['trr'].mean():.3f}, unedited {before['trr'].mean():.3f}",
        "fine-tuning": f"FT TRR {tuned['trr'].mean():.3f}, ERR {tuned['err'].mean():.3f}, "
        f"unedited TRR {before['trr'].mean():.3f}",
    }[name]
    values = [float(value) for value in found]
    verdict, low, high = over_seeds(values)
    return outcome(test, verdict, shown, values, low, high, len(values), drawn=False)


STATISTICS: dict[
    str, Callable[[ClaimTest, dict[str, Any], dict[str, list[Run]], dict[str, Any]], Outcome]
] = {
    "stream": _stream,
    "trend": _over_radii,
    "lowest_last": _over_radii,
    "forgiving": _over_blocks,
    "last_block": _over_blocks,
    "field": _field,
    "toy": _toy,
}
