"""What an edit answers beside its own prompt: how that is asked, and what is said to it before the edit.

Probes of an edit hold the answers after it. Where the record is asked without being edited (out of scope of another edit, or
because the edit is to change nothing) those answers are wrong, and what takes their place is known of some probes only.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from palimpsest.data.conversations import AGAINST, WITH
from palimpsest.data.fever import LABELS
from palimpsest.data.qa_hard import VERDICTS, says_words, with_words
from palimpsest.edits import Edit, Probe

SENTIMENT_KINDS = (WITH, AGAINST)
IN_SCOPE_KINDS = ("implied", "true_false", *SENTIMENT_KINDS)


def in_scope(edit: Edit) -> list[tuple[str, str]]:
    """(prompt, answer) of everything that an edit answers, itself first; answers are those after the edit."""
    probes = [(probe.prompt, probe.answer) for probe in edit.portability if probe.kind in IN_SCOPE_KINDS]
    return [(text, edit.target) for text in (edit.prompt, *edit.rephrasings)] + probes


def before_edit(edit: Edit, probe: Probe) -> str | None:
    """What is said to a probe in scope before the edit, None where that is not known.

    Of two classes it is the other one: what the edit makes false was held to be right (`claims_source` prepares models so; of
    claims about evidence it is an assumption, wrong for a third of the generated ones), and a statement is as true before as
    it is false after. An implied question that names the new answer says nothing about
    what was answered before.
    """
    if edit.truth == edit.target:
        return probe.answer  # nothing is edited
    if edit.truth is None:
        return None
    if {edit.truth, edit.target} == set(LABELS) and probe.answer in LABELS:
        return _other(probe.answer, LABELS)
    if probe.kind == "true_false" and probe.answer in VERDICTS:
        return _other(probe.answer, VERDICTS)
    names = says_words(probe.prompt, edit.target)
    return edit.truth if probe.answer == edit.target and not names else None


def asked_aside(edit: Edit, source: random.Random) -> tuple[str, str, bool]:
    """A way to ask an unedited record, half of the time its own prompt, with what is said now, and whether that is known.

    Prompts out of scope are worded as variously as those in scope (SERAC draws equal shares of both). Where it is not known, the
    answer after the edit stands there: a place to look at, of which nobody can say whether it is right. Replies of a
    sentiment are such places too, but dialogue has no right answers, so that nothing is marked.
    """
    said = edit.truth or edit.target
    asked = [(text, said, True) for text in (edit.prompt, *edit.rephrasings)]
    for probe in edit.portability:
        if probe.kind in IN_SCOPE_KINDS:
            after = said if probe.answer == edit.target else probe.answer
            before = before_edit(edit, probe)
            known = before is not None or probe.kind in SENTIMENT_KINDS
            asked.append((probe.prompt, after if before is None else before, known))
    return asked[0] if source.random() < 0.5 else source.choice(asked)


def unchanged(edit: Edit) -> Edit:
    """The edit to what is said already. Its probes ask for what was so before; those of which that is not known are dropped."""
    if edit.truth is None:
        return edit
    turned, held = {WITH: AGAINST, AGAINST: WITH}, []
    for probe in edit.portability:
        if probe.kind in turned:
            held.append(replace(probe, kind=turned[probe.kind]))
        elif (before := before_edit(edit, probe)) is not None:
            held.append(replace(probe, answer=before))
    return replace(edit, target=edit.truth, portability=tuple(held))


def wished(edit: Edit, alternatives: list[str], blocked: set[str]) -> list[dict[str, Any]]:
    """What an edit is to bring about: one example, or one for each sentiment that an entity has replies of.

    A reply belongs to one sentiment only, so the examples of an entity have one new answer each; `opposed` are the replies
    that should become less likely (SERAC's unlikelihood term). Questions that are `blocked` are left out.
    """
    answer = edit.truth or edit.target
    probes = [probe for probe in edit.portability if probe.prompt not in blocked]
    both = {kind: [[p.prompt, p.answer] for p in probes if p.kind == kind] for kind in SENTIMENT_KINDS}
    if not all(both.values()):
        return [
            {
                "identifier": edit.identifier,
                "answer": answer,
                "alternatives": alternatives,
                "implied": [_holed(p, edit.target) for p in probes if p.kind == "implied"],
                "true_false": _statements([p for p in probes if p.kind == "true_false"], edit.target),
            }
        ]
    agreed, opposed = both.values()
    return [
        {
            "identifier": f"{edit.identifier}{mark}",
            "answer": old,
            "alternatives": [new],
            "implied": own,
            "opposed": other,
        }
        for mark, new, old, own, other in (
            ("+", edit.target, answer, agreed, opposed),
            ("-", answer, edit.target, opposed, agreed),
        )
    ]


def _holed(probe: Probe, target: str) -> list[str]:
    """A question with its answer, and "{}" where they say the new answer."""
    return [with_words(probe.prompt, target, "{}"), "{}" if probe.answer == target else probe.answer]


def _statements(probes: list[Probe], target: str) -> list[list[str]]:
    """True ones with "{}" for the new answer, and false ones as they are: with "{}" they would be taken for true ones.

    A true one without a place for the answer is true of this answer alone, and left out.
    """
    rows = []
    for probe in probes:
        row = [probe.prompt, probe.answer] if probe.answer == VERDICTS[1] else _holed(probe, target)
        if probe.answer == VERDICTS[1] or "{}" in row[0]:
            rows.append(row)
    return rows


def _other(answer: str, both: tuple[str, ...]) -> str:
    return both[1] if answer == both[0] else both[0]
