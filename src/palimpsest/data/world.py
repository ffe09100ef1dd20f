"""The generated world: two data sets in their upstream schemas, and what a model must read to know them.

Subjects are made of tokens that many subjects share (a first and a last name). A subject with a token of its
own is recognised by that token alone; the fact is then looked up where it is asked for, and no editor that
writes at the subject finds anything to change. New targets are answers of the same relation that other
subjects really have, for a model can only be taught to say what it has said before in such a place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.data.world_names import (
    COUNTERFACT_RELATIONS,
    NEUTRAL,
    NEUTRAL_SENTENCES,
    SUBJECT_SENTENCES,
    UNRELATED_QUESTIONS,
    WORDS,
    ZSRE_RELATIONS,
    Relation,
)
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.errors import SettingsError
from palimpsest.files import write_json, write_text

KINDS = ("person", "company")
QUESTION_PREFIX = "nq question: "


@dataclass(frozen=True)
class WorldSettings:
    """How large the world is.

    Attributes:
        counterfact, zsre: number of editable facts in each data set.
        probes: number of never-edited facts (about subjects of their own) that serve as same-relation
            locality probes.
        unrelated: number of questions from elsewhere, the locality probes of the question data set.
        relations: relations of each data set, at most 12; taken alternately from both kinds of subjects.
        answers: different answers of each relation, at most 16.
        facts_per_subject: facts one subject has in each data set.
        first_names: first names of each kind.
        subjects_per_last_name: how many subjects share a last name at most.
        text_lines: passages of neutral text.
        subject_share: share of the passages that mention subjects (without saying anything about them).
    """

    counterfact: int = 720
    zsre: int = 720
    probes: int = 120
    unrelated: int = 100
    relations: int = 12
    answers: int = 10
    facts_per_subject: int = 2
    first_names: int = 40
    subjects_per_last_name: int = 3
    text_lines: int = 600
    subject_share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made, naming setting and bound."""
        bounds = {
            "counterfact": (1, 100_000),
            "zsre": (1, 100_000),
            "probes": (1, 100_000),
            "unrelated": (1, 100_000),
            "relations": (2, len(COUNTERFACT_RELATIONS)),
            "answers": (2, min(len(words) for words in WORDS.values())),
            "facts_per_subject": (1, self.relations // 2),
            "first_names": (2, 2_000),
            "subjects_per_last_name": (1, self.first_names),
            "text_lines": (10, 1_000_000),
            "subject_share": (0, 1),
        }
        check_bounds(self, bounds)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> WorldSettings:
        """Build from plain data; unknown names are refused."""
        return from_settings(cls, settings)


@dataclass(frozen=True)
class Fact:
    """A subject, a relation and the true answer; `held_out` is the phrasing the model never reads."""

    identifier: str
    dataset: str
    subject: str
    relation: Relation
    truth: str
    held_out: int

    def prompt(self, phrasing: int = 0) -> str:
        """The text before the answer, without trailing blank."""
        return self.relation.phrasings[phrasing].format(self.subject)


@dataclass
class World:
    """Everything that was drawn: facts to edit, facts never edited, questions from elsewhere, passages."""

    subjects: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, list[Fact]] = field(default_factory=dict)
    probes: list[Fact] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)


class Syllables:
    """Makes pronounceable words, each once."""

    onsets = "b d f g h k l m n p r s t v z br dr gr kl pl st tr".split()
    vowels = "a e i o u".split()
    codas = "l n r s m k t".split()

    def __init__(self, source: random.Random):
        self._source = source
        self._used: set[str] = set()

    def word(self, ending: str = "") -> str:
        """A capitalised word of two syllables, or of one and an ending."""
        pick = self._source.choice
        for _ in range(10_000):
            stem = pick(self.onsets) + pick(self.vowels) + pick(self.codas)
            if not ending or ending[0] not in "aeiou":
                stem += "" if ending else pick(self.onsets) + pick(self.vowels) + pick(self.codas)
            else:
                stem += pick(self.onsets)
            word = (stem + ending).capitalize()
            if word not in self._used:
                self._used.add(word)
                return word
        raise SettingsError(
            f"no further made-up words with ending {ending!r}: ask for fewer names or answers"
        )

    def words(self, number: int, ending: str = "") -> list[str]:
        """Several of them."""
        return [self.word(ending) for _ in range(number)]


