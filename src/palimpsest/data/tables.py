"""Records of a comma-separated file: the first line names the fields, plain or gzipped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.data.sources import TRUNCATED, Source, digest, locate, open_source, read_bytes
from palimpsest.errors import DataError

LONGEST_FIELD = 2**27  # characters; an opinion of a court can exceed the 131,072 that the csv module accepts


def open_records(spec: Mapping[str, Any], folder: Path | str | None = None) -> Source:
    """As `sources.open_source` (`file` with optional `sha256`, or `hub`), for .csv files too."""
    name = spec.get("file")
    if spec.get("hub") is None and isinstance(name, str) and name.removesuffix(".gz").endswith(".csv"):
        source = read_table(locate(name, folder), spec.get("sha256"))
        return source if Path(name).is_absolute() else replace(source, name=name)
    return open_source({key: spec[key] for key in ("file", "hub", "sha256") if key in spec}, folder)


def read_table(path: Path | str, sha256: str | None = None) -> Source:
    """Read a UTF-8 file whose first line names its columns; an unnamed column is left out.

    Raises:
        DataError: unreadable file, no record, a repeated column, or a record with another number of fields.
    """
    content = read_bytes(path, sha256)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", file=path, remedy=TRUNCATED) from error
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"not a comma-separated file ({error})", file=path, remedy=TRUNCATED) from error
    finally:
        csv.field_size_limit(before)
    columns = rows[0] if rows else []
    if len(set(columns)) < len(columns) or not any(columns):
        raise DataError(
            "the first line does not name the columns, each once",
            file=path,
            remedy="Give a file whose first line names the columns",
        )
    records = []
    for number, row in enumerate(rows[1:]):
        if len(row) != len(columns):
            raise DataError(
                f"{len(row)} fields, expected {len(columns)}",
                file=path,
                record=f"number {number} (counted from 0)",
                remedy=TRUNCATED,
            )
        records.append({name: value for name, value in zip(columns, row, strict=True) if name})
    if not records:
        raise DataError("the file holds no record", file=path, remedy=TRUNCATED)
    return Source(Path(path).name, records, digest(content))


def table_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of such a file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()
