"""The readers by name. A new data set is one file with a READER, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.data import conversations, counterfact, evidence, fever, passages, zsre
from palimpsest.data.qa_hard import add_implied, add_true_false
from palimpsest.data.records import Reading, RecordReader, read_all
from palimpsest.data.sources import Source, locate, open_source, read_file, read_text
from palimpsest.errors import SettingsError

READERS: dict[str, RecordReader] = {
    module.READER.name: module.READER
    for module in (counterfact, zsre, fever, evidence, conversations, passages)
}


def reader_of(spec: Mapping[str, Any]) -> RecordReader:
    """The reader that `spec` names."""
    name = spec.get("reader")
    if not isinstance(name, str) or name not in READERS:
        raise SettingsError(f"reader: expected one of {', '.join(READERS)}, found {name!r}")
    return READERS[name]


def read_source(spec: Mapping[str, Any], folder: Path | str | None = None) -> tuple[Source, Reading]:
    """Open and check the records of `spec` (reader, file or hub, schema, sha256, bad_records, and the
    companion files of ZsRE: targets, implied, true_false)."""
    reader = reader_of(spec)
    if spec.get("file") is None and spec.get("hub") is None and folder is not None:
        spec = {**spec, "file": f"{reader.name}.json"}
    source = (passages.open_passages if reader is passages.READER else open_source)(spec, folder)
    if spec.get("targets") is not None:
        path = locate(spec["targets"], folder)
        source = replace(source, records=zsre.add_targets(source.records, read_text(path), spec["targets"]))
    if spec.get("implied") is not None:
        more = read_file(locate(spec["implied"], folder)).records
        source = replace(source, records=add_implied(source.records, more, spec["implied"]))
    if spec.get("true_false") is not None:
        text = read_text(locate(spec["true_false"], folder))
        source = replace(source, records=add_true_false(source.records, text, spec["true_false"]))
    bad_records = spec.get("bad_records", "refuse")
    if reader.name != evidence.READER.name:
        return source, read_all(source, reader, spec.get("schema"), bad_records)
    total = len(source.records)
    source, skipped = evidence.by_evidence(source, bad_records)
    reading = read_all(source, reader, spec.get("schema"), bad_records)
    reading.skipped, reading.total = skipped + reading.skipped, total  # claims, not sentences of evidence
    return source, reading
