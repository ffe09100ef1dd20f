"""VitaminC for SERAC's fact checking: the edit is a sentence of evidence, in scope are the claims about it (spec 3.4).

Records are one claim each: claim, evidence, label, page, revision_type. Only real revisions with more than ten words of
evidence are kept. Those of one sentence of evidence are one edit: it is to be believed; claims it supports or refutes are
in scope, and claims it says too little about are near ones out of scope.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from palimpsest.data.fever import LABELS
from palimpsest.data.records import Reader, Record, Schema
from palimpsest.data.sources import Source
from palimpsest.edits import Edit, Probe
from palimpsest.errors import DataError

UNKNOWN = "NOT ENOUGH INFO"
LEAST_WORDS = 11
NEEDED = ("claim", "evidence", "label", "page", "revision_type")


def by_evidence(source: Source) -> Source:
    """One record for each sentence of evidence, in the order of the file, with its claims as [claim, label].

    Evidence that settles no claim gives nothing to judge an edit by and is left out.

    Raises:
        DataError: a record without the form's fields, or none that is kept.
    """
    groups: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    for number, record in enumerate(source.records):
        lacking = [
            name
            for name in NEEDED
            if not isinstance(record, Mapping) or not isinstance(record.get(name), str)
        ]
        if lacking:
            raise DataError(
                "expected a text",
                file=source.name,
                record=f"number {number} (counted from 0)",
                field=lacking[0],
                remedy="Give a file in VitaminC's form",
            )
        if record["revision_type"] == "real" and len(record["evidence"].split()) >= LEAST_WORDS:
            groups[record["page"], record["evidence"]].append([record["claim"], record["label"]])
    judged = {
        key: claims for key, claims in groups.items() if {str(c[1]).upper() for c in claims} & set(LABELS)
    }
    if not judged:
        raise DataError(
            f"no real revision with at least {LEAST_WORDS} words of evidence supports or refutes a claim",
            file=source.name,
            remedy="Give VitaminC's train, dev or test file",
        )
    merged = [{"page": page, "evidence": text, "claims": claims} for (page, text), claims in judged.items()]
    return replace(source, records=merged)


def believed(record: Record) -> Edit:
    """The evidence as an edit."""
    text, page = record.text("evidence"), record.text("page")
    found: dict[str, list[str]] = defaultdict(list)
    for number, item in enumerate(record.items(record.get("claims"), "claims")):
        claim, label = record.checked(item[0], f"claims[{number}]"), str(item[1]).upper()
        if label not in (*LABELS, UNKNOWN):
            raise record.error(f"expected one of {', '.join((*LABELS, UNKNOWN))}, found {item[1]!r}", "label")
        found[label].append(claim)
    return record.edit(
        prompt=text,
        target=LABELS[0],
        subject=page if page in text else None,
        truth=LABELS[1],
        rephrasings=tuple(claim for claim in dict.fromkeys(found[LABELS[0]]) if claim != text),
        portability=tuple(Probe(claim, LABELS[1], "implied") for claim in dict.fromkeys(found[LABELS[1]])),
        locality=tuple(Probe(claim, LABELS[1], "near") for claim in dict.fromkeys(found[UNKNOWN])),
    )


READER = Reader(
    "evidence", "evidence", (Schema("vitaminc", frozenset({"evidence", "page", "claims"}), believed),)
)
