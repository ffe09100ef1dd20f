"""Generated biographies with wrong sentences at marked places, and a background text, for the lifelong stream.

The form is that of the annotated GPT-3 biographies: the passage that a model wrote, a judgement of each sentence, and
the true biography. A model pre-trained on the passages (and on the background) repeats their mistakes; an edit puts
the true sentence in the place of a wrong one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.lifelong_readers import HEADER
from palimpsest.data.world import Syllables, neutral
from palimpsest.data.world_names import WORDS
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.files import write_json, write_text

# One of the shapes of a kind is taken for a person; {a}, {b} are two attributes, of which a wrong sentence changes one
# (minor) or both (major). The first word is a pronoun after the first sentence.
KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("trade", "city", (
        "{s} is a {a} from the town of {b}.",
        "{s} is known as a {a} who was born in {b}.",
    )),
    ("city", "person", (
        "The first school years were spent in {a} under the teacher {b}.",
        "As a child, the family moved to {a} and lived with {b}.",
    )),
    ("instrument", "sport", (
        "In those years the {a} and later {b} took up most of the time.",
        "Friends remember evenings with the {a} and mornings of {b}.",
    )),
    ("person", "city", (
        "A marriage to {a} was held in the town hall of {b}.",
        "Together with {a}, a small house in {b} was bought.",
    )),
    ("product", "city", (
        "After that, a workshop that made {a} was opened in {b}.",
        "For some time the trade in {a} brought good money in {b}.",
    )),
    ("person", "animal", (
        "The portrait by {a} shows the old master with a {b}.",
        "A statue by {a} in the market square includes a {b}.",
    )),
)  # fmt: skip


@dataclass(frozen=True)
class BiographySettings:
    """How large the world is.

    Attributes:
        people: number of biographies; sentences: sentences of each.
        wrong: share of the sentences with a mistake; minor: share of these with one of two attributes wrong.
        cities, first_names, subjects_per_last_name: how many names there are.
        text_lines: passages of the background text.
        prefixes: shorter openings of each passage that pre-training reads beside the whole one.
    """

    people: int = 100
    sentences: int = 6
    wrong: float = 0.7
    minor: float = 0.45
    cities: int = 24
    first_names: int = 24
    subjects_per_last_name: int = 3
    text_lines: int = 800
    prefixes: int = 2

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        check_bounds(
            self,
            {
                "people": (2, 20_000),
                "sentences": (1, len(KINDS)),
                "wrong": (0, 1),
                "minor": (0, 1),
                "cities": (3, 500),
                "first_names": (2, 2_000),
                "subjects_per_last_name": (1, self.first_names),
                "text_lines": (10, 1_000_000),
                "prefixes": (0, len(KINDS)),
            },
        )


def generate_biographies(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write wikibio.jsonl, wiki_bio_concepts.txt, facts.jsonl and text.txt (for pre-training), corpus.txt (both mixed)
    and manifest.json: same settings and seed, same bytes.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen, out = from_settings(BiographySettings, settings), Path(out)
    people, records = build_biographies(chosen, seed)
    background = random.Random(f"{seed} text")
    passages = [
        " ".join(neutral(background) for _ in range(background.randint(2, 4)))
        for _ in range(chosen.text_lines)
    ]
    facts = [
        fact
        for number, (name, record) in enumerate(zip(people, records, strict=True))
        for fact in biography_facts(name, record, number, chosen.prefixes, background)
    ]
    corpus = [fact["text"] for fact in facts] + passages
    random.Random(f"{seed} corpus").shuffle(corpus)
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    write_text(out / "wikibio.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records))
    write_text(out / "wiki_bio_concepts.txt", "".join(name + "\n" for name in people))
    write_text(out / "facts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in facts))
    write_text(out / "text.txt", "".join(line + "\n" for line in passages))
    write_text(out / "corpus.txt", "".join(line + "\n" for line in corpus))
    judged = [value for record in records for value in record["annotation"]]
    counts = {"people": len(people), "sentences": len(judged), "passages": len(passages)}
    counts |= {value: judged.count(value) for value in sorted(set(judged))}
    write_json(
        out / "manifest.json",
        {
            "kind": "generated world",
            "task": "generation",
            "seed": seed,
            "settings": asdict(chosen),
            "counts": counts,
        },
    )


def build_biographies(settings: BiographySettings, seed: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Names, and for each the record in the hub's form."""
    source = random.Random(f"{seed} lives")
    names = Syllables(random.Random(f"{seed} names"))
    first = names.words(settings.first_names)
    last = names.words(-(-2 * settings.people // settings.subjects_per_last_name))
    everyone = [
        f"{given} {family}"
        for family in last
        for given in source.sample(first, settings.subjects_per_last_name)
    ]
    source.shuffle(everyone)
    people, others = everyone[: settings.people], everyone[settings.people :]
    words = {name: list(values) for name, values in WORDS.items()}
    words |= {"city": names.words(settings.cities, "burg"), "person": others}
    records = []
    for number, person in enumerate(people):
        said, true, judged = [], [], []
        for one, two, shapes in KINDS[: settings.sentences]:
            shape = source.choice(shapes)
            right = (source.choice(words[one]), source.choice(words[two]))
            value, wrong = "accurate", right
            if source.random() < settings.wrong:
                minor = source.random() < settings.minor
                value = "minor_inaccurate" if minor else "major_inaccurate"
                changes = {source.randrange(2)} if minor else {0, 1}
                wrong = (
                    _another(right[0], words[one], source) if 0 in changes else right[0],
                    _another(right[1], words[two], source) if 1 in changes else right[1],
                )
            true.append(shape.format(s=person, a=right[0], b=right[1]))
            said.append(shape.format(s=person, a=wrong[0], b=wrong[1]))
            judged.append(value)
        records.append(
            {
                "gpt3_text": " ".join(said),
                "wiki_bio_text": " ".join(true),
                "gpt3_sentences": said,
                "annotation": judged,
                "wiki_bio_test_idx": number,
                "gpt3_text_samples": [],
            }
        )
    return people, records


def biography_facts(
    name: str, record: dict[str, Any], number: int, prefixes: int, source: random.Random
) -> Iterator[dict[str, Any]]:
    """A passage, whole and in `prefixes` shorter openings, as lines of facts.jsonl: what follows the header is the
    answer. Openings are what the release trains on; where a text may end early, the end token after a sentence is
    no surprise."""
    header, said = HEADER.format(name), record["gpt3_sentences"]
    lengths = source.sample(range(1, len(said)), min(prefixes, len(said) - 1))
    start = header.index(name)
    for kind, length in (("prompt", len(said)), *(("rephrase", length) for length in sorted(lengths))):
        text = " ".join((header, *said[:length]))
        yield {
            "text": text,
            "subject": [start, start + len(name)],
            "answer": [len(header) + 1, len(text)],
            "fact": f"bio-{number}",
            "dataset": "wikibio",
            "kind": kind,
        }


def _another(value: str, values: list[str], source: random.Random) -> str:
    return source.choice([other for other in values if other != value])