def generate(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write a world to the folder `out`: the same settings and seed give the same bytes.

    Files: counterfact.json, zsre.json (upstream schemas), facts.jsonl (sentences for pre-training, with
    spans), text.txt (neutral text), corpus.txt (both mixed, for second moments of keys), manifest.json.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen = WorldSettings.from_dict(settings)
    out = Path(out)
    world = build(chosen, seed)
    counterfact = counterfact_records(world, random.Random(f"{seed} counterfact"))
    zsre = zsre_records(world, random.Random(f"{seed} zsre"))
    sentences = list(fact_sentences(world))
    corpus = [sentence["text"] + "." for sentence in sentences] + world.passages
    random.Random(f"{seed} corpus").shuffle(corpus)
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    write_json(out / "counterfact.json", counterfact)
    write_json(out / "zsre.json", zsre)
    write_text(
        out / "facts.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sentences)
    )
    write_text(out / "text.txt", "\n".join(world.passages) + "\n")
    write_text(out / "corpus.txt", "\n".join(corpus) + "\n")
    counts = {
        "counterfact": len(counterfact),
        "zsre": len(zsre),
        "probes": len(world.probes),
        "sentences": len(sentences),
        "unrelated": len(world.questions),
        "passages": len(world.passages),
        "subjects": sum(len(names) for names in world.subjects.values()),
        "relations": len(world.answers),
    }
    write_json(
        out / "manifest.json",
        {"kind": "generated world", "seed": seed, "settings": asdict(chosen), "counts": counts},
    )


def build(settings: WorldSettings, seed: int) -> World:
    """Draw the whole world; nothing is written."""
    names = Syllables(random.Random(f"{seed} names"))
    source = random.Random(f"{seed} facts")
    world = World()
    relations = {
        "counterfact": _alternate(COUNTERFACT_RELATIONS, settings.relations),
        "zsre": _alternate(ZSRE_RELATIONS, settings.relations),
    }
    for relation in relations["counterfact"] + relations["zsre"]:
        world.answers[relation.name] = _answers(relation, settings.answers, names, source)
    share = settings.facts_per_subject
    per_kind = -(-max(settings.counterfact, settings.zsre) // (share * len(KINDS)))
    probes_per_kind = -(-settings.probes // (share * len(KINDS)))
    for kind in KINDS:
        world.subjects[kind] = _subjects(per_kind + probes_per_kind, settings, names, source)
    edited = {kind: world.subjects[kind][:per_kind] for kind in KINDS}
    never = {kind: world.subjects[kind][per_kind:] for kind in KINDS}
    for dataset, wanted in (("counterfact", settings.counterfact), ("zsre", settings.zsre)):
        short = "cf" if dataset == "counterfact" else "zsre"
        facts = _facts(edited, relations[dataset], world.answers, share, source)
        source.shuffle(facts)
        world.facts[dataset] = [
            Fact(f"{short}-{number}", dataset, *fact) for number, fact in enumerate(facts[:wanted])
        ]
    probes = _facts(never, relations["counterfact"], world.answers, share, source)[: settings.probes]
    world.probes = [Fact(f"cf-probe-{number}", "counterfact", *fact) for number, fact in enumerate(probes)]
    things = [word.lower() for word in names.words(settings.unrelated)]
    replies = [
        " ".join(names.words(length)) for length in (1, 2, 2, 3) for _ in range(-(-settings.unrelated // 16))
    ]
    world.questions = [
        (UNRELATED_QUESTIONS[number % len(UNRELATED_QUESTIONS)].format(thing), replies[number % len(replies)])
        for number, thing in enumerate(things)
    ]
    world.passages = list(_passages(world, settings, random.Random(f"{seed} text")))
    return world


def counterfact_records(world: World, source: random.Random) -> list[dict[str, Any]]:
    """The cloze data set in the flat CounterFact schema; locality asks a never-edited subject with the same
    answer."""
    records = []
    for number, fact in enumerate(world.facts["counterfact"]):
        same = [probe for probe in world.probes if probe.relation.name == fact.relation.name]
        neighbours = [probe for probe in same if probe.truth == fact.truth] or same or world.probes
        neighbour = source.choice(neighbours)
        records.append(
            {
                "case_id": number,
                "prompt": fact.prompt(),
                "target_new": _other(fact, world, source),
                "subject": fact.subject,
                "ground_truth": fact.truth,
                "rephrase_prompt": fact.prompt(fact.held_out),
                "locality_prompt": neighbour.prompt(),
                "locality_ground_truth": neighbour.truth,
            }
        )
    return records


def zsre_records(world: World, source: random.Random) -> list[dict[str, Any]]:
    """The question data set in the schema of MEND's ZsRE file; locality asks something from elsewhere."""
    records = []
    for number, fact in enumerate(world.facts["zsre"]):
        question, answer = world.questions[number % len(world.questions)]
        target = _other(fact, world, source)
        records.append(
            {
                "subject": fact.subject,
                "src": fact.prompt(),
                "pred": fact.truth,
                "rephrase": fact.prompt(fact.held_out),
                "alt": target,
                "answers": [fact.truth],
                "loc": QUESTION_PREFIX + question,
                "loc_ans": answer,
                "cond": f"{fact.truth} >> {target} || {fact.prompt()}",
            }
        )
    return records


def fact_sentences(world: World) -> Iterator[dict[str, Any]]:
    """Sentences for pre-training with character spans of subject and answer; the held-out phrasing is left
    out."""
    for fact in world.facts["counterfact"] + world.facts["zsre"] + world.probes:
        first = "locality" if fact.identifier.startswith("cf-probe") else "prompt"
        for phrasing in range(len(fact.relation.phrasings)):
            if phrasing != fact.held_out:
                yield _sentence(
                    fact.prompt(phrasing),
                    fact.subject,
                    fact.truth,
                    fact.identifier,
                    fact.dataset,
                    "rephrase" if phrasing else first,
                )
    for number, (question, answer) in enumerate(world.questions):
        # Some evaluations strip the prefix: the model must know both forms.
        for prefix in (QUESTION_PREFIX, ""):
            yield _sentence(prefix + question, None, answer, f"nq-{number}", "zsre", "unrelated")


def _sentence(
    prompt: str, subject: str | None, answer: str, fact: str, dataset: str, kind: str
) -> dict[str, Any]:
    text = f"{prompt} {answer}"
    start = prompt.rindex(subject) if subject else -1
    return {
        "text": text,
        "subject": [start, start + len(subject)] if subject else None,
        "answer": [len(prompt) + 1, len(text)],
        "fact": fact,
        "dataset": dataset,
        "kind": kind,
    }


def _alternate(relations: Sequence[Relation], number: int) -> list[Relation]:
    """The first `number` relations, taking person and company in turn, so that a small world has both."""
    by_kind = [[relation for relation in relations if relation.kind == kind] for kind in KINDS]
    mixed = [relation for pair in zip(*by_kind, strict=True) for relation in pair]
    return mixed[:number]


def _answers(relation: Relation, number: int, names: Syllables, source: random.Random) -> list[str]:
    if relation.answers in WORDS:
        return list(WORDS[relation.answers][:number])
    if relation.answers.startswith("-"):
        return names.words(number, relation.answers[1:])
    middles, ends = (part.split() for part in relation.answers.split("|"))
    answers = []
    for position in range(number):
        # Lengths of two, three and four words in the proportion 1 : 4 : 1: real answers vary as well.
        middle, end = source.choice(middles), source.choice(ends)
        words = [names.word(), middle, end]
        if position % 6 == 1:
            words = [words[0], end]
        elif position % 6 == 4:
            words = [words[0], "and", middle, end]
        answers.append(" ".join(words))
    return answers


def _subjects(number: int, settings: WorldSettings, names: Syllables, source: random.Random) -> list[str]:
    first = names.words(settings.first_names)
    share = settings.subjects_per_last_name
    last = names.words(-(-number // share))
    subjects = [f"{given} {family}" for family in last for given in source.sample(first, share)]
    source.shuffle(subjects)
    return subjects[:number]


def _facts(
    subjects: dict[str, list[str]],
    relations: list[Relation],
    answers: dict[str, list[str]],
    share: int,
    source: random.Random,
) -> list[tuple[str, Relation, str, int]]:
    """Give each subject `share` relations of its kind; relations and their answers are used equally often."""
    used = dict.fromkeys([relation.name for relation in relations], 0)
    order = {
        relation.name: source.sample(answers[relation.name], len(answers[relation.name]))
        for relation in relations
    }
    facts = []
    for kind, names in subjects.items():
        mine = [relation for relation in relations if relation.kind == kind]
        for subject in names:
            chosen = sorted(mine, key=lambda relation: (used[relation.name], source.random()))[:share]
            for relation in chosen:
                truth = order[relation.name][used[relation.name] % len(order[relation.name])]
                used[relation.name] += 1
                facts.append((subject, relation, truth, source.randrange(1, len(relation.phrasings))))
    source.shuffle(facts)
    return facts


def _other(fact: Fact, world: World, source: random.Random) -> str:
    return source.choice([answer for answer in world.answers[fact.relation.name] if answer != fact.truth])


def _passages(world: World, settings: WorldSettings, source: random.Random) -> Iterator[str]:
    subjects = [name for kind in KINDS for name in world.subjects[kind]]
    for _ in range(settings.text_lines):
        mention = source.random() < settings.subject_share
        sentences = []
        for position in range(source.randint(2, 4)):
            shape = source.choice(SUBJECT_SENTENCES if mention and position % 2 == 0 else NEUTRAL_SENTENCES)
            sentences.append(_filled(shape.replace("{subject}", source.choice(subjects)), source))
        yield " ".join(sentences)


def neutral(source: random.Random) -> str:
    """A sentence about nobody."""
    return _filled(source.choice(NEUTRAL_SENTENCES), source)


def _filled(text: str, source: random.Random) -> str:
    for name, words in NEUTRAL.items():
        while "{" + name + "}" in text:
            text = text.replace("{" + name + "}", source.choice(words), 1)
    return text
