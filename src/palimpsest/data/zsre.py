"""ZsRE (zero-shot relation extraction questions) in the forms that MEND, EasyEdit and KnowEdit published.

Mapping as in COMEBA-HK's code: prompt = src, target = alt, truth = answers[0], locality = loc without the
leading "nq question: ". Blanks around `alt` are stripped.
"""

from __future__ import annotations

from typing import Any

from palimpsest.data.counterfact import one_hop, paired
from palimpsest.data.qa_hard import hard_probes
from palimpsest.data.records import Record, RecordReader, Schema
from palimpsest.edits import Edit, Probe
from palimpsest.errors import DataError

NQ_PREFIX = "nq question: "


def mend(record: Record) -> Edit:
    """MEND's and EasyEdit's form; locality may be absent (files on inverse relations and subject aliases)."""
    subject, target = record.text("subject"), record.text("alt")
    consequences = list(one_hop(record))
    if record.has("inverse question"):
        consequences.append(Probe(record.text("inverse question"), subject, "inverse_relation"))
    if record.has("alter_subject_question"):
        consequences.append(Probe(record.text("alter_subject_question"), target, "subject_replace"))
    return record.edit(
        prompt=record.text("src"),
        target=target,
        subject=subject,
        truth=record.texts("answers")[0],
        rephrasings=record.texts("rephrase", empty=True),
        locality=nq_locality(record)
        + paired(record, "unrelated_prompt", "unrelated_ground_truth", "unrelated"),
        portability=tuple(consequences),
        relation=record.text("relation") if record.has("relation") else None,
    )


def slim(record: Record) -> Edit:
    """The reduced form: its `alt` holds the TRUE answer; `add_targets` joins the counterfactual ones."""
    return record.edit(
        prompt=record.text("src"),
        target=record.text("alt"),
        subject=record.text("subject"),
        rephrasings=record.texts("rephrase", empty=True),
        locality=nq_locality(record),
    )


def nq_locality(record: Record) -> tuple[Probe, ...]:
    """The unrelated question, one rule for all methods: the leading "nq question: " is taken off."""
    probes = paired(record, "loc", "loc_ans", "locality")
    return tuple(
        Probe(probe.prompt.removeprefix(NQ_PREFIX).strip() or probe.prompt, probe.answer) for probe in probes
    )


def knowedit(record: Record) -> Edit:
    """KnowEdit's form: named groups of probes, each answer a text or a list of alternatives."""
    groups = record.get("locality")
    probes = grouped(record, groups, "locality")
    consequences = (
        grouped(record, record.get("portability"), "portability") if record.has("portability") else ()
    )
    return record.edit(
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject"),
        truth=record.texts("ground_truth")[0],
        rephrasings=record.texts("rephrase_prompt", empty=True),
        locality=probes,
        portability=consequences,
    )


def grouped(record: Record, groups: Any, name: str) -> tuple[Probe, ...]:
    """Probes of {group: [{prompt, ground_truth}]}. KnowEdit's own locality group is the kind "locality"."""
    if not isinstance(groups, dict):
        raise record.error(f"expected an object, found {type(groups).__name__}", name)
    probes: list[Probe] = []
    for group, members in groups.items():
        kind = "locality" if group == "Relation_Specificity" else record.checked(group, name).lower()
        probes += listed(record, members, f"{name}.{group}", kind)
    return tuple(probes)


def listed(record: Record, members: Any, label: str, kind: str) -> list[Probe]:
    """Probes of a list of {prompt, ground_truth}; the first of several accepted answers is taken."""
    probes = []
    for number, member in enumerate(record.items(members, label)):
        here = f"{label}[{number}]"
        if not isinstance(member, dict):
            raise record.error(f"expected an object, found {type(member).__name__}", here)
        answer = member.get("ground_truth")
        if isinstance(answer, list) and answer:
            answer = answer[0]
        prompt = record.checked(member.get("prompt"), f"{here}.prompt")
        probes.append(Probe(prompt, record.checked(answer, f"{here}.ground_truth"), kind))
    return probes


