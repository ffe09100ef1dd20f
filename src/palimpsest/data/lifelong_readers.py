"""Upstream records of the three lifelong tasks as items: what is asked, and what is right.

Question answering: ZsRE in every form that `data.zsre` knows, taken with its TRUE answer, and NQ-open or MEND's
nq_train.json. Classification: the GRACE release's (text, label) and the court cases. Generation: the annotated
GPT-3 biographies in the form of the hub and the forms of WISE and KnowEdit. Source: GRACE, section 4.1 and the
released data set classes.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from palimpsest.data import zsre
from palimpsest.data.records import Record
from palimpsest.data.sources import Source
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError

log = logging.getLogger(__name__)
TAG = re.compile(r"<[^<>]{1,200}>")
YEARS = re.compile(r"\d{4}")
HEADER = "This is a Wikipedia passage about {}."
ANNOTATIONS = ("accurate", "minor_inaccurate", "major_inaccurate")
CLASS_DIGITS = 9  # no label set needs more, and `int` refuses thousands
# A full stop after one of these, or after a single capital letter, ends no sentence.
ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Sir|Jr|Sr|Rev|Hon|Gen|Col|Capt|Lt|Sgt|Prof|vs?|No|Inc|Co|Ltd|Mt|c|ca|b|d))\.$"
)


@dataclass(frozen=True)
class Item:
    """One question with its right answer.

    Attributes:
        kind: "stream" (may be edited), "accurate" (must stay) or "original" (the wrong text that an edit replaces).
        edit: the question (prompt), the right answer (target), other phrasings (rephrasings).
        fact: items with the same value ask for the same fact.
        year: of a court case.
        said: of a question, what a model answered, where the file tells.
        page: of a question, the page its answer was found on, where the question names it.
    """

    kind: str
    edit: Edit
    fact: str
    year: int | None = None
    said: str | None = None
    page: str | None = None


@dataclass
class Items:
    """What a file gave: the items in file order, the numbers of their records (from 0), and the records left out and why."""

    form: str
    total: int
    items: list[Item] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[Item]:
        """The items of one kind."""
        return [item for item in self.items if item.kind == kind]


@dataclass(frozen=True)
class Form:
    """A record form of a task: `keys` tell it apart, `parse` turns a record into its items."""

    name: str
    keys: frozenset[str]
    parse: Callable[[Record], list[Item]]


def read_items(
    source: Source, forms: Sequence[Form], prefix: str, form: str | None = None, bad_records: str = "refuse"
) -> Items:
    """Check every record and turn it into items; `form` names the record form, which is found out otherwise.

    Raises:
        DataError: a bad record under "refuse" (the error says how many there are), no good record at all, or records
            of no known form.
        SettingsError: unknown form or `bad_records`.
    """
    if bad_records not in ("refuse", "skip"):
        raise SettingsError(f"bad_records: expected 'refuse' or 'skip', found {bad_records!r}")
    chosen = _form(source, forms, form)
    found = Items(chosen.name, len(source.records))
    first: DataError | None = None
    seen: set[str] = set()
    for index, content in enumerate(source.records):
        try:
            record = Record(content, source.name, index, prefix)
            items = chosen.parse(record)
            if repeated := seen & {item.edit.identifier for item in items}:
                raise record.error(f"the identifier {min(repeated)} occurs twice", "case_id")
        except DataError as error:
            first = first or error
            found.skipped.append({"record": index, "field": error.field, "reason": str(error)})
            continue
        seen |= {item.edit.identifier for item in items}
        found.items += items
        found.places += [index] * len(items)
    if first is not None and (bad_records == "refuse" or not found.items):
        if len(found.skipped) == 1:
            raise first
        whole = DataError(f"{first}. {len(found.skipped) - 1} more of {found.total} records are bad")
        whole.file, whole.record, whole.field = first.file, first.record, first.field
        raise whole from first
    if found.skipped:
        log.warning(
            "%s: %d of %d records are bad and were skipped", source.name, len(found.skipped), found.total
        )
    return found


def _form(source: Source, forms: Sequence[Form], name: str | None) -> Form:
    if name is not None:
        for form in forms:
            if form.name == name:
                return form
        raise SettingsError(
            f"schema: expected one of {', '.join(form.name for form in forms)}, found {name!r}"
        )
    first = next((record for record in source.records if isinstance(record, Mapping)), {})
    for form in forms:
        if form.keys <= set(first):
            return form
    nearest = min(forms, key=lambda form: len(form.keys - set(first)))
    lacking = sorted(nearest.keys - set(first))
    raise DataError(
        f"the records fit no known form (the nearest, {nearest.name}, needs {', '.join(lacking)})",
        file=source.name,
        record="number 0",
        field=lacking[0],
        remedy=f"Give a file in one of the forms {', '.join(form.name for form in forms)}",
    )


def question_forms(empty_rephrasings: str = "refuse") -> tuple[Form, ...]:
    """Forms of the edit questions. `empty_rephrasings`: "refuse" such a record, or keep its "question" alone."""
    if empty_rephrasings not in ("refuse", "question"):
        raise SettingsError(
            f"empty_rephrasings: expected 'refuse' or 'question', found {empty_rephrasings!r}"
        )

    def form(name: str, keys: frozenset[str], label: str, parse: Callable[[Record], Edit]) -> Form:
        def items(record: Record) -> list[Item]:
            edit = parse(record)
            # The reduced form keeps the true answer where the others keep the counterfactual one.
            true = Edit(
                edit.prompt,
                edit.truth or edit.target,
                edit.subject,
                edit.identifier,
                rephrasings=edit.rephrasings,
            )
            if not true.rephrasings and empty_rephrasings == "refuse":
                raise record.error("the list of rephrasings is empty (set empty_rephrasings: question to "
                                   "keep the question alone)", label)  # fmt: skip
            said = record.said("prediction", "pred")
            page = zsre.page_of(record, true.prompt) if "output" in record.content else None
            return [Item("stream", true, true.identifier, said=said, page=page)]

        return Form(name, keys, items)

    known = [
        form(
            schema.name,
            schema.keys,
            "rephrase_prompt" if "rephrase_prompt" in schema.keys else "rephrase",
            schema.parse,
        )
        for schema in zsre.READER.schemas
        if schema.name != "zsre-structured"
    ]
    needed = frozenset({"input", "output", "filtered_rephrases"})
    return (form("zsre-structured", needed, "filtered_rephrases", _structured), *known)


def _structured(record: Record) -> Edit:
    """MEND's source form; GRACE takes the first output's answer and needs no counterfactual one."""
    outputs = record.items(record.get("output"), "output")
    if not outputs or not isinstance(outputs[0], Mapping):
        raise record.error("expected a list whose first object has 'answer'", "output")
    return record.edit(
        prompt=record.text("input"),
        target=record.checked(outputs[0].get("answer"), "output[0].answer"),
        rephrasings=record.texts("filtered_rephrases", empty=True),
    )


def upstream_questions(source: Source, bad_records: str = "refuse") -> Items:
    """NQ-open (JSON lines) or MEND's nq_train.json (one object of parallel lists), as MEND's reader presents it: first
    letter capital, a question mark at the end, the shortest of the answers."""
    return read_items(_parallel(source), UPSTREAM_QUESTIONS, "nq", None, bad_records)


def _parallel(source: Source) -> Source:
    first = source.records[0]
    if (
        len(source.records) != 1
        or not isinstance(first, Mapping)
        or not {"questions", "answers"} <= set(first)
    ):
        return source
    questions, answers = first["questions"], first["answers"]
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        raise DataError(
            "expected two lists of equal length",
            file=source.name,
            field="questions",
            remedy="Give nq_train.json as MEND publishes it",
        )
    rows = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    return replace(source, records=rows)


def _nq(record: Record) -> list[Item]:
    question = record.text("question")
    asked = question[0].upper() + question[1:]
    answer = min(record.texts("answer"), key=len)
    edit = record.edit(prompt=asked if asked.endswith("?") else asked + "?", target=answer)
    return [Item("stream", edit, edit.identifier)]


UPSTREAM_QUESTIONS = (Form("nq", frozenset({"question", "answer"}), _nq),)


def document_forms(labels: Sequence[str] | None, words: int | None) -> tuple[Form, ...]:
    """Forms of labelled documents; a whole number as label is the index of one of `labels`. Documents are cut after
    `words` words."""

    def item(record: Record, text: str, name: str, year: int | None) -> list[Item]:
        label = _label(record, name)
        if labels is not None and label.isascii() and label.isdecimal():  # "²" is a digit, and no number
            number = int(label) if len(label) <= CLASS_DIGITS else len(labels)
            if number >= len(labels):
                raise record.error(
                    f"class {label:.20} is outside the label set of {len(labels)} classes (counted from 0)",
                    name,
                )
            label = labels[number]
        cut = text if words is None else " ".join(text.split()[:words])
        edit = record.edit(prompt=cut, target=label)
        return [Item("stream", edit, edit.identifier, year)]

    def release(record: Record) -> list[Item]:
        return item(record, record.text("text"), "label", _year(record) if record.has("term") else None)

    def cases(record: Record) -> list[Item]:
        text = " ".join(html.unescape(TAG.sub(" ", record.text("facts"))).split())
        return item(record, record.checked(text, "facts"), "issue_area", _year(record))

    return (
        Form("text-label", frozenset({"text", "label"}), release),
        Form("court-cases", frozenset({"facts", "term", "issue_area"}), cases),
    )


def _label(record: Record, name: str) -> str:
    """A document's class as it is written: a text or, in JSON, a number."""
    raw = record.content.get(name)
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        raise record.error("the record has no label", name)
    if not isinstance(raw, (str, int, float)) or isinstance(raw, bool):
        raise record.error(f"expected a text or a number, found {type(raw).__name__}", name)
    return record.checked(str(raw), name)


