"""Generated questions and answers for the lifelong stream, in the forms of MEND's ZsRE file and of NQ-open.

A fact is a subject, a relation and an answer, and can be asked for in many phrasings: a frame around one of the
relation's nouns. A model reads the answers to the upstream questions, and of the questions to be edited a stale answer
or none; other relations of the same subjects are upstream, so that an edit has something near it to damage.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.world import Syllables
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.files import write_json, write_text

# Every phrasing is a frame with a noun of the relation ({n}) and the subject ({s}).
FRAMES = (
    "What is the {n} of {s}?",
    "Which {n} does {s} have?",
    "Can you name the {n} of {s}?",
    "About {s}, what is the {n}?",
    "Do you know the {n} of {s}?",
    "What was {s} given as {n}?",
    "For {s}, which {n} is right?",
    "Which {n} belongs to {s}?",
    "What does the record of {s} state as the {n}?",
    "In the case of {s}, what is the {n}?",
    "What is known as the {n} of {s}?",
    "Could you tell me the {n} of {s}?",
)
NOUNS = {
    "birthplace": ("birthplace", "place of birth", "town of birth"),
    "employer": ("employer", "workplace", "present firm"),
    "teacher": ("teacher", "tutor", "mentor"),
    "home": ("home", "residence", "present address"),
    "award": ("award", "prize", "honour"),
    "club": ("club", "society", "association"),
    "school": ("school", "college", "place of study"),
    "partner": ("partner", "spouse", "life companion"),
    "work": ("best known work", "masterpiece", "main creation"),
    "idol": ("idol", "role model", "hero"),
}


@dataclass(frozen=True)
class QaSettings:
    """How large the world is.

    Attributes:
        edit_facts: facts to be edited, each about a subject of its own.
        upstream_facts: facts that the model reads and must keep.
        relations: kinds of facts; answers: different answers of each.
        first_names, subjects_per_last_name: names are made of shared first and last names.
        rephrasings: phrasings of each edit fact beside its question (GRACE uses the first ten).
        shown: phrasings of each fact that are read in pre-training.
        stale: share of the edit facts of which the model reads another answer; of the rest it reads none.
    """

    edit_facts: int = 200
    upstream_facts: int = 300
    relations: int = 8
    answers: int = 12
    first_names: int = 40
    subjects_per_last_name: int = 3
    rephrasings: int = 20
    shown: int = 10
    stale: float = 0.7

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        check_bounds(
            self,
            {
                "edit_facts": (1, 100_000),
                "upstream_facts": (1, 100_000),
                "relations": (2, len(NOUNS)),
                "answers": (2, 200),
                "first_names": (2, 2_000),
                "subjects_per_last_name": (1, self.first_names),
                "rephrasings": (1, len(phrasings("home")) - 1),
                "shown": (1, len(phrasings("home"))),
                "stale": (0, 1),
            },
        )


@dataclass(frozen=True)
class QuestionFact:
    """One fact; `asked` are indices of phrasings (the question first), `read` those of pre-training."""

    subject: str
    relation: str
    answer: str
    stale: str | None
    asked: tuple[int, ...]
    read: tuple[int, ...]


def phrasings(relation: str) -> tuple[str, ...]:
    """All phrasings of a relation, with {s} for the subject."""
    return tuple(frame.replace("{n}", noun) for noun in NOUNS[relation] for frame in FRAMES)


def generate_qa(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write zsre.jsonl, nq.jsonl, pairs.jsonl and manifest.json to `out`: same settings and seed, same bytes.

    Beside them impl_dev.json and zsre_yn_dev.txt, SERAC's hard questions about the records of zsre.jsonl, which no model
    reads.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen, out = from_settings(QaSettings, settings), Path(out)
    edits, upstream = build_qa(chosen, seed)
    read = [(f"upstream-{n}", "upstream", fact, fact.answer, fact.read) for n, fact in enumerate(upstream)]
    read += [
        (f"edit-{n}", "stale", fact, fact.stale, fact.read) for n, fact in enumerate(edits) if fact.stale
    ]
    # One phrasing of each upstream question that is not read tells understanding from rote.
    count = len(phrasings("home"))
    unread = [next((k for k in range(count) if k not in fact.read), None) for fact in upstream]
    read += [
        (f"upstream-{n}", "held_out", fact, fact.answer, (k,))
        for n, (fact, k) in enumerate(zip(upstream, unread, strict=True))
        if k is not None
    ]
    pairs = [
        {"prompt": _ask(fact, k), "answer": answer, "kind": kind, "fact": name}
        for name, kind, fact, answer, numbers in read
        for k in numbers
    ]
    zsre = [_mend(number, fact) for number, fact in enumerate(edits)]
    nq = [{"question": _ask(fact, fact.asked[0]).rstrip("?"), "answer": [fact.answer]} for fact in upstream]
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    for name, rows in (("zsre.jsonl", zsre), ("nq.jsonl", nq), ("pairs.jsonl", pairs)):
        write_text(out / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(out / "impl_dev.json", [_implied(fact) for fact in edits])
    write_text(out / "zsre_yn_dev.txt", "".join(f"{_statement(fact)}\n" for fact in edits))
    counts = {
        "edit_facts": len(edits),
        "stale": sum(fact.stale is not None for fact in edits),
        "upstream_facts": len(upstream),
        "pairs": len(pairs),
        "edit_pairs": sum(len(fact.asked) for fact in edits),
        "phrasings": len(phrasings("home")),
        "subjects": len({fact.subject for fact in edits + upstream}),
    }
    write_json(
        out / "manifest.json",
        {"kind": "generated world", "task": "qa", "seed": seed, "settings": asdict(chosen), "counts": counts},
    )


def build_qa(settings: QaSettings, seed: int) -> tuple[list[QuestionFact], list[QuestionFact]]:
    """Draw facts to edit and upstream facts; no question is asked in both."""
    source = random.Random(f"{seed} facts")
    names = Syllables(random.Random(f"{seed} names"))
    relations = list(NOUNS)[: settings.relations]
    # Answers of two and three words that share none with others: a wrong answer scores about a third of a right one.
    answers = {
        relation: [" ".join(names.words(2 + number % 2)) for number in range(settings.answers)]
        for relation in relations
    }
    first = names.words(settings.first_names)
    wanted = max(
        settings.edit_facts,
        -(-settings.upstream_facts // 2) + settings.edit_facts // 4,
        -(-(settings.upstream_facts + settings.edit_facts) // settings.relations),
    )
    last = names.words(-(-wanted // settings.subjects_per_last_name))
    subjects = [
        f"{given} {family}"
        for family in last
        for given in source.sample(first, settings.subjects_per_last_name)
    ]
    source.shuffle(subjects)
    edited = {subject: source.choice(relations) for subject in subjects[: settings.edit_facts]}
    edits = [
        _fact(subject, relation, answers, source, settings, True) for subject, relation in edited.items()
    ]
    open_questions = [
        (subject, relation)
        for subject in subjects
        for relation in relations
        if edited.get(subject) != relation
    ]
    # First one for each subject, so that every name is known from somewhere, then others.
    source.shuffle(open_questions)
    seen: set[str] = set()
    fresh: list[tuple[str, str]] = []
    more: list[tuple[str, str]] = []
    for question in open_questions:
        (more if question[0] in seen else fresh).append(question)
        seen.add(question[0])
    upstream = [
        _fact(subject, relation, answers, source, settings, False)
        for subject, relation in (fresh + more)[: settings.upstream_facts]
    ]
    return edits, upstream


def _fact(
    subject: str,
    relation: str,
    answers: dict[str, list[str]],
    source: random.Random,
    settings: QaSettings,
    edited: bool,
) -> QuestionFact:
    answer, other = source.sample(answers[relation], 2)
    count = len(phrasings(relation))
    asked = source.sample(range(count), 1 + settings.rephrasings)
    read = source.sample(range(count), settings.shown)
    if not edited and asked[0] not in read:
        read[0] = asked[
            0
        ]  # an upstream question has been read as it is asked, as NQ's by a model tuned on NQ
    stale = other if edited and source.random() < settings.stale else None
    return QuestionFact(subject, relation, answer, stale, tuple(asked), tuple(read))


def _ask(fact: QuestionFact, number: int) -> str:
    return phrasings(fact.relation)[number].replace("{s}", fact.subject)


def _mend(number: int, fact: QuestionFact) -> dict[str, Any]:
    questions = [_ask(fact, index) for index in fact.asked]
    return {
        "id": f"world-{number}",
        "input": questions[0],
        "output": [{"answer": fact.answer, "provenance": [{"title": fact.subject}]}],
        "meta": {"template_questions": [questions[0]]},
        "rephrases": questions[1:],
        "prediction": fact.stale or "",
        "alternatives": [fact.stale] if fact.stale else [],
        "filtered_rephrases": questions[1:],
    }


def _implied(fact: QuestionFact) -> list[list[str]]:
    """Questions that ask for the subject by the answer, in SERAC's form [question, answer, subject]. The first name stands
    in them, since other subjects may have the same answer."""
    first, noun = fact.subject.split()[0], NOUNS[fact.relation][0]
    questions = (
        f"Which {first} has {fact.answer} as {noun}?",
        f"The {noun} of which {first} is {fact.answer}?",
    )
    return [[question, fact.subject, fact.subject] for question in questions]


def _statement(fact: QuestionFact) -> str:
    return f"the {NOUNS[fact.relation][0]} of {fact.subject} is {fact.answer}"
