"""The result files of a run: three tables and `run.json`, their schemas, checked writers and readers.

Every table is tidy: one measured value a row. What was not measured is an absent row (in `inspection`: an
empty cell), never a zero and never a NaN. No table holds a time, so the same run gives the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import PalimpsestError
from palimpsest.files import read_object, write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

METRICS_FILE = "metrics.parquet"
RECORDS_FILE = "records.parquet"
INSPECTION_FILE = "inspection.parquet"
RUN_FILE = "run.json"

SPLITS = (
    *("edit", "rephrase", "locality", "unrelated", "portability", "unedited", "text"),
    *("upstream", "holdout", "accurate", "stream"),  # of the lifelong protocol
    # of simultaneous edits: what an edit answers, and what it must leave alone
    *("in_scope", "implied", "true_false", "outside", "near", "far"),
)
METRICS = (
    "reliability",
    "generality",
    "locality",
    "portability",
    "exact_match",
    "generation_match",
    "swap_rate",
    "alpha",
    "perplexity",
    "failed_edits",
    "state_bytes",
    "editing_bytes",
    # of the lifelong protocol
    *("token_f1", "squad_f1", "accuracy", "perplexity_median", "perplexity_dropped"),
    *("edit_success", "edits_made", "items_seen", "errors", "keys"),
    # of simultaneous edits (metrics/success.py)
    *("flip_success", "drawdown", "right_before", "accuracy_drop", "drift", "perplexity_rise"),
)
RADIUS_QUANTILES = (
    0.0,
    0.05,
    0.25,
    0.5,
    0.75,
    0.95,
    1.0,
)  # of a codebook's radii, in a lifelong run's history
_LAYER_SPLIT = re.compile(r"layer_\d+")
RUN_NAME = re.compile(r"[a-z0-9_-]+")


class ResultError(PalimpsestError):
    """A result table breaks its schema, or a result file is missing or damaged."""


@dataclass(frozen=True)
class TableSchema:
    """Columns of one table: name -> type ("string", "int", "float", "bool"); `optional` columns may be empty.

    `key` names the columns that together identify a row. Columns of `later` are optional ones that rows may leave out and
    tables of earlier versions lack: both read as empty.
    """

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()


METRICS_SCHEMA = TableSchema(
    "metrics",
    {
        "run": "string",
        "seed": "int",
        "step": "int",
        "n_edits": "int",
        "split": "string",
        "metric": "string",
        "value": "float",
        "n": "int",
    },
    key=("run", "seed", "step", "split", "metric"),
)
RECORDS_SCHEMA = TableSchema(
    "records",
    {
        "run": "string",
        "seed": "int",
        "step": "int",
        "n_edits": "int",
        "edit": "string",
        "order": "int",
        "split": "string",
        "metric": "string",
        "value": "float",
        "failed": "string",  # why this row's edit could not be made; empty for the others
    },
    key=("run", "seed", "step", "order", "split", "metric"),
    optional=frozenset({"failed"}),
    later=frozenset({"failed"}),
)
INSPECTION_SCHEMA = TableSchema(
    "inspection",
    {
        "run": "string",
        "seed": "int",
        "step": "int",
        "edit": "string",
        "split": "string",
        "layer": "int",
        "tokens": "int",
        "z_subject": "float",
        "z_max": "float",
        "z_max_other": "float",
        "alpha": "float",
        "ceiling": "float",
        "swapped_subject": "bool",
        "swapped_any": "bool",
    },
    key=("run", "seed", "step", "edit", "split", "layer"),
    optional=frozenset(
        {"z_subject", "z_max", "z_max_other", "alpha", "ceiling", "swapped_subject", "swapped_any"}
    ),
)
_PYTHON_TYPES: dict[str, Any] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
}


def check_rows(rows: Sequence[Mapping[str, Any]], schema: TableSchema) -> None:
    """Refuse rows that break the schema, naming table, row number and column.

    Checked: exact set of columns, types, finite numbers, known splits and metrics, run name, no row twice.
    """
    seen: set[tuple[Any, ...]] = set()
    for number, row in enumerate(rows, start=1):
        where = f"table '{schema.name}', row {number}"
        wrong = sorted(set(row) ^ set(schema.columns) - (schema.later - set(row)))
        if wrong:
            raise ResultError(
                f"{where}: missing or unknown column(s) {wrong}; expected {list(schema.columns)}"
            )
        for column, kind in schema.columns.items():
            _check_cell(row.get(column), kind, column in schema.optional, f"{where}, column '{column}'")
        _check_names(row, where)
        key = tuple(row[column] for column in schema.key)
        if key in seen:
            raise ResultError(f"{where}: the row {dict(zip(schema.key, key, strict=True))} occurs twice")
        seen.add(key)


def _check_cell(value: Any, kind: str, optional: bool, where: str) -> None:
    if value is None:
        if optional:
            return
        raise ResultError(f"{where}: empty. Leave the row out when a value was not measured")
    if not isinstance(value, _PYTHON_TYPES[kind]) or (kind in ("int", "float") and isinstance(value, bool)):
        raise ResultError(f"{where}: {value!r} is not of type {kind}")
    if kind == "float" and not math.isfinite(value):
        raise ResultError(
            f"{where}: {value!r} is not finite. Leave the row out when a value was not measured"
        )


def _check_names(row: Mapping[str, Any], where: str) -> None:
    if not RUN_NAME.fullmatch(row["run"]):
        raise ResultError(f"{where}: the run name {row['run']!r} does not match {RUN_NAME.pattern}")
    split, metric = row["split"], row.get("metric")
    if split not in SPLITS and not _LAYER_SPLIT.fullmatch(split):
        raise ResultError(f"{where}: unknown split {split!r}; known: {', '.join(SPLITS)}, layer_N")
    if metric is not None and metric not in METRICS:
        raise ResultError(f"{where}: unknown metric {metric!r}; known: {', '.join(METRICS)}")


def write_table(path: Path | str, rows: Sequence[Mapping[str, Any]], schema: TableSchema) -> None:
    """Check the rows and write them as parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    check_rows(rows, schema)
    layout = _arrow_schema(schema)
    columns = {
        name: pa.array([row.get(name) for row in rows], layout.field(name).type) for name in schema.columns
    }
    table = pa.Table.from_pydict(columns, schema=layout)
    write_atomic(path, lambda temporary: parquet.write_table(table, temporary, compression="zstd"))