def _year(record: Record) -> int:
    """Year of a term; of a range such as 1940-1955 its last year."""
    found = YEARS.findall(str(record.get("term")))
    if not found:
        raise record.error(f"expected a year, found {record.get('term')!r}", "term")
    return int(found[-1])


def biography_forms(names: Sequence[str] | None, annotations: Sequence[str]) -> tuple[Form, ...]:
    """Forms of biographies; `names` are those of the hub form's rows, `annotations` which sentences are edited."""
    if unknown := set(annotations) - set(ANNOTATIONS[1:]):
        raise SettingsError(
            f"annotations: unexpected {sorted(unknown)}; allowed are {', '.join(ANNOTATIONS[1:])}"
        )

    def passage(record: Record) -> list[Item]:
        if record.has("concept"):
            name = record.text("concept")
        elif names is None:
            raise record.error(
                "nobody says whom the passage is about: set 'names' to the list of names", "concept"
            )
        elif record.index >= len(names):
            raise record.error(f"the list of names has only {len(names)} lines", "names")
        else:
            name = names[record.index]
        return _passage(record, name, annotations)

    return (
        Form("annotated", frozenset({"gpt3_sentences", "annotation", "wiki_bio_text"}), passage),
        Form("wise", frozenset({"prompt", "target_new", "subject"}), lambda r: _one(r, "prompt", "target_new", "subject")),
        Form("knowedit-bio", frozenset({"text", "labels", "concept"}), lambda r: _one(r, "text", "labels", "concept")),
    )  # fmt: skip


