"""What runs of simultaneous edits show: quantities, their intervals, the sizes of batches, and words about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.errors import SettingsError
from palimpsest.figures import captions, read
from palimpsest.figures.bootstrap import DRAWS, LEVEL, Interval, joint_means_of_seeds, limits
from palimpsest.figures.read import Run
from palimpsest.published import PrintedValue, find_printed

PROTOCOL = "simultaneous"


@dataclass(frozen=True)
class Measure:
    """A sum of means over records.

    Attributes:
        title: heading of a column or a panel.
        parts: (coefficient, split, metric).
        lower: whether less is better; None: neither.
        printed: the metric's name in tables of printed numbers.
        whole: the metric is one of a run's batches together and has no records: no interval but the seeds'.
    """

    title: str
    parts: tuple[tuple[float, str, str], ...]
    lower: bool | None = False
    printed: str | None = None
    whole: bool = False


QUANTITIES: dict[str, Measure] = {
    "es": Measure("ES", ((1, "in_scope", "edit_success"),), printed="edit_success"),
    "edit": Measure("ES, own prompt", ((1, "edit", "edit_success"),)),
    "rephrase": Measure("ES, rephrasings", ((1, "rephrase", "edit_success"),)),
    "implied": Measure("ES, implied", ((1, "implied", "edit_success"),)),
    "true_false": Measure("ES, yes or no", ((1, "true_false", "edit_success"),)),
    "flip": Measure("ES, flips only", ((1, "in_scope", "flip_success"),)),
    "dd": Measure("DD", ((1, "outside", "drawdown"),), True, "drawdown"),
    "dd_near": Measure("DD, near", ((1, "near", "drawdown"),), True),
    "dd_far": Measure("DD, far", ((1, "far", "drawdown"),), True),
    "drop": Measure("Accuracy drop", ((1, "outside", "accuracy_drop"),), True, "accuracy_drop"),
    "perplexity": Measure(
        "Perplexity rise", ((1, "outside", "perplexity_rise"),), True, "perplexity_rise", whole=True
    ),
    "drift": Measure("KL outside (nats)", ((1, "outside", "drift"),), True, "drawdown"),
    "drift_near": Measure("KL, near", ((1, "near", "drift"),), True),
    "drift_far": Measure("KL, far", ((1, "far", "drift"),), True),
    "es_minus_dd": Measure("ES − DD", ((1, "in_scope", "edit_success"), (-1, "outside", "drawdown"))),
    "opened": Measure("Gate open, in scope", ((1, "in_scope", "swap_rate"),), None),
    "opened_outside": Measure("Gate open, outside", ((1, "outside", "swap_rate"),), None),
}
# Shares of answers that were right before: without any they say nothing.
OF_RIGHT_ANSWERS = ("dd", "dd_near", "dd_far", "drop", "es_minus_dd")
# Dialogue has no right answer outside: SERAC's drawdown there is how far the replies drift.
DRIFTS = {"dd": "drift", "dd_near": "drift_near", "dd_far": "drift_far"}


def quantity(name: str) -> Measure:
    """A quantity by name; SettingsError when there is none."""
    if name not in QUANTITIES:
        raise SettingsError(
            f"unknown quantity '{name}' of simultaneous edits; known: {', '.join(QUANTITIES)}"
        )
    return QUANTITIES[name]


def sizes(runs: Iterable[Run]) -> list[int]:
    """Every k that the runs measured, rising."""
    return sorted({k for run in runs for k in run.snapshots("edit_success", "in_scope")})


def judged_by_drift(runs: Iterable[Run]) -> bool:
    """Whether the drawdown here is a KL divergence (dialogue) and no share of answers."""
    return any(run.snapshots("drift", "outside") for run in runs)


def known_outside(runs: Iterable[Run]) -> bool:
    """Whether the unedited model has right answers out of scope that could be lost; passages of text have none."""
    before = []
    for run in runs:
        rows = run.metrics[(run.metrics["split"] == "outside") & (run.metrics["metric"] == "right_before")]
        before += list(rows["value"])
    return not before or sum(before) / len(before) > 0.02


def places(spec: dict[str, Any], runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(model, data set) of the runs, in the order of the figure's spec."""
    found = list(dict.fromkeys((run.spec["model"], run.spec["dataset"]) for run in runs))
    models = read.ordered(spec.get("models"), (model for model, _ in found))
    datasets = read.ordered(spec.get("datasets"), (dataset for _, dataset in found))
    return [(model, dataset) for model in models for dataset in datasets if (model, dataset) in found]


def at_place(runs: Sequence[Run], place: tuple[str, str]) -> list[Run]:
    """The runs on one model and data set."""
    return [run for run in runs if (run.spec["model"], run.spec["dataset"]) == place]


