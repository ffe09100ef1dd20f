"""The readers by name. A new data set is one file with a READER, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.data import counterfact, zsre
from palimpsest.data.records import Reader, Reading, read_all
from palimpsest.data.sources import Source, locate, open_source, read_text
from palimpsest.errors import SettingsError

READERS: dict[str, Reader] = {reader.name: reader for reader in (counterfact.READER, zsre.READER)}


def reader_of(spec: Mapping[str, Any]) -> Reader:
    """The reader that `spec` names."""
    name = spec.get("reader")
    if name not in READERS:
        raise SettingsError(f"reader: expected one of {', '.join(READERS)}, found {name!r}")
    return READERS[name]


def read_source(spec: Mapping[str, Any], folder: Path | str | None = None) -> tuple[Source, Reading]:
    """Open and check the records of `spec` (reader, file or hub, schema, sha256, targets, bad_records)."""
    reader = reader_of(spec)
    if spec.get("file") is None and spec.get("hub") is None and folder is not None:
        spec = {**spec, "file": f"{reader.name}.json"}
    source = open_source(spec, folder)
    if spec.get("targets") is not None:
        path = locate(spec["targets"], folder)
        source = replace(source, records=zsre.add_targets(source.records, read_text(path), spec["targets"]))
    return source, read_all(source, reader, spec.get("schema"), spec.get("bad_records", "refuse"))
