"""SERAC's hard questions about ZsRE edits (arXiv 2206.06520, QA-hard): what an edit implies, and true or false.

Two companion files of a structured ZsRE file, both in its order (spec 3.1): `impl_{split}.json`, for each record a list of
[question, answer, ...] whose question contains the true answer, and `zsre_yn_{split}.txt`, a statement a line that
contains it. The true answer is replaced by the new one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

from palimpsest.data.records import Record
from palimpsest.edits import Probe
from palimpsest.errors import DataError

# What is put before a statement, half of the time in lower case.
ASKED = ("True or False: ", "True/False: ", "T/F: ", "Answer True or False: ")
VERDICTS = ("True", "False")
REMEDY = "Give the companion file of exactly this record file"


def add_implied(records: Sequence[Any], implied: Sequence[Any], file: object) -> list[Any]:
    """Put item i of `impl_{split}.json` into record i; missing items at the end are empty, as in the released code.

    Raises:
        DataError: more items than records, or an item that is no list.
    """
    _refuse_more(len(implied), len(records), file)
    joined = []
    for number, record in enumerate(records):
        own = implied[number] if number < len(implied) else []
        if not isinstance(own, list):
            raise DataError(
                f"expected a list of [question, answer], found {type(own).__name__}",
                file=file,
                record=f"number {number} (counted from 0)",
                remedy=REMEDY,
            )
        joined.append({**record, "implied": own} if isinstance(record, dict) else record)
    return joined


def add_true_false(records: Sequence[Any], text: str, file: object) -> list[Any]:
    """Put line i of `zsre_yn_{split}.txt` into record i; a line may be empty.

    Raises:
        DataError: more lines than records.
    """
    lines = text.removesuffix("\n").split("\n")
    _refuse_more(len(lines), len(records), file)
    lines += [""] * (len(records) - len(lines))
    return [
        {**record, "true_false": line} if isinstance(record, dict) else record
        for record, line in zip(records, lines, strict=True)
    ]


def _refuse_more(found: int, records: int, file: object) -> None:
    if found > records:
        raise DataError(f"{found} entries for {records} records", file=file, remedy=REMEDY)


def hard_probes(record: Record, truth: str, target: str, wrong: str | None) -> tuple[Probe, ...]:
    """Probes of kind "implied" and "true_false" from what was joined to the record.

    Args:
        truth: the answer that questions and statements contain.
        target: the new answer, which takes its place.
        wrong: an answer that is false after the edit, for the statement to be denied. SERAC takes another plausible wrong
            answer; the old one is false too, and never the new one.
    """
    return (*_implied(record, truth, target), *_true_false(record, truth, target, wrong))


def _implied(record: Record, truth: str, target: str) -> list[Probe]:
    if not record.has("implied"):
        return []
    probes = []
    for number, item in enumerate(record.items(record.get("implied"), "implied")):
        label = f"implied[{number}]"
        pair = record.items(item, label)
        if len(pair) < 2:
            raise record.error("expected [question, answer]", label)
        question, answer = record.checked(pair[0], label), record.checked(pair[1], label)
        if says_words(question, truth):  # others cannot be asked about a new answer
            probes.append(Probe(with_words(question, truth, target, re.IGNORECASE), answer, "implied"))
    return probes


def _true_false(record: Record, truth: str, target: str, wrong: str | None) -> list[Probe]:
    statement = (record.said("true_false") or "").replace(" - ", "-")
    if not says_words(statement, truth, re.IGNORECASE):
        return []
    # The way of asking is drawn by the record's name: the same bytes each time, equal shares over records.
    number = zlib.crc32(record.identifier.encode())
    before = ASKED[number % len(ASKED)]
    before = before.lower() if number // len(ASKED) % 2 else before
    probes = [Probe(before + with_words(statement, truth, target, re.IGNORECASE), VERDICTS[0], "true_false")]
    if wrong is not None and wrong != target:
        denied = with_words(statement, truth, wrong, re.IGNORECASE)
        probes.append(Probe(before + denied, VERDICTS[1], "true_false"))
    return probes


def with_words(text: str, old: str, new: str, flags: int = 0) -> str:
    """The text with `new`, as plain text, for `old` where that stands as whole words: "male" is no part of "female"."""
    return re.sub(_words(old), lambda _: new, text, flags=flags)


def says_words(text: str, words: str, flags: int = 0) -> bool:
    """Whether these words stand in the text, none of them as a part of another word."""
    return re.search(_words(words), text, flags) is not None


def _words(text: str) -> str:
    return rf"(?<!\w){re.escape(text)}(?!\w)"
