"""What learned editors are trained on: `learning.jsonl` beside `edits.jsonl`, about subjects that no table edits.

One object a line: identifier, prompt, subject, answer (what is true, or what the model says now), alternatives (what it may
be edited to), rephrasings, implied and true_false (pairs of question and answer, either with "{}" for the new answer),
outside (prompts an edit must leave alone: prompt, answer, near, and known: false where nobody knows whether the answer is
right) and split ("train" or "valid"). Everything comes from the
record itself and from other records that are set aside. The scheme is MEND's (arXiv 2110.11309, Section 3.2 and appendix)
and SERAC's (arXiv 2206.06520, Section 4): x_e, y_e, an in-scope x', and x_loc, of which the near ones are hard negatives.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import Any

from palimpsest.data.in_scope import IN_SCOPE_KINDS, asked_aside, wished
from palimpsest.data.other_answers import OtherAnswers
from palimpsest.data.relations import SLOT, Templates, cluster, fill, template_of
from palimpsest.data.sources import digest
from palimpsest.data.unrelated import unrelated_questions
from palimpsest.edits import UNSETTLED, Edit, Probe
from palimpsest.errors import DataError, SettingsError

LEARNING_FILE = "learning.jsonl"
SHARED = 2  # so many records must use a way of asking before it counts as one: free text is never borrowed, nor a link
LEAST_VALID = 16  # subjects
FAR_KINDS = ("far", "unrelated", "other_attribute")


@dataclass(frozen=True)
class Amounts:
    """How much of each is kept for one example.

    Attributes:
        alternatives: new answers; near, far: out-of-scope prompts of each kind; rephrasings: in-scope ones.
        unrelated: of the far ones, new questions where tables ask the records' own (data/unrelated.py).
        valid: share of the subjects whose examples are for validation; `LEAST_VALID` of them where there are enough.
    """

    alternatives: int = 8
    near: int = 6
    far: int = 6
    unrelated: int = 2
    rephrasings: int = 20
    valid: float = 0.1


def subject_key(edit: Edit) -> str:
    """What may not stand on both sides: the subject without case and blanks, or the prompt where there is none."""
    return " ".join((edit.subject or edit.prompt).casefold().split())


def last_owners(owned: Mapping[str, Sequence[Edit]], count: int) -> set[str]:
    """The last owners, as many as have at least `count` records together (all of them where there are fewer)."""
    owners = list(reversed(list(owned)))
    before = accumulate((len(owned[owner]) for owner in owners), initial=0)
    return {owner for owner, total in zip(owners, before, strict=False) if total < count}


def set_aside(edits: Sequence[Edit], count: int, file: object = None) -> list[Edit]:
    """The records of the last subjects, at least `count` of them; a subject is never cut in two.

    Subjects are in the order of their first record, so that a longer file keeps what a shorter one had at its start.

    Raises DataError: nothing would be left to edit.
    """
    owners: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        owners[subject_key(edit)].append(edit)
    taken = last_owners(owners, count)
    if sum(len(owners[key]) for key in taken) >= len(edits):
        raise DataError(
            f"{count} of {len(edits)} records are to be set aside, which leaves none to edit",
            file=file,
            field="reserve",
            remedy="Lower 'reserve', or use a larger file",
        )
    return [edit for edit in edits if subject_key(edit) in taken]


def relation_groups(edits: Sequence[Edit]) -> list[str]:
    """A name for the relation of each edit: its own, or that of its prompt's template; "" where nothing tells.

    Templates that one record asks by are one relation (see data/relations.py), if several records use them; one that a single
    record uses may ask for anything.
    """
    asked = [[template_of(text, edit.subject) for text in (edit.prompt, *edit.rephrasings)] for edit in edits]
    uses = Counter(way for ways in asked for way in set(ways) if way is not None)
    links = []
    for own, *others in asked:
        if own is not None and uses[own] >= SHARED:
            links += [(own, own)]
            links += [(own, way) for way in others if way is not None and uses[way] >= SHARED]
    names = cluster(links, [own for own, _ in links] + [way for _, way in links], 1)
    return [
        edit.relation or (names.get(own, "") if own is not None else "")
        for edit, (own, *_) in zip(edits, asked, strict=True)
    ]


def another_fact(group: str, groups: Iterable[str]) -> bool:
    """Whether a record of a relation surely asks for something else than records of these relations about its subject."""
    return bool(group) and all(other and other != group for other in groups)


def build_examples(
    own: Sequence[Edit],
    tables: Sequence[Edit],
    seed: int = 0,
    amounts: Amounts | None = None,
    answers: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Examples in the form of `learning.jsonl`, and what a manifest says about them.

    Args:
        own: the records to learn from. `truth` is what the model says now; without one, `target` takes its place and new
            answers come from other records.
        tables: the records that are edited elsewhere; no prompt of theirs or of their probes is used, so that a record with such
            a prompt gives no example.
        seed: of the choice and order of alternatives and out-of-scope prompts.
        answers: the classes, where answers are classes.

    Raises:
        DataError: a subject stands on both sides, or no record has a second answer.
    """
    _refuse_shared(own, tables)
    return _Maker(own, tables, seed, amounts or Amounts(), answers).examples()


