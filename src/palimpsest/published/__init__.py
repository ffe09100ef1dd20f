"""The numbers that papers print and the claims they make, as data beside the code.

Tables are CSV files with one row per printed cell; `printed` keeps the string as it stands in the paper, and `bound`
the sign before it where the paper gives only a bound (< or >). Where a table could not be copied from the paper itself,
`evidence` says of each number whether a public source confirms it, and `source` which one: an unchecked number is shown
as such and never judged.
Claims are YAML files whose tests `palimpsest.claims` judges. Only the standard library and PyYAML are
needed here.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from palimpsest.errors import DataError

COLUMNS = ("paper", "location", "dataset", "model", "method", "metric", "value", "printed", "note")
EVIDENCE_COLUMNS = ("evidence", "source")  # of tables that were not copied from the paper itself
BOUND_COLUMNS = (*COLUMNS[:-1], "bound", COLUMNS[-1], *EVIDENCE_COLUMNS)  # of tables that print bounds
BOUNDS = ("", "<", ">")
EVIDENCE = ("confirmed", "unchecked")
UNCHECKED_MARK = "†"


class PrintedValue(NamedTuple):
    """One printed cell of a paper's table."""

    paper: str
    location: str
    dataset: str
    model: str
    method: str
    metric: str
    value: float
    printed: str
    note: str
    evidence: str = "confirmed"
    source: str = ""
    bound: str = ""

    @property
    def shown(self) -> str:
        """The printed string with its sign; an unchecked one carries a mark."""
        return self.bound + self.printed + (UNCHECKED_MARK if self.evidence == "unchecked" else "")


def tables() -> list[str]:
    """Names of all published tables."""
    return sorted(
        entry.name[:-4] for entry in resources.files(__package__).iterdir() if entry.name.endswith(".csv")
    )


@cache
def load_table(name: str) -> tuple[PrintedValue, ...]:
    """All printed cells of one table, for example `comeba_hk_table1`.

    Raises:
        DataError: no such table, wrong columns, a value that differs from the printed string, or an unknown
            evidence mark.
    """
    source = resources.files(__package__).joinpath(f"{name}.csv")
    if not source.is_file():
        raise DataError(
            f"there is no published table '{name}'", remedy=f"Known tables: {', '.join(tables())}"
        )
    reader = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    columns = tuple(reader.fieldnames or ())
    if columns not in (COLUMNS, COLUMNS + EVIDENCE_COLUMNS, BOUND_COLUMNS):
        raise DataError(f"columns are {reader.fieldnames}, expected {list(COLUMNS)}", file=f"{name}.csv")
    cells = []
    for number, row in enumerate(reader, start=2):
        if float(row["value"]) != float(row["printed"]):
            raise DataError(
                "value and printed differ", file=f"{name}.csv", record=f"line {number}", field="value"
            )
        if row.get("evidence", EVIDENCE[0]) not in EVIDENCE:
            raise DataError(
                f"the mark is '{row['evidence']}', expected {' or '.join(EVIDENCE)}",
                file=f"{name}.csv",
                record=f"line {number}",
                field="evidence",
            )
        if row.get("bound", "") not in BOUNDS:
            raise DataError(
                f"the sign is '{row['bound']}', expected < or > or nothing",
                file=f"{name}.csv",
                record=f"line {number}",
                field="bound",
            )
        cells.append(
            PrintedValue(**{**{name: row[name] for name in columns}, "value": float(row["value"])})  # type: ignore[arg-type]
        )
    return tuple(cells)


def find_printed(table: str, *, dataset: str, model: str, method: str, metric: str) -> PrintedValue | None:
    """The printed cell, or None where the paper gives no number."""
    wanted = (dataset, model, method, metric)
    for cell in load_table(table):
        if (cell.dataset, cell.model, cell.method, cell.metric) == wanted:
            return cell
    return None


def claims(paper: str = "comeba_hk") -> list[dict[str, Any]]:
    """The paper's claims in order, as plain data (see `claims_document` for the methods they name)."""
    return list(claims_document(paper)["claims"])


def experiments_judged(paper: str = "comeba_hk") -> set[str]:
    """Names of the experiments whose runs the paper's claims are judged on; some are of another paper."""
    parts = [part for claim in claims(paper) for part in claim["parts"]]
    own = {name for part in parts for name in part.get("experiments") or ()}
    return own | {
        name for part in parts for term in part.get("terms") or () for name in term.get("experiments") or ()
    }


@cache
def claims_document(paper: str = "comeba_hk") -> dict[str, Any]:
    """The whole claims file: `paper`, `methods`, `claims`.

    Raises:
        DataError: no claims are kept for this paper, or an identifier stands twice.
    """
    import yaml

    source = resources.files(__package__).joinpath(f"claims_{paper}.yaml")
    if not source.is_file():
        raise DataError(
            f"no claims are kept for paper '{paper}'",
            remedy="Add src/palimpsest/published/claims_<paper>.yaml",
        )
    document: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    identifiers = [claim["id"] for claim in document["claims"]]
    if len(set(identifiers)) != len(identifiers):
        raise DataError("a claim identifier stands twice", file=source.name, field="id")
    return document