def measure(
    runs: Sequence[Run], name: str, k: int, draws: int = DRAWS, level: float = LEVEL
) -> Interval | None:
    """Mean over seeds of a quantity with k edits at once, with its interval; None where a part was not measured.

    Records are resampled jointly for all parts and seeds. Of several runs of a seed the first that measured counts.
    """
    parts = quantity(name).parts
    if quantity(name).whole:
        return _of_whole_runs(runs, parts, k)
    coefficients = np.array([times for times, _, _ in parts])
    tables: dict[int, pd.DataFrame] = {}
    for run in runs:
        columns = [run.record_values(metric, split, k) for _, split, metric in parts]
        if run.seed not in tables and not any(column.empty for column in columns):
            tables[run.seed] = pd.concat(columns, axis=1, keys=range(len(columns)))
    if not tables:
        return None
    found = joint_means_of_seeds(tables, draws)
    own = [float(means @ coefficients) for means, _ in found.values()]
    low, high = limits(np.mean([drawn @ coefficients for _, drawn in found.values()], axis=0), level)
    total = sum(int(table.count().min()) for table in tables.values())
    return Interval(float(np.mean(own)), low, high, min(own), max(own), len(own), total)


def _of_whole_runs(runs: Sequence[Run], parts: Sequence[tuple[float, str, str]], k: int) -> Interval | None:
    """Mean over seeds, and the least and the largest of them."""
    values: dict[int, float] = {}
    for run in runs:
        rows = run.metrics[run.metrics["n_edits"] == k]
        found = [rows[(rows["split"] == split) & (rows["metric"] == metric)] for _, split, metric in parts]
        if run.seed not in values and all(len(own) for own in found):
            cells = (
                times * float(own["value"].iloc[-1]) for (times, *_), own in zip(parts, found, strict=True)
            )
            values[run.seed] = sum(cells)
    if not values:
        return None
    own = list(values.values())
    return Interval(float(np.mean(own)), min(own), max(own), min(own), max(own), len(own), len(own))


def edit_seconds(run: Run, k: int) -> float | None:
    """Median over batches of the seconds per edit with k edits at once; None where the run kept none."""
    batches = (run.info.get("history") or {}).get("edit_seconds", {}).get(str(k))
    return float(np.median(batches)) / k if batches else None


def state_bytes(run: Run, k: int) -> float | None:
    """Bytes of what the editor keeps for k edits; None where the run did not note them."""
    rows = run.metrics
    found = rows[(rows["metric"] == "state_bytes") & (rows["n_edits"] == k)]["value"]
    return float(found.iloc[0]) if len(found) else None


def printed_at(spec: dict[str, Any], dataset: str) -> list[dict[str, str]]:
    """Where the numbers printed for a data set stand: {table, dataset, model}, the first that has one wins."""
    at = ((spec.get("options") or {}).get("published") or {}).get("places") or {}
    found = at.get(dataset, at.get(dataset.rsplit("-", 1)[-1])) or []
    return [found] if isinstance(found, dict) else list(found)


def printed(spec: dict[str, Any], dataset: str, method: str | None, name: str) -> PrintedValue | None:
    """The number printed for a method and a quantity, beside a data set of ours."""
    metric = quantity(name).printed
    if not method or not metric:
        return None
    for at in printed_at(spec, dataset):
        cell = find_printed(
            at["table"], dataset=at["dataset"], model=at["model"], method=method, metric=metric
        )
        if cell is not None:
            return cell
    return None


def counts(runs: Sequence[Run]) -> str:
    """Place by place: model, data set, sizes of batches, edits judged at each, seeds; and what failed."""
    words = []
    for place in places({}, runs):
        own = at_place(runs, place)
        judged = [
            run.record_values("edit_success", "in_scope", k).size for run in own for k in sizes([run])
        ] or [0]
        each = f"{min(judged):,}" if min(judged) == max(judged) else f"{min(judged):,} to {max(judged):,}"
        words.append(
            f"{place[0]} on {captions.dataset_title(place[1])}, {listed(sizes(own))} at once, {each} edits judged a seed, "
            f"{captions.seeds(own)}"
        )
    failed = sum(len(run.info.get("edits_failed") or ()) for run in runs)
    more = f" {failed} edits failed over all runs (recorded in run.json)." if failed else ""
    return "Simultaneous edits, rolled back after every batch: " + "; ".join(words) + "." + more


def definitions(names: Iterable[str], runs: Sequence[Run]) -> str:
    """What the quantities shown are."""
    shown, words = set(names), []
    if shown & {"es", "edit", "rephrase", "implied", "true_false", "es_minus_dd"}:
        words.append(
            "ES (edit success): share of prompts in scope whose whole new answer is said (exact match, teacher-forced)"
        )
    if "flip" in shown:
        words.append("flips only: edits whose new answer was not said before")
    if shown & {"dd", "dd_near", "dd_far", "es_minus_dd"}:
        words.append("DD (drawdown): share of prompts out of scope whose answer changed")
    if shown & {"dd_near", "dd_far"}:
        words.append(
            "near: of the same relation or subject; far: of another (a record's own questions count in DD alone; "
            "those about evidence are near ones)"
        )
    if "drop" in shown:
        words.append("accuracy drop: share of right answers out of scope before, minus after")
    if "perplexity" in shown:
        words.append(
            "perplexity rise: of answers out of scope, over the tokens of all batches (brackets: the seeds)"
        )
    if shown & {*DRIFTS, "drift"} and judged_by_drift(runs):
        words.append(
            "in dialogue, ES is the likelihood score of replies and DD the mean KL divergence (nats) from the unedited model"
        )
    if shown & {"opened", "opened_outside"}:
        words.append("gate open: share of prompts that the stored edits answer")
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "." if text else ""


def listed(values: Sequence[int]) -> str:
    """1, 10 and 75."""
    words = [f"{value:,}" for value in values]
    return " and ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " and " + words[-1]