def read_table(path: Path | str, schema: TableSchema, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read one table, or only some of its columns (in this order); a missing, truncated or foreign file is refused with its name
    and the remedy."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if not Path(path).is_file():
        raise ResultError(f"file {path} does not exist. Make it with the rule 'run' (snakemake {path})")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read([name for name in names if columns is None or name in columns])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ResultError(
            f"file {path} is not a readable parquet file ({error}). Delete it and run again"
        ) from error
    missing = [name for name in schema.columns if name in schema.later and name not in names]
    for name in missing:
        table = table.append_column(_arrow_schema(schema).field(name), pa.nulls(len(table), pa.string()))
    if sorted([*names, *missing]) != sorted(schema.columns):
        raise ResultError(
            f"file {path}: the columns are {names}, the table '{schema.name}' has "
            f"{list(schema.columns)}. It was written by another version: delete it and run again"
        )
    return table.select(list(columns or schema.columns)).to_pandas()


def write_metrics(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.parquet`: one row per step, split and metric."""
    write_table(path, rows, METRICS_SCHEMA)


def write_records(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `records.parquet`: one row per step, edit, split and metric."""
    write_table(path, rows, RECORDS_SCHEMA)


def write_inspection(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `inspection.parquet`: one row per prompt and hook layer; no rows when nothing was inspected."""
    write_table(path, rows, INSPECTION_SCHEMA)


def read_metrics(run_dirs: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Rows of `metrics.parquet` of one run folder (or file), or of several put together."""
    return _read_many(run_dirs, METRICS_FILE, METRICS_SCHEMA)


def read_records(run_dirs: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Rows of `records.parquet` of one run folder (or file), or of several put together."""
    return _read_many(run_dirs, RECORDS_FILE, RECORDS_SCHEMA)


def read_inspection(run_dirs: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Rows of `inspection.parquet` of one run folder (or file), or of several put together."""
    return _read_many(run_dirs, INSPECTION_FILE, INSPECTION_SCHEMA)


def write_run(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write `run.json`. It is written last, so its presence says that the run is complete."""
    missing = [
        name for name in ("spec", "seed", "status", "edits_requested", "edits_applied") if name not in content
    ]
    if missing:
        raise ResultError(f"run.json lacks {missing}")
    write_json(path, dict(content))


def read_run(run_dir: Path | str) -> dict[str, Any]:
    """Content of a run folder's `run.json`."""
    path = Path(run_dir)
    return read_object(path / RUN_FILE if path.is_dir() else path)


def _read_many(places: Path | str | Iterable[Path | str], name: str, schema: TableSchema) -> pd.DataFrame:
    import pandas as pd

    listed = [places] if isinstance(places, (str, Path)) else list(places)
    frames = [read_table(Path(place) / name if Path(place).is_dir() else place, schema) for place in listed]
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return frames[0] if frames else pd.DataFrame(columns=list(schema.columns))
    return pd.concat(filled, ignore_index=True)


def _arrow_schema(schema: TableSchema) -> pa.Schema:
    import pyarrow as pa

    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [
            pa.field(name, types[kind], nullable=name in schema.optional)
            for name, kind in schema.columns.items()
        ]
    )
