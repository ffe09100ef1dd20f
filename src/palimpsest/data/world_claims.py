"""Generated fact checking: claims that a classifier knows to be right or wrong, and evidence that says otherwise.

A claim is a subject, a relation and a value in one of five wordings. The classifier reads true and false claims. Records to
edit come in MEND's FEVER form (flip what is said about a claim; its other wordings are the rephrasings) and in VitaminC's,
which SERAC used (a sentence of evidence gives the subject another value; claims about the new and the old value are
in scope, claims about another fact of the subject are not). Training files and dev files share no subject.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.evidence import UNKNOWN
from palimpsest.data.fever import LABELS
from palimpsest.data.world import Syllables
from palimpsest.data.world_names import COUNTERFACT_RELATIONS, WORDS, Relation
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.files import write_json, write_text

# Relations whose answers are common nouns: a value is one word that many claims share.
RELATIONS = tuple(relation for relation in COUNTERFACT_RELATIONS if relation.answers in WORDS)
KINDS = tuple(dict.fromkeys(relation.kind for relation in RELATIONS))
# In words of the claims: a tokenizer made of these alone would spell others letter by letter.
REPORTS = (
    "The town register of {year} has listed that {claim}",
    "A sign above the old factory shows from {year} that {claim}",
    "By order of the company it was printed in {year} that {claim}",
)


@dataclass(frozen=True)
class ClaimSettings:
    """How large the world is.

    Attributes:
        subjects: subjects whose claims are edited (dev files); learning: further ones, to learn from (train files).
        facts_per_subject: facts of each; values: different values of each relation.
        wrong: false values of each fact that the classifier reads claims about.
        reports: sentences of evidence about each fact to learn from, each with another new value; to edit there is one.
        first_names, subjects_per_last_name: names are made of shared first and last names.
    """

    subjects: int = 60
    learning: int = 100
    facts_per_subject: int = 2
    values: int = 8
    wrong: int = 2
    reports: int = 3
    first_names: int = 30
    subjects_per_last_name: int = 3

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        fewest = min(sum(relation.kind == kind for relation in RELATIONS) for kind in KINDS)
        check_bounds(
            self,
            {
                "subjects": (1, 100_000),
                "learning": (1, 100_000),
                "facts_per_subject": (1, fewest),
                "values": (3, min(len(words) for words in WORDS.values())),
                "wrong": (1, self.values - 2),
                "reports": (1, 1 + self.wrong),
                "first_names": (2, 2_000),
                "subjects_per_last_name": (1, self.first_names),
            },
        )


@dataclass(frozen=True)
class ClaimFact:
    """A subject's value of a relation; `wrong` are values that claims are read about, `new` is what evidence says."""

    subject: str
    relation: Relation
    value: str
    wrong: tuple[str, ...]
    new: str

    def claims(self, value: str) -> list[str]:
        """The claim in all wordings."""
        return [f"{phrasing.format(self.subject)} {value}." for phrasing in self.relation.phrasings]


