"""Text as passages, one a line: books of Project Gutenberg, WikiText, any text file, or a hub text column."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from palimpsest.data.records import encodable
from palimpsest.data.sources import check_hub, hub_rows, locate, read_text
from palimpsest.errors import DataError, SettingsError
from palimpsest.plain import check_whole

KINDS = ("auto", "gutenberg", "wikitext", "plain")
PASSAGES = ("paragraph", "article")
TEXT_FIELDS = {"files", "hub", "kind", "limit", "shortest", "passage", "seed"}
# Public-domain books and WikiText, mixed so that the held-out tail is like the rest.
DEFAULT_FILES = (
    "text/gutenberg/1342-0.txt",
    "text/gutenberg/35-0.txt",
    "text/gutenberg/1661.txt",
    "text/wikitext-2/valid.txt",
)
START = re.compile(r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE)
END = re.compile(
    r"^(?:\*\*\* ?END OF TH(?:E|IS) PROJECT|End of (?:the )?Project) Gutenberg.*$",
    re.MULTILINE | re.IGNORECASE,
)
JOINED = re.compile(r" @(.)@ ")


def read_passages(spec: Mapping[str, Any] | None = None, folder: Path | str | None = None) -> list[str]:
    """Read passages (no line breaks inside, single blanks).

    Args:
        spec: `files` (names, looked up as data files) or `hub` (as for data sets, with `column`, by default
            "text"); `kind` of the files ("auto" decides by content); `limit` passages; `shortest` in
            characters (by default 40). Passages of several files take turns, so that a held-out tail
            resembles the rest. Of a hub data set only: `passage`, "paragraph" (by default) or "article", the
            whole of a row; `seed`, by which rows are drawn (without it they come in their order). Rows are
            looked up one by one until there are `limit` passages; the split is never read as a whole.
        folder: where relative names are looked up first.

    Raises:
        SettingsError: unknown field or kind.
        DataError: missing or empty file, or a column that holds no text.
    """
    spec = dict(spec or {})
    if unknown := set(spec) - TEXT_FIELDS:
        raise SettingsError(
            f"text: unexpected {sorted(unknown)}; allowed are {', '.join(sorted(TEXT_FIELDS))}"
        )
    shortest, limit = spec.get("shortest", 40), spec.get("limit")
    for name, value in (("shortest", shortest), ("limit", limit), ("seed", spec.get("seed"))):
        if value is not None:
            check_whole(value, f"text.{name}", 0, sys.maxsize)
    if spec.get("hub") is not None:
        found = _hub_passages(spec["hub"], spec.get("passage", "paragraph"), spec.get("seed"))
    elif drawn := {"passage", "seed"} & set(spec):
        raise SettingsError(
            f"text.{min(drawn)}: only rows of a hub data set can be drawn or taken whole. Give `hub`, or leave it out"
        )
    else:
        files = spec.get("files") or DEFAULT_FILES
        if not isinstance(files, list | tuple) or not all(isinstance(name, str) for name in files):
            raise SettingsError(f"text.files: expected a list of file names, found {files!r:.60}")
        found = _take_turns([file_passages(locate(name, folder), spec.get("kind", "auto")) for name in files])
    kept = list(islice((passage for passage in found if len(passage) >= (shortest or 0)), limit))
    if not kept and limit != 0:
        raise DataError(
            "no passage is long enough", file=spec.get("files") or spec.get("hub"), remedy="Give more text"
        )
    return kept


def file_passages(path: Path, kind: str = "auto") -> list[str]:
    """Passages of one file; header and licence of a Gutenberg book and WikiText's headings are left out."""
    if kind not in KINDS:
        raise SettingsError(f"text.kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    text = read_text(path)
    if kind == "auto":
        kind = (
            "gutenberg"
            if START.search(text)
            else "wikitext"
            if " @-@ " in text or "<unk>" in text
            else "plain"
        )
    if kind == "gutenberg":
        return [passage for passage in _paragraphs(book(text, path)) if not _credits(passage)]
    if kind == "wikitext":
        lines = [line for line in text.split("\n") if line.strip() and not _heading(line)]
        return [" ".join(JOINED.sub(r"\1", f" {line} ").split()) for line in lines]
    return (
        list(_paragraphs(text))
        if re.search(r"\n[ \t\r]*\n", text)
        else [one_line(line) for line in text.split("\n")]
    )


def book(text: str, file: object = None) -> str:
    """The book itself: what stands between Gutenberg's start and end marks."""
    start = START.search(text)
    if start is None:
        raise DataError(
            "no start mark of a Project Gutenberg book", file=file, remedy="Set kind: plain for other text"
        )
    end = END.search(text, start.end())
    return text[start.end() : end.start() if end else len(text)]


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t\r]*\n", text):
        if line := one_line(paragraph):
            yield line


def _heading(line: str) -> bool:
    return line.strip().startswith("= ") and line.strip().endswith(" =")


def _credits(passage: str) -> bool:
    """Who typed the book is no part of it."""
    return passage.startswith(("Produced by", "[Illustration", "E-text prepared by"))


def one_line(text: str) -> str:
    """All white space, every kind of line break included, as single blanks."""
    return " ".join(text.split())


def _take_turns(columns: Sequence[list[str]]) -> Iterator[str]:
    for row in zip_longest(*columns):
        yield from (passage for passage in row if passage)


def _hub_passages(hub: Mapping[str, Any], passage: str, seed: int | None) -> Iterator[str]:
    """Passages of a hub column, row by row: in their order, or by `seed` in a shuffled one."""
    identifier, _ = check_hub(hub)
    if passage not in PASSAGES:
        raise SettingsError(f"text.passage: expected one of {', '.join(PASSAGES)}, found {passage!r}")
    column, rows = hub.get("column", "text"), hub_rows(hub)
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    for number in order:
        row = rows[number]
        value = row.get(column) if isinstance(row, Mapping) else None
        if not isinstance(value, str) or encodable(value) != value:
            raise DataError(
                "expected a text, without half a character (a lone surrogate)"
                if isinstance(value, str)
                else "expected a text",
                file=identifier,
                record=f"number {number}",
                field=column,
                remedy="Choose another column",
            )
        yield from [one_line(value)] if passage == "article" else _paragraphs(value)
