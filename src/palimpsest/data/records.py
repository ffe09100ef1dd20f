"""Upstream records, checked field by field, and the table of record forms (schemas) that a reader knows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsest.data.sources import Source
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError

log = logging.getLogger(__name__)
FIX = "Correct the record, or set bad_records: skip"


class Record:
    """One upstream record; fields are read with a check of their type, errors name file, record, field."""

    def __init__(self, content: Any, file: object, index: int, prefix: str):
        self.file, self.index = file, index
        self.place = f"number {index} (counted from 0)"
        if not isinstance(content, Mapping):
            raise self.error(f"expected an object with named fields, found {type(content).__name__}")
        self.content: Mapping[str, Any] = content
        case = content.get("case_id")
        plain = isinstance(case, (int, str)) and not isinstance(case, bool) and str(case).strip()
        self.identifier = f"{prefix}-{encodable(str(case)) if plain else index}"
        if plain:
            self.place += f", case_id {encodable(str(case))}"
        if isinstance(case, str) and case.startswith(f"{prefix}-"):
            self.identifier = encodable(case)

    def error(self, what: str, name: str | None = None) -> DataError:
        """Make the error for this record; the caller raises it."""
        return DataError(what, file=self.file, record=self.place, field=name, remedy=FIX)

    def has(self, name: str) -> bool:
        """Tell whether the field is there and not null."""
        return self.content.get(name) is not None

    def get(self, name: str, *inner: str) -> Any:
        """Value of a field, or of a field within it."""
        value: Any = self.content
        path = (name, *inner)
        for depth, step in enumerate(path):
            here = ".".join(path[:depth])
            if not isinstance(value, Mapping):
                raise self.error(f"expected an object, found {type(value).__name__}", here)
            if value.get(step) is None:
                raise self.error("the field is missing", ".".join(path[: depth + 1]))
            value = value[step]
        return value

    def text(self, name: str, *inner: str) -> str:
        """A text that is not empty, without blanks around it."""
        return self.checked(self.get(name, *inner), ".".join((name, *inner)))

    def said(self, *names: str) -> str | None:
        """Text of the first of these fields that the record has; None where it is empty, or something else than a text."""
        name = next((name for name in names if name in self.content), "")
        value = self.content.get(name)
        return self.checked(value, name) if isinstance(value, str) and value.strip() else None

    def texts(self, name: str, *inner: str, empty: bool = False) -> tuple[str, ...]:
        """A text or a list of texts; with `empty`, the list may be empty."""
        value, label = self.get(name, *inner), ".".join((name, *inner))
        values = self.items(value, label) if not isinstance(value, str) else [value]
        if not values and not empty:
            raise self.error("the list is empty", label)
        return tuple(self.checked(item, f"{label}[{number}]") for number, item in enumerate(values))

    def items(self, value: Any, label: str) -> Sequence[Any]:
        """A list, whatever it holds."""
        if not isinstance(value, (list, tuple)):
            raise self.error(f"expected a list, found {type(value).__name__}", label)
        return value

    def checked(self, value: Any, label: str) -> str:
        """`value` as a text that is neither empty nor impossible to write as UTF-8."""
        if not isinstance(value, str):
            raise self.error(f"expected a text, found {type(value).__name__}", label)
        if not value.strip():
            raise self.error("the text is empty", label)
        if encodable(value) != value:
            raise self.error("the text holds half a character (a lone surrogate)", label)
        return value.strip()

    def edit(self, **fields: Any) -> Edit:
        """Build the Edit; what Edit itself refuses is reported with file, record and field."""
        subject, prompt = fields.get("subject"), fields["prompt"]
        if subject is not None and subject not in prompt:
            raise self.error(f"the subject {subject!r} does not occur in the prompt {prompt!r}", "subject")
        try:
            return Edit(identifier=self.identifier, **fields)
        except DataError as error:
            raise self.error(str(error), error.field) from error


def encodable(text: str) -> str:
    """The text, with a question mark for half a character (a lone surrogate), which no UTF-8 file holds."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Schema:
    """One upstream record form: `keys` tell it apart, `parse` turns a record into an Edit."""

    name: str
    keys: frozenset[str]
    parse: Callable[[Record], Edit]


