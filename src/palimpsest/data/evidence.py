"""VitaminC for SERAC's fact checking: the edit is a sentence of evidence, in scope are the claims about it (spec 3.4).

Records are one claim each: claim, evidence, label, page, revision_type. Only real revisions with more than ten words of
evidence are kept. Those of one sentence of evidence are one edit: it is to be believed; claims it supports or refutes are
in scope, and claims it says too little about are near ones out of scope.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from typing import Any

from palimpsest.data.fever import LABELS
from palimpsest.data.records import Record, RecordReader, Schema, refused
from palimpsest.data.sources import Source
from palimpsest.edits import UNSETTLED, Edit, Probe
from palimpsest.errors import DataError

log = logging.getLogger(__name__)

UNKNOWN = "NOT ENOUGH INFO"
LEAST_WORDS = 11


def by_evidence(source: Source, bad_records: str = "refuse") -> tuple[Source, list[dict[str, Any]]]:
    """One record for each sentence of evidence, in file order, with its claims as [claim, label]; and what was skipped.

    Evidence that settles no claim gives nothing to judge an edit by and is left out. Of revisions that are not kept nothing is
    looked at.

    Args:
        bad_records: as for `read_all`; "skip" leaves single claims out.

    Raises:
        DataError: a record without the form's fields (the first, under "refuse"), or none that is kept.
    """
    groups: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    bad: list[tuple[int, DataError]] = []
    for number, content in enumerate(source.records):
        try:
            record = Record(content, source.name, number, READER.prefix)
            if record.text("revision_type") != "real":
                continue
            if len(record.text("evidence").split()) < LEAST_WORDS:
                continue
            record.text("page"), record.text("claim"), _label(record, record.get("label"))
        except DataError as error:
            bad.append((number, error))
            continue
        groups[content["page"], content["evidence"]].append([content["claim"], content["label"]])
    if bad and (bad_records == "refuse" or not groups):
        raise refused(bad[0][1], len(bad), len(source.records))
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
    if bad:
        log.warning("%s: %d of %d claims were skipped as bad", source.name, len(bad), len(source.records))
    skipped = [{"record": number, "field": error.field, "reason": str(error)} for number, error in bad]
    return replace(source, records=merged), skipped


def _label(record: Record, value: object) -> str:
    label = str(value).upper()
    if label not in (*LABELS, UNKNOWN):
        raise record.error(f"expected one of {', '.join((*LABELS, UNKNOWN))}, found {value!r}", "label")
    return label


def believed(record: Record) -> Edit:
    """The evidence as an edit."""
    text, page = record.text("evidence"), record.text("page")
    found: dict[str, list[str]] = defaultdict(list)
    for number, item in enumerate(record.items(record.get("claims"), "claims")):
        found[_label(record, item[1])].append(record.checked(item[0], f"claims[{number}]"))
    return record.edit(
        prompt=text,
        target=LABELS[0],
        subject=page if page in text else None,
        truth=LABELS[1],
        rephrasings=tuple(claim for claim in dict.fromkeys(found[LABELS[0]]) if claim != text),
        portability=tuple(Probe(claim, LABELS[1], "implied") for claim in dict.fromkeys(found[LABELS[1]])),
        locality=tuple(Probe(claim, LABELS[1], UNSETTLED) for claim in dict.fromkeys(found[UNKNOWN])),
    )


READER = RecordReader(
    "evidence", "evidence", (Schema("vitaminc", frozenset({"evidence", "page", "claims"}), believed),)
)