def _refuse_shared(own: Sequence[Edit], tables: Sequence[Edit]) -> None:
    shared = {subject_key(edit) for edit in own} & {subject_key(edit) for edit in tables}
    if shared:
        raise DataError(
            f"{len(shared)} subjects (such as {min(shared)!r}) are both to learn from and to be edited",
            field="learning",
            remedy="Take the records of these subjects out of one of the two",
        )


class _Maker:
    """Turns the records of one data set into examples."""

    def __init__(
        self,
        own: Sequence[Edit],
        tables: Sequence[Edit],
        seed: int,
        amounts: Amounts,
        answers: Sequence[str] | None,
    ):
        self.own, self.seed, self.amounts, self.classes = own, seed, amounts, answers
        self.blocked = {text for edit in tables for text in _texts(edit)}
        self.groups = relation_groups([*own, *tables])[: len(own)]
        self.members: dict[str, list[int]] = defaultdict(list)
        self.of_subject: dict[str, list[int]] = defaultdict(list)
        self.said: dict[str, list[tuple[str, str | None]]] = defaultdict(list)  # answers, and of whom
        # prompt template -> templates of rephrasings, with the number of records that use them
        self.ways: dict[str, Counter[str]] = defaultdict(Counter)
        for place, (edit, group) in enumerate(zip(own, self.groups, strict=True)):
            self.members[group].append(place)
            self.of_subject[subject_key(edit)].append(place)
            if group:
                self.said[group] += [(text, edit.subject) for text in (edit.truth, edit.target) if text]
            template = template_of(edit.prompt, edit.subject)
            if template is not None:
                found = {template_of(text, edit.subject) for text in edit.rephrasings}
                self.ways[template].update(sorted(way for way in found if way is not None))
        self.shapes = {
            group: Templates(_shapes(own[place] for place in places))
            for group, places in self.members.items()
        }
        self.others: dict[str, OtherAnswers] = {}  # of each relation
        self.borrowed: dict[
            str, list[str]
        ] = {}  # ways of asking that a prompt's template may take from others
        self.left_out: Counter[str] = Counter()
        aside = [
            probe.prompt in self.blocked
            for edit, group in zip(own, self.groups, strict=True)
            for probe in edit.locality
            if not self._is_near(probe, edit, group)
        ]
        # Where tables ask most of the unrelated questions, a scope classifier would never meet their sort, and open for them.
        self.made_up = amounts.unrelated if 2 * sum(aside) > len(aside) else 0  # of each example
        self.questions = unrelated_questions(chain(self.blocked, *map(_texts, own)), seed)

    def examples(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        subjects = list(self.of_subject)
        # Enough for one draw of ten edits, and never more than a quarter.
        kept = max(round(self.amounts.valid * len(subjects)), min(LEAST_VALID, len(subjects) // 4))
        valid = set(subjects[len(subjects) - kept :])
        made = []
        for place, edit in enumerate(self.own):
            if edit.prompt in self.blocked:  # the table's answer to it may be another one
                self.left_out["prompts that tables ask"] += 1
                continue
            source = random.Random(f"{self.seed} learning {edit.identifier} {edit.prompt}")
            alternatives = self._alternatives(place, source)
            if not alternatives:
                self.left_out["without another answer"] += 1
                continue
            self.left_out["questions that tables ask"] += sum(
                probe.prompt in self.blocked for probe in edit.portability if probe.kind in IN_SCOPE_KINDS
            )
            common = {
                "prompt": edit.prompt,
                "subject": edit.subject,
                "rephrasings": self._rephrasings(edit),
                "outside": self._outside(place, source),
                "split": "valid" if subject_key(edit) in valid else "train",
            }
            made += [{**common, **own} for own in wished(edit, alternatives, self.blocked)]
        if not made:
            raise DataError(
                f"none of {len(self.own)} records has an answer that it could be edited to, and a prompt that no table asks",
                field="alternatives",
                remedy="Set more records aside, or give records with a new and an old answer",
            )
        return made, self._about(made)

    def _alternatives(self, place: int, source: random.Random) -> list[str]:
        """The record's own new answer first, then other classes or answers of the same relation."""
        edit = self.own[place]
        answer = edit.truth or edit.target
        own = [edit.target] if edit.target != answer else []
        number = self.amounts.alternatives
        return [*own, *self._others(place).draw(edit.subject, {answer, edit.target}, number, source)][:number]

    def _others(self, place: int) -> OtherAnswers:
        """What other records of the same relation answer, or the classes."""
        group = self.groups[place] if self.classes is None else ""
        if group not in self.others:
            said = self.said[group] if self.classes is None else [(name, None) for name in self.classes]
            self.others[group] = OtherAnswers(said)
        return self.others[group]

    def _rephrasings(self, edit: Edit) -> list[str]:
        """The record's own, then ways of asking the same prompt that several other records use."""
        template = template_of(edit.prompt, edit.subject)
        if template is not None and template not in self.borrowed:
            self.borrowed[template] = sorted(way for way, n in self.ways[template].items() if n >= SHARED)
        ways = self.borrowed[template] if template is not None else []
        free: dict[str, None] = {}  # in order, each once
        for text in chain(edit.rephrasings, (fill(way, edit.subject or "") for way in ways)):
            if len(free) == self.amounts.rephrasings:
                break
            if text != edit.prompt and text not in self.blocked:
                free[text] = None
        return list(free)

    def _outside(self, place: int, source: random.Random) -> list[dict[str, Any]]:
        edit, group = self.own[place], self.groups[place]
        mine = {edit.prompt, *edit.rephrasings}
        found: dict[str, tuple[str, bool, bool]] = {}  # prompt -> answer, near, whether the answer is known
        for probe in edit.locality:
            if probe.prompt in self.blocked:
                self.left_out["probes that tables ask"] += 1
            elif probe.prompt not in mine:
                known = probe.kind != UNSETTLED
                found.setdefault(probe.prompt, (probe.answer, self._is_near(probe, edit, group), known))
        found |= {prompt: (answer, False, True) for prompt, answer in islice(self.questions, self.made_up)}
        same = [
            other
            for other in self.of_subject[subject_key(edit)]
            if other != place and another_fact(self.groups[other], [group])
        ]
        near = same + self._some(self.members[group] if group else [], source, self.amounts.near)
        far = self._some(range(len(self.own)), source, self.amounts.far, avoid=group)
        for places, is_near in ((near, True), (far, False)):
            for other in places:
                asked = self.own[other]
                if subject_key(asked) == subject_key(edit) and not (is_near and other in same):
                    continue  # itself, or perhaps the same fact in other words
                prompt, answer, known = asked_aside(asked, source)
                if prompt not in self.blocked and prompt not in mine:
                    found.setdefault(prompt, (answer, is_near, known))
        kept = []
        for wanted, most in ((True, self.amounts.near), (False, self.amounts.far)):
            rows = [(p, answer, known) for p, (answer, is_near, known) in found.items() if is_near == wanted]
            kept += [
                {"prompt": p, "answer": answer, "near": wanted, **({} if known else {"known": False})}
                for p, answer, known in rows[:most]
            ]
        return kept

    def _is_near(self, probe: Probe, edit: Edit, group: str) -> bool:
        if probe.kind in ("near", UNSETTLED, *FAR_KINDS):
            return probe.kind not in FAR_KINDS
        about = edit.subject is not None and edit.subject in probe.prompt
        return about or (bool(group) and self.shapes[group].match(probe.prompt) is not None)

    def _some(
        self, places: Sequence[int], source: random.Random, number: int, avoid: str | None = None
    ) -> list[int]:
        """Places drawn at random, twice as many as wanted since some fall away; `avoid`: not of this group."""
        if avoid is None:
            return source.sample(places, min(len(places), 2 * number))
        drawn = [source.choice(places) for _ in range(4 * number)]
        return [place for place in dict.fromkeys(drawn) if self.groups[place] != avoid or not avoid]

    def _about(self, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        near = Counter(row["near"] for example in made for row in example["outside"])
        return {
            "examples": len(made),
            "train": sum(example["split"] == "train" for example in made),
            "valid": sum(example["split"] == "valid" for example in made),
            "without_rephrasings": sum(not example["rephrasings"] for example in made),
            "rephrasings": sum(len(example["rephrasings"]) for example in made),
            "implied": sum(len(one["implied"]) + len(one.get("true_false", ())) for one in made),
            "near": near[True],
            "far": near[False],
            "made_up_far_of_each": self.made_up,
            "relations": len(set(self.groups) - {""}),
            "left_out": dict(+self.left_out),  # a plus takes out what was counted 0 times
        }


def _texts(edit: Edit) -> Iterable[str]:
    yield from (edit.prompt, *edit.rephrasings)
    yield from (probe.prompt for probe in (*edit.locality, *edit.portability))


def _shapes(edits: Iterable[Edit]) -> list[str]:
    found = (template_of(text, edit.subject) for edit in edits for text in (edit.prompt, *edit.rephrasings))
    return sorted({shape for shape in found if shape is not None and shape.strip(SLOT + " .?")})


def learning_lines(examples: Iterable[Mapping[str, Any]]) -> str:
    """The text of `learning.jsonl` (ASCII, so that no letter ends a line)."""
    return "".join(json.dumps(example, ensure_ascii=True, sort_keys=True) + "\n" for example in examples)


def learning_of(
    own: Sequence[Edit],
    tables: Sequence[Edit],
    answers: Sequence[str] | None = None,
    amounts: Amounts | None = None,
) -> tuple[str, dict[str, Any]]:
    """The text of learning.jsonl, and what the manifest says about it, its fingerprint among it."""
    examples, about = build_examples(own, tables, amounts=amounts, answers=answers)
    text = learning_lines(examples)
    return text, {**about, "fingerprint": digest(text.encode())}


def check_reserve(count: Any) -> int:
    """The number of records to set aside (0: none); SettingsError names what is wrong with it."""
    if count is None:
        return 0
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise SettingsError(f"reserve: expected a whole number of at least 0, found {count!r}")
    return count