def _one(record: Record, prompt: str, target: str, subject: str) -> list[Item]:
    name = record.text(subject)
    edit = record.edit(prompt=record.text(prompt), target=record.text(target), subject=name)
    return [Item("stream", edit, name)]


def _passage(record: Record, name: str, annotations: Sequence[str]) -> list[Item]:
    """Sentence j of a passage follows the header and GPT-3's sentences before j; a wrong one is to become sentence
    min(j, n - 1) of the true biography, cut to the number of annotated sentences."""
    said, judged = record.texts("gpt3_sentences"), record.texts("annotation")
    if len(said) != len(judged):
        raise record.error(f"{len(judged)} annotations for {len(said)} sentences", "annotation")
    if wrong := [value for value in judged if value not in ANNOTATIONS]:
        raise record.error(f"expected one of {', '.join(ANNOTATIONS)}, found {wrong[0]!r}", "annotation")
    truth = sentences(record.text("wiki_bio_text"))[: len(said)]
    items = []
    for j, (sentence, value) in enumerate(zip(said, judged, strict=True)):
        prompt = " ".join((HEADER.format(name), *said[:j]))
        identifier = f"{record.identifier}.{j}"
        if value == "accurate":
            items.append(Item("accurate", Edit(prompt, sentence, name, identifier), name))
        elif value in annotations:
            right = Edit(prompt, truth[min(j, len(truth) - 1)], name, identifier, truth=sentence)
            items.append(Item("stream", right, name))
            items.append(Item("original", Edit(prompt, sentence, name, f"{identifier}.original"), name))
    return items


def sentences(text: str) -> list[str]:
    """Sentences of a text, by rule: the release used a trained splitter, which no dependency here brings."""
    parts: list[str] = []
    for piece in re.split(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z0-9])", " ".join(text.split())):
        if parts and ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + piece
        else:
            parts.append(piece)
    return [part for part in parts if part]


def about_file(source: Source, items: Items) -> dict[str, Any]:
    """What a manifest says about the file its records come from."""
    return {
        "file": source.name,
        "revision": source.revision,
        "source_sha256": source.sha256,
        "schema": items.form,
        "records_in_file": items.total,
        "skipped": items.skipped,
    }