def many_rephrasings(record: Record) -> Edit:
    """The 500 facts with up to three rephrasings each; one that only repeats the prompt is dropped."""
    prompt = record.text("prompt")
    rephrasings = record.texts("rephrase_prompt", empty=True)
    consequences = record.get("portability") if record.has("portability") else []
    return record.edit(
        prompt=prompt,
        target=record.text("target_new"),
        subject=record.text("subject"),
        truth=record.texts("ground_truth")[0],
        rephrasings=tuple(text for text in rephrasings if text != prompt),
        locality=tuple(listed(record, record.get("locality"), "locality", "locality")),
        portability=tuple(listed(record, consequences, "portability", "portability")),
    )


def structured(record: Record) -> Edit:
    """MEND's source form (JSON lines of the structured zero-shot files), edited to the first plausible wrong answer."""
    prompt, truth, target = record.text("input"), true_answer(record), record.texts("alternatives")[0]
    return record.edit(
        prompt=prompt,
        target=target,
        subject=page_of(record, prompt),
        truth=truth,
        rephrasings=rephrasings_of(record, prompt),
        portability=hard_probes(record, truth, target, truth),
    )


def corrections(record: Record) -> Edit:
    """The same form edited the other way, as MEMIT and GRACE do: to the true answer, from what the model says now."""
    prompt, target = record.text("input"), true_answer(record)
    said = record.said("prediction")
    says = said if said != target else None
    return record.edit(
        prompt=prompt,
        target=target,
        subject=page_of(record, prompt),
        truth=says,
        rephrasings=rephrasings_of(record, prompt),
        portability=hard_probes(record, target, target, says),
    )


def true_answer(record: Record) -> str:
    """The first output's answer."""
    outputs = record.items(record.get("output"), "output")
    if not outputs or not isinstance(outputs[0], dict):
        raise record.error("expected a list whose first object has 'answer'", "output")
    return record.checked(outputs[0].get("answer"), "output[0].answer")


def rephrasings_of(record: Record, prompt: str) -> tuple[str, ...]:
    """The filtered rephrasings; one that only repeats the question is dropped (spec 3.1)."""
    return tuple(text for text in record.texts("filtered_rephrases", empty=True) if text != prompt)


def page_of(record: Record, prompt: str) -> str | None:
    """The form names no subject; the page that the answer was found on is one where the question names it."""
    outputs = record.get("output")
    output = outputs[0] if isinstance(outputs, list) and outputs else None
    sources = output.get("provenance") if isinstance(output, dict) else None
    first = sources[0] if isinstance(sources, list) and sources else None
    title = first.get("title") if isinstance(first, dict) else None
    return title if isinstance(title, str) and title.strip() and title in prompt else None


def add_targets(records: list[Any], text: str, file: object) -> list[Any]:
    """Join the reduced form with its companion (question TAB counterfactual answer, line i for record i).

    The result has MEND's form: `answers` is what the reduced record calls `alt`, `alt` the other answer.

    Raises:
        DataError: another number of lines than records, or a question that differs.
    """
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != len(records):
        raise DataError(
            f"{len(lines)} lines for {len(records)} records",
            file=file,
            field="targets",
            remedy="Give the companion file of exactly this record file",
        )
    joined = []
    for number, (line, record) in enumerate(zip(lines, records, strict=True)):
        question, tab, target = line.rstrip("\r").partition("\t")
        same = (
            isinstance(record, dict)
            and isinstance(record.get("src"), str)
            and record["src"].strip() == question.strip()
        )
        if not tab or not same:
            raise DataError(
                "expected the record's question, a tab and its new answer",
                file=file,
                record=f"on line {number + 1}",
                field="src",
                remedy="Give the companion file of exactly this record file",
            )
        joined.append({**record, "answers": [record.get("alt")], "alt": target})
    return joined


COMMON = frozenset({"subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "locality"})
SLIM_KEYS = frozenset({"subject", "src", "rephrase", "alt", "loc", "loc_ans"})
READER = RecordReader(
    "zsre",
    "zsre",
    (
        Schema("zsre-500", COMMON | {"case_id", "source_case_id"}, many_rephrasings),
        Schema("knowedit", COMMON, knowedit),
        Schema("zsre-mend", frozenset({"subject", "src", "rephrase", "alt", "answers"}), mend),
        Schema("zsre-slim", SLIM_KEYS, slim),
        Schema(
            "zsre-structured",
            frozenset({"input", "output", "alternatives", "filtered_rephrases"}),
            structured,
        ),
        # Found by name only: the records are those of the form above.
        Schema(
            "zsre-corrections",
            frozenset({"input", "output", "prediction", "filtered_rephrases"}),
            corrections,
        ),
    ),
)
