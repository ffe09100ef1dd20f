"""Files of GRACE's tasks from the hub, in the form that `config/paper.yaml` and `config/small.yaml` read (docs/real_data.md).

    python workflow/export_hub_files.py wikibio --revision COMMIT --out $PALIMPSEST_DATA
    python workflow/export_hub_files.py openwebtext --revision COMMIT --out $PALIMPSEST_DATA
    python workflow/export_hub_files.py scotus-train --revision COMMIT --out $PALIMPSEST_DATA

COMMIT: 40 hexadecimal digits, of the data set's branch `refs/convert/parquet`, which the hub makes of every public data set. It
holds no code, so that data sets that are scripts (`stas/openwebtext-10k`) can be read with a present version of `datasets`.
Needs the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from palimpsest.data.sources import hub_rows
from palimpsest.data.tables import table_text
from palimpsest.data.text import one_line
from palimpsest.errors import DataError, PalimpsestError
from palimpsest.files import write_text

DOCUMENTS = 1000  # of web text: so many the released code reads


def as_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Cases as a comma-separated file: text, label."""
    return table_text(("text", "label"), ((row["text"], row["label"]) for row in rows))


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Annotated biographies, one JSON object a line, of what the reader uses."""
    fields = ("wiki_bio_text", "gpt3_sentences", "annotation")
    return "".join(json.dumps({name: row[name] for name in fields}) + "\n" for row in rows)


def as_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """The first documents, one a line: all white space becomes single blanks."""
    return "".join(one_line(row["text"]) + "\n" for row in islice(rows, DOCUMENTS))


@dataclass(frozen=True)
class Export:
    """A split of a hub data set, its file, and what makes the file's text of its rows."""

    id: str
    split: str
    file: str
    text: Callable[[Iterable[Mapping[str, Any]]], str]


EXPORTS = {
    "scotus-train": Export("tomh/grace-scotus", "train", "scotus/grace_scotus_train.csv", as_table),
    "scotus-test": Export("tomh/grace-scotus", "test", "scotus/grace_scotus_test.csv", as_table),
    "wikibio": Export(
        "potsawee/wiki_bio_gpt3_hallucination",
        "evaluation",
        "wikibio/wiki_bio_gpt3_hallucination.jsonl",
        as_lines,
    ),
    "openwebtext": Export("stas/openwebtext-10k", "train", "text/openwebtext-10k-first-1000.txt", as_text),
}


def export(name: str, rows: Iterable[Mapping[str, Any]], out: Path) -> Path:
    """Write the file of one export, whole or not at all.

    Args:
        name: of `EXPORTS`.
        rows: of its split, in their order.
        out: the directory that PALIMPSEST_DATA names.

    Raises:
        DataError: a row lacks a column.
    """
    wanted = EXPORTS[name]
    try:
        text = wanted.text(rows)
    except KeyError as error:
        raise DataError(
            f"the rows have no column {error}",
            file=wanted.id,
            field=str(error.args[0]),
            remedy="Look at the data set's page: it may have another form now; name its columns in EXPORTS",
        ) from error
    write_text(out / wanted.file, text)
    return out / wanted.file


def main(arguments: list[str] | None = None) -> None:
    """One export from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=EXPORTS)
    parser.add_argument(
        "--revision", required=True, help="commit of the data set's branch refs/convert/parquet"
    )
    parser.add_argument("--out", type=Path, required=True, help="the directory that PALIMPSEST_DATA names")
    given = parser.parse_args(arguments)
    wanted = EXPORTS[given.name]
    try:
        rows = hub_rows({"id": wanted.id, "split": wanted.split, "revision": given.revision})
        path = export(given.name, rows, given.out)
    except PalimpsestError as error:
        parser.error(str(error))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