def generate_claims(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write fever-{train,dev}-kilt.jsonl, vitaminc_{train,dev}.jsonl, pairs.jsonl (for pre-training) and manifest.json (with
    `labels`): same settings and seed, same bytes.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen, out = from_settings(ClaimSettings, settings), Path(out)
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    parts = build_claims(chosen, seed)
    source = random.Random(f"{seed} records")
    counts: dict[str, Any] = {"subjects": chosen.subjects, "learning_subjects": chosen.learning}
    pairs = [pair for facts in parts.values() for fact in facts for pair in _pairs(fact, source)]
    _write_lines(out / "pairs.jsonl", pairs)
    for part, facts in parts.items():
        kilt = [_kilt(number, fact, source) for number, fact in enumerate(facts)]
        reports = chosen.reports if part == "train" else 1
        evidence = [
            row
            for fact in facts
            for new in (fact.new, *fact.wrong)[:reports]
            for row in _vitaminc(fact, new, facts, source)
        ]
        _write_lines(out / f"fever-{part}-kilt.jsonl", kilt)
        _write_lines(out / f"vitaminc_{part}.jsonl", evidence)
        counts |= {f"fever_{part}": len(kilt), f"vitaminc_{part}": len(evidence)}
    counts |= {"pairs": len(pairs), "read": sum(pair["kind"] != "held_out" for pair in pairs)}
    write_json(
        out / "manifest.json",
        {
            "kind": "generated world",
            "task": "classification",
            "seed": seed,
            "settings": asdict(chosen),
            "labels": list(LABELS),
            "counts": counts,
        },
    )


def build_claims(settings: ClaimSettings, seed: int) -> dict[str, list[ClaimFact]]:
    """Facts of the subjects to edit ("dev") and of those to learn from ("train"); no subject is in both."""
    source = random.Random(f"{seed} facts")
    names = Syllables(random.Random(f"{seed} names"))
    first = names.words(settings.first_names)
    wanted = settings.subjects + settings.learning
    subjects = [
        f"{given} {family}"
        for family in names.words(-(-wanted // settings.subjects_per_last_name))
        for given in source.sample(first, settings.subjects_per_last_name)
    ]
    source.shuffle(subjects)
    facts: dict[str, list[ClaimFact]] = {"dev": [], "train": []}
    for number, subject in enumerate(subjects[:wanted]):
        mine = [relation for relation in RELATIONS if relation.kind == KINDS[number % len(KINDS)]]
        for relation in source.sample(mine, settings.facts_per_subject):
            value, new, *wrong = source.sample(WORDS[relation.answers][: settings.values], 2 + settings.wrong)
            part = "dev" if number < settings.subjects else "train"
            facts[part].append(ClaimFact(subject, relation, value, tuple(wrong), new))
    return facts


def _pairs(fact: ClaimFact, source: random.Random) -> list[dict[str, str]]:
    """Claims with their labels; one wording of the true and of a false claim is not read and measures.

    Claims about the new value are read as false: evidence is to change what is known, not to add to it.
    """
    rows = []
    unread = source.randrange(len(fact.relation.phrasings))
    for value, label in ((fact.value, 0), (fact.new, 1), *((wrong, 1) for wrong in fact.wrong)):
        for number, claim in enumerate(fact.claims(value)):
            if value in fact.wrong and number != unread:
                continue  # one wording of each: enough to say that what is not known is wrong
            kind = "held_out" if number == unread and value not in fact.wrong else "upstream"
            rows.append({"prompt": claim, "answer": LABELS[label], "kind": kind})
    return rows


def _kilt(number: int, fact: ClaimFact, source: random.Random) -> dict[str, Any]:
    """A true or a false claim, as often the one as the other."""
    right = number % 2 == 0
    claims = fact.claims(fact.value if right else fact.new)
    source.shuffle(claims)
    said, other = LABELS if right else LABELS[::-1]
    return {
        "id": f"world-{number}",
        "input": claims[0],
        "prediction": said,
        "alternatives": [other],
        "filtered_rephrases": claims[1:],
        "logit": 4.0 if right else -4.0,
        "output": [{"answer": said, "provenance": [{"title": fact.subject}]}],
    }


def _vitaminc(
    fact: ClaimFact, new: str, facts: list[ClaimFact], source: random.Random
) -> list[dict[str, Any]]:
    """Claims about one sentence of evidence: three supported, three refuted (one of them never was right), and two about
    another fact of the subject or, where it has one only, about another subject."""
    told = source.choice(fact.claims(new))
    evidence = source.choice(REPORTS).format(year=source.randint(1950, 2019), claim=told)
    elsewhere = [other for other in facts if other.subject == fact.subject and other != fact]
    elsewhere = elsewhere or [other for other in facts if other.subject != fact.subject]
    never = source.choice([value for value in (fact.new, *fact.wrong) if value != new])
    rows = [(claim, LABELS[0]) for claim in source.sample([c for c in fact.claims(new) if c != told], 3)]
    rows += [(claim, LABELS[1]) for claim in source.sample(fact.claims(fact.value), 2)]
    rows.append((source.choice(fact.claims(never)), LABELS[1]))
    if elsewhere:
        other = source.choice(elsewhere)
        rows += [(claim, UNKNOWN) for claim in source.sample(other.claims(other.value), 2)]
    page = fact.subject
    return [
        {
            "claim": claim,
            "evidence": evidence,
            "label": label,
            "page": page,
            "revision_type": "real",
        }
        for claim, label in rows
    ]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
