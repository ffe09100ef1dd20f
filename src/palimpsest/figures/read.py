"""Finished runs as tables: what figures and claims start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest import results
from palimpsest.errors import DataError
from palimpsest.figures.bootstrap import DRAWS, LEVEL, Interval, interval_over_seeds
from palimpsest.files import read_object

METRIC_SPLITS = {"reliability": "edit", "generality": "rephrase", "locality": "locality"}


@dataclass(frozen=True)
class Run:
    """One run directory `results/runs/{run}/seed=N`; its tables are read when they are asked for."""

    directory: Path
    info: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved run spec."""
        spec: dict[str, Any] = self.info["spec"]
        return spec

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.info["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """The editor's complete settings."""
        return dict(self.spec.get("settings") or {})

    @property
    def ill_suited(self) -> str:
        """Why the gate would have refused this run, or "": its editor writes at the subject, its model keeps facts elsewhere."""
        gate = self.info.get("gate") or {}
        if gate.get("verdict") != "fail" or not gate.get("needed"):
            return ""
        return "; ".join(gate.get("reasons") or ()) or "no reason is given"

    @property
    def method(self) -> tuple[str, str]:
        """(editor, variant)."""
        return self.spec["editor"], self.spec.get("variant") or "default"

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Rows of metrics.parquet."""
        return results.read_table(self.directory / results.METRICS_FILE, results.METRICS_SCHEMA)

    @cached_property
    def records(self) -> pd.DataFrame:
        """Rows of records.parquet."""
        return results.read_table(self.directory / results.RECORDS_FILE, results.RECORDS_SCHEMA)

    @cached_property
    def inspection(self) -> pd.DataFrame:
        """Rows of inspection.parquet (none where nothing was inspected)."""
        return results.read_table(self.directory / results.INSPECTION_FILE, results.INSPECTION_SCHEMA)

    @cached_property
    def _by_cell(self) -> dict[tuple[str, str, int], pd.Series]:
        """Records once sorted into (metric, split, n_edits): every figure asks for many of them."""
        # An edit may have several probes of a split: the record's value is their mean. Only what this needs is read, and let go
        # again: whole tables of forty runs of 10,000 edits would take 6 GB.
        path, by = self.directory / results.RECORDS_FILE, ["metric", "split", "n_edits", "edit"]
        rows = results.read_table(path, results.RECORDS_SCHEMA, [*by, "value"])
        means = rows.groupby(by, sort=True)["value"].mean()
        del rows
        cells = {}
        key: Any  # (metric, split, n_edits)
        for key, values in means.groupby(level=[0, 1, 2], sort=True):
            metric, split, n_edits = key
            cells[str(metric), str(split), int(n_edits)] = values.droplevel([0, 1, 2])
        return cells

    def record_values(self, metric: str, split: str | None = None, n_edits: int | None = None) -> pd.Series:
        """Value per record (index: edit identifier) at one snapshot, by default the last. May be empty."""
        split = split or METRIC_SPLITS.get(metric, "edit")
        if n_edits is None:
            n_edits = max(
                (n for name, part, n in self._by_cell if (name, part) == (metric, split)), default=0
            )
        return self._by_cell.get((metric, split, n_edits), pd.Series(dtype="float64"))

    def snapshots(self, metric: str, split: str | None = None) -> list[int]:
        """Numbers of edits at which records of this metric exist, without 0 (before editing)."""
        split = split or METRIC_SPLITS.get(metric, "edit")
        return sorted(n for name, part, n in self._by_cell if (name, part) == (metric, split) and n > 0)


def load_runs(run_dirs: Iterable[Path | str]) -> list[Run]:
    """Open run directories, in the given order.

    Raises:
        DataError: run.json lacks a field, or the run is not complete.
    """
    runs = []
    for directory in map(Path, run_dirs):
        path = directory / "run.json"
        info = read_object(path, "spec", "seed", "status")
        for field in ("editor", "model", "dataset", "protocol"):
            if not isinstance(info["spec"], dict) or field not in info["spec"]:
                raise DataError(
                    "the field is missing",
                    file=path,
                    field=f"spec.{field}",
                    remedy="Run the rule 'run' again",
                )
        if info["status"] != "complete":
            raise DataError(
                f"the run's status is '{info['status']}'",
                file=path,
                field="status",
                remedy="Finish the run first",
            )
        runs.append(Run(directory, info))
    return runs


@dataclass(frozen=True)
class Method:
    """One row of a table or line of a figure: an editor in one variant ("*": every variant)."""

    editor: str
    variant: str
    title: str
    published: str | None = None
    not_run: bool = False

    def fits(self, run: Run) -> bool:
        """Whether a run belongs to this method."""
        editor, variant = run.method
        return editor == self.editor and self.variant in ("*", variant)


UNEDITED = Method("unedited", "default", "Unedited")  # the row of the model before any edit


def methods_of(spec: dict[str, Any], runs: Sequence[Run]) -> list[Method]:
    """The methods that the figure's spec lists, or else those found in the runs."""
    listed = spec.get("methods") or []
    if listed:
        return [
            Method(
                entry["editor"],
                entry.get("variant") or "default",
                entry.get("title") or entry["editor"],
                entry.get("published"),
                bool(entry.get("not_run", False)),
            )
            for entry in listed
        ]
    found: dict[tuple[str, str], Method] = {}
    for run in runs:
        found.setdefault(run.method, Method(*run.method, run.spec.get("title") or run.spec["editor"]))
    return list(found.values())


def select(spec: dict[str, Any], run_dirs: Sequence[Path]) -> list[Run]:
    """The runs among `run_dirs` that the figure's models, data sets, methods and protocol ask for."""
    options = spec.get("options") or {}
    runs = load_runs(run_dirs)
    for field, wanted in (
        ("model", spec.get("models")),
        ("dataset", spec.get("datasets")),
        ("protocol", [options["protocol"]] if options.get("protocol") else None),
    ):
        if wanted:
            runs = [run for run in runs if run.spec[field] in wanted]
    if spec.get("methods"):
        methods = methods_of(spec, runs)
        runs = [run for run in runs if any(method.fits(run) for method in methods)]
    if not runs:
        raise DataError(
            f"no run fits figure '{spec.get('name', '?')}' ({len(run_dirs)} run directories given)",
            remedy="Check models, datasets, methods and options.protocol of the figure's spec",
        )
    return runs


def ordered(wanted: Sequence[str] | None, found: Iterable[str]) -> list[str]:
    """Values found, in the order wanted, or else of first appearance."""
    distinct = list(dict.fromkeys(found))
    return [value for value in wanted if value in distinct] if wanted else distinct


def one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """The first run of each seed: before any edit all methods have the same model and items, and count once."""
    return list({run.seed: run for run in reversed(runs)}.values())


def measure(
    runs: Sequence[Run],
    metric: str,
    split: str | None = None,
    n_edits: int | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval | None:
    """Mean over seeds of one metric at one snapshot, with intervals; None where it was not measured."""
    per_seed: dict[int, list[pd.Series]] = {}
    for run in runs:
        values = run.record_values(metric, split, n_edits)
        if len(values):
            per_seed.setdefault(run.seed, []).append(identified(run, values))
    if not per_seed:
        return None
    return interval_over_seeds({seed: pd.concat(parts) for seed, parts in per_seed.items()}, draws, level)


def identified(run: Run, values: pd.Series) -> pd.Series:
    """`record_values` with names that no record of another data set has."""
    return values.set_axis(run.spec["dataset"] + "\n" + values.index)


def before_editing(runs: Sequence[Run], metric: str, split: str | None = None) -> float | None:
    """Mean over seeds of the metric row before any edit (n_edits 0), where there is one."""
    split = split or METRIC_SPLITS.get(metric, "edit")
    values = []
    for run in runs:
        rows = run.metrics
        rows = rows[(rows["metric"] == metric) & (rows["split"] == split) & (rows["n_edits"] == 0)]
        values += rows["value"].tolist()
    return float(np.mean(values)) if values else None
