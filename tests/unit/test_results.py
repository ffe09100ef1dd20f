"""Result tables: what is written comes back, what breaks the schema is refused, nothing half-written
appears."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from palimpsest import results
from palimpsest.figures.read import Run
from palimpsest.results import ResultError


def metric_row(**changes):
    base = {"run": "a-run", "seed": 0, "step": 1, "n_edits": 10, "split": "edit", "metric": "reliability"}
    return {**base, "value": 0.5, "n": 10, **changes}


def record_row(**changes):
    base = {"run": "a-run", "seed": 0, "step": 1, "n_edits": 10, "edit": "cf-1", "order": 3, "split": "edit"}
    return {**base, "metric": "exact_match", "value": 1.0, **changes}


def inspection_row(**changes):
    base = {
        "run": "a-run",
        "seed": 0,
        "step": 1,
        "edit": "cf-1",
        "split": "locality",
        "layer": 2,
        "tokens": 7,
    }
    numbers = {"z_subject": None, "z_max": 1.5, "z_max_other": None, "alpha": 2.2, "ceiling": 2.27}
    return {**base, **numbers, "swapped_subject": None, "swapped_any": False, **changes}


def test_tables_come_back(tmp_path):
    results.write_metrics(
        tmp_path / "metrics.parquet", [metric_row(), metric_row(split="layer_12", metric="alpha")]
    )
    rows = [record_row(), record_row(order=4, failed="the loss is nan")]
    results.write_records(tmp_path / "records.parquet", rows)
    results.write_inspection(
        tmp_path / "inspection.parquet", [inspection_row(), inspection_row(layer=3, z_subject=1.0)]
    )
    metrics = results.read_metrics(tmp_path)
    assert list(metrics.columns) == list(results.METRICS_SCHEMA.columns)
    assert metrics.to_dict("records")[0] == metric_row()
    assert str(metrics["value"].dtype) == "float64"
    records = results.read_records(tmp_path / "records.parquet")
    assert records.drop(columns="failed").iloc[0].to_dict() == record_row()
    assert records.failed.isna().tolist() == [True, False] and records.failed[1] == "the loss is nan"
    inspection = results.read_inspection(tmp_path)
    assert inspection["z_subject"].isna().tolist() == [True, False]


def test_records_without_the_later_column_are_read(tmp_path):
    """Tables of runs made before failed edits had a reason there."""
    import pyarrow.parquet as parquet

    path = tmp_path / "records.parquet"
    results.write_records(path, [record_row(failed="no")])
    parquet.write_table(parquet.read_table(path).drop_columns(["failed"]), path)
    assert results.read_records(path).failed.isna().all()
    with pytest.raises(ResultError, match="'inventd'"):
        results.write_records(path, [record_row(inventd=1)])


def test_some_columns_are_read_alone(tmp_path):
    """In the order asked for, and checked as a whole table is: one of another version is refused."""
    path = tmp_path / "records.parquet"
    results.write_records(path, [record_row(), record_row(order=4, value=0.25)])
    whole = results.read_table(path, results.RECORDS_SCHEMA)
    some = results.read_table(path, results.RECORDS_SCHEMA, ["value", "edit", "failed"])
    pd.testing.assert_frame_equal(some, whole[["value", "edit", "failed"]])
    whole.drop(columns="failed").to_parquet(path)
    older = results.read_table(path, results.RECORDS_SCHEMA, ["failed", "value"])
    assert list(older) == ["failed", "value"] and older["failed"].isna().all()
    whole.rename(columns={"order": "place"}).to_parquet(path)
    with pytest.raises(ResultError, match="another version"):
        results.read_table(path, results.RECORDS_SCHEMA, ["value"])


def test_a_figure_keeps_no_whole_table_of_records(tmp_path):
    """Forty runs of 10,000 edits would not fit; means are those of the whole table."""
    rows = [
        record_row(
            order=order, edit=f"cf-{order % 3}", n_edits=n_edits, step=n_edits, split=split, value=order / 7
        )
        for n_edits in (0, 5)
        for split in ("edit", "rephrase")
        for order in range(6)
    ]
    results.write_records(tmp_path / "records.parquet", rows)
    run = Run(tmp_path, {})
    found = run.record_values("exact_match", "rephrase", 5)
    assert "records" not in vars(run)
    part = run.records.query("split == 'rephrase' and n_edits == 5")
    pd.testing.assert_series_equal(found, part.groupby("edit")["value"].mean())
    assert run.snapshots("exact_match", "edit") == [5]


def test_empty_and_several_tables(tmp_path):
    for name, rows in (("a", []), ("b", [inspection_row()]), ("c", [inspection_row(seed=1)])):
        results.write_inspection(tmp_path / name / "inspection.parquet", rows)
    assert len(results.read_inspection(tmp_path / "a")) == 0
    assert list(results.read_inspection(tmp_path / "a").columns) == list(results.INSPECTION_SCHEMA.columns)
    assert results.read_inspection([tmp_path / name for name in "abc"])["seed"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "row 1, column 'value'.*not finite"),
        ({"value": float("inf")}, "not finite"),
        ({"value": None}, "column 'value': empty"),
        ({"seed": "0"}, "column 'seed'.*not of type int"),
        ({"n": True}, "column 'n'.*not of type int"),
        ({"split": "edits"}, "unknown split 'edits'; known: edit"),
        ({"split": "layer_x"}, "unknown split"),
        ({"metric": "correctness"}, "unknown metric 'correctness'"),
        ({"run": "A Run"}, "run name"),
        ({"extra": 1}, r"missing or unknown column\(s\) \['extra'\]"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ResultError, match=message):
        results.write_metrics(tmp_path / "metrics.parquet", [metric_row(**change)])
    assert not list(tmp_path.iterdir())


def test_a_row_twice_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"row 2: .*occurs twice"):
        results.write_metrics(tmp_path / "metrics.parquet", [metric_row(), metric_row(value=0.6)])


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "metrics.parquet"
    with pytest.raises(ResultError, match=r"metrics\.parquet does not exist"):
        results.read_metrics(tmp_path / "metrics.parquet")
    results.write_metrics(path, [metric_row()])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultError, match="not a readable parquet file"):
        results.read_metrics(path)
    results.write_records(path, [record_row()])
    with pytest.raises(ResultError, match="written by another version"):
        results.read_metrics(path)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        results.write_metrics(tmp_path / name, [metric_row(), metric_row(step=2)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "metrics.parquet"
    results.write_metrics(path, [metric_row()])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(results.PalimpsestError, match="No space left on device"):
        results.write_metrics(path, [metric_row(value=0.1)])
    monkeypatch.undo()
    assert results.read_metrics(path)["value"].tolist() == [0.5]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.parquet"]


def test_run_json(tmp_path):
    content = {"spec": {}, "seed": 0, "status": "complete", "edits_requested": 1, "edits_applied": 1}
    results.write_run(tmp_path / "run.json", content)
    assert results.read_run(tmp_path) == content == json.loads((tmp_path / "run.json").read_text())
    with pytest.raises(ResultError, match="lacks"):
        results.write_run(tmp_path / "run.json", {"spec": {}})
    with pytest.raises(results.PalimpsestError, match="does not exist"):
        results.read_run(tmp_path / "elsewhere" / "run.json")