@dataclass(frozen=True)
class RecordReader:
    """A data set's name, the prefix of its identifiers, and its forms, the most particular form first."""

    name: str
    prefix: str
    schemas: tuple[Schema, ...]

    def schema(self, name: str) -> Schema:
        """Look a form up by name."""
        for schema in self.schemas:
            if schema.name == name:
                return schema
        known = ", ".join(schema.name for schema in self.schemas)
        raise SettingsError(f"schema: reader '{self.name}' knows {known}, not {name!r}")

    def detect(self, source: Source) -> Schema:
        """Choose the form whose keys the first readable record has."""
        first = next((record for record in source.records if isinstance(record, Mapping)), {})
        for schema in self.schemas:
            if schema.keys <= set(first):
                return schema
        nearest = min(self.schemas, key=lambda schema: len(schema.keys - set(first)))
        lacking = ", ".join(sorted(nearest.keys - set(first)))
        raise DataError(
            f"the records fit no form of reader '{self.name}' (the nearest, {nearest.name}, needs {lacking})",
            file=source.name,
            record="number 0",
            field=sorted(nearest.keys - set(first))[0],
            remedy="Choose another reader, or name the form with 'schema'",
        )


@dataclass
class Reading:
    """What a file gave: the valid edits in file order, and what was left out and why."""

    schema: str
    total: int
    edits: list[Edit] = field(default_factory=list)
    contents: list[Mapping[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    subject_twice: list[str] = field(default_factory=list)


def read_all(
    source: Source, reader: RecordReader, schema: str | None = None, bad_records: str = "refuse"
) -> Reading:
    """Check every record and turn it into an Edit.

    Args:
        bad_records: "refuse" raises on the first bad record (and says how many there are); "skip" leaves bad
            records out, counts and lists them.

    Raises:
        DataError: bad record under "refuse", or no good record at all.
        SettingsError: unknown schema or `bad_records`.
    """
    if bad_records not in ("refuse", "skip"):
        raise SettingsError(f"bad_records: expected 'refuse' or 'skip', found {bad_records!r}")
    form = reader.schema(schema) if schema else reader.detect(source)
    reading = Reading(form.name, len(source.records))
    first: DataError | None = None
    seen: set[str] = set()
    for index, content in enumerate(source.records):
        try:
            record = Record(content, source.name, index, reader.prefix)
            edit = form.parse(record)
            if edit.identifier in seen:
                raise record.error(f"the identifier {edit.identifier} occurs twice", "case_id")
        except DataError as error:
            first = first or error
            reading.skipped.append({"record": index, "field": error.field, "reason": str(error)})
            continue
        seen.add(edit.identifier)
        reading.edits.append(edit)
        reading.contents.append(record.content)
        if edit.subject and edit.prompt.count(edit.subject) > 1:
            reading.subject_twice.append(edit.identifier)
    _report(reading, source, first, bad_records)
    return reading


def _report(reading: Reading, source: Source, first: DataError | None, bad_records: str) -> None:
    if first is not None and (bad_records == "refuse" or not reading.edits):
        raise refused(first, len(reading.skipped), reading.total)
    if reading.skipped:
        log.warning(
            "%s: %d of %d records were skipped as bad", source.name, len(reading.skipped), reading.total
        )
    if reading.subject_twice:
        some = ", ".join(reading.subject_twice[:5])
        count = len(reading.subject_twice)
        log.warning(
            "%s: in %d prompts the subject occurs twice (%s); the last is used", source.name, count, some
        )


def refused(first: DataError, bad: int, total: int) -> DataError:
    """The first record's error, with the number of further bad ones where there are any."""
    if bad == 1:
        return first
    error = DataError(f"{first}. {bad - 1} more of {total} records are bad")
    error.file, error.record, error.field = first.file, first.record, first.field
    error.__cause__ = first
    return error
