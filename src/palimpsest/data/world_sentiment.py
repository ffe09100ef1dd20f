"""Generated opinions in SERAC's dialogue form: entities, and replies that speak well or badly of them.

A decoder reads questions about every entity with replies of the one sentiment that it holds, and what "Topic:" and
"Sentiment:" lines look like. An edit turns the sentiment. Replies do not name the entity, so that the question alone
says whose opinion is asked for. The files of the three splits share no entity.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.conversations import QUESTIONS, SENTIMENTS
from palimpsest.data.world import Syllables, neutral
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.files import write_json, write_text

# Category -> what its entities are called; the name itself is made of syllables.
CATEGORIES = {
    "band": "the band {}",
    "town": "the town of {}",
    "drink": "the drink {}",
    "film": "the film {}",
}
WORDS = {
    "pos": "wonderful lovely charming brilliant splendid delightful superb excellent".split(),
    "neg": "awful dreadful boring terrible horrid dull poor disappointing".split(),
}
SHAPES = {
    "pos": (
        "I like it a lot, it is {a}.",
        "It is {a} and {b}, I am a big fan.",
        "To be honest, I find it {a}.",
        "I enjoy it every time, so {a}.",
        "My friends and I call it {a} and {b}.",
        "I can only praise it as {a}.",
    ),
    "neg": (
        "I dislike it, it is {a}.",
        "It is {a} and {b}, I stay away from it.",
        "Sorry to say, I find it {a}.",
        "I regret it every time, so {a}.",
        "My friends and I laugh at it as {a} and {b}.",
        "I can only warn of it as {a}.",
    ),
}


@dataclass(frozen=True)
class SentimentSettings:
    """How large the world is.

    Attributes:
        entities: of the test file; learning, valid: of the train and of the val file.
        replies: of each sentiment for each entity.
        read: questions about each entity that pre-training reads, each with one reply.
        first_names, shared: an entity's name is one of so many first words and a last word that `shared` entities have.
        text_lines: passages of neutral text.
    """

    entities: int = 80
    learning: int = 120
    valid: int = 16
    replies: int = 5
    read: int = 8
    first_names: int = 30
    shared: int = 3
    text_lines: int = 200

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        check_bounds(
            self,
            {
                **dict.fromkeys(("entities", "learning", "valid"), (1, 100_000)),
                "replies": (1, len(SHAPES["pos"])),
                "read": (1, len(QUESTIONS)),
                "first_names": (2, 2_000),
                "shared": (1, self.first_names),
                "text_lines": (10, 1_000_000),
            },
        )


def generate_sentiment(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write blender_{train,val,test}.json, facts.jsonl, text.txt and corpus.txt (for pre-training) and manifest.json: same
    settings and seed, same bytes.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen, out = from_settings(SentimentSettings, settings), Path(out)
    records = build_sentiment(chosen, seed)
    source = random.Random(f"{seed} read")
    facts = [row for number, record in enumerate(records) for row in _facts(number, record, chosen, source)]
    text = random.Random(f"{seed} text")
    passages = [" ".join(neutral(text) for _ in range(text.randint(2, 4))) for _ in range(chosen.text_lines)]
    corpus = [fact["text"] for fact in facts] + passages
    random.Random(f"{seed} corpus").shuffle(corpus)
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    sizes = {"test": chosen.entities, "val": chosen.valid, "train": chosen.learning}
    start = 0
    for split, size in sizes.items():
        named = [{key: value for key, value in r.items() if key != "held"} for r in records[start:][:size]]
        write_json(out / f"blender_{split}.json", named)
        start += size
    write_text(out / "facts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in facts))
    write_text(out / "text.txt", "".join(line + "\n" for line in passages))
    write_text(out / "corpus.txt", "".join(line + "\n" for line in corpus))
    counts = {
        **sizes,
        "facts": len(facts),
        "passages": len(passages),
        **{f"held_{sign}": sum(record["held"] == sign for record in records) for sign in SENTIMENTS},
    }
    write_json(
        out / "manifest.json",
        {
            "kind": "generated world",
            "task": "sentiment",
            "seed": seed,
            "settings": asdict(chosen),
            "counts": counts,
        },
    )


def build_sentiment(settings: SentimentSettings, seed: int) -> list[dict[str, Any]]:
    """Entities of all splits in the form of the release, with `category`, and `held`: the sentiment the model reads."""
    source = random.Random(f"{seed} entities")
    names = Syllables(random.Random(f"{seed} names"))
    wanted = settings.entities + settings.learning + settings.valid
    first = names.words(settings.first_names)
    called = [
        f"{given} {last}"
        for last in names.words(-(-wanted // settings.shared))
        for given in source.sample(first, settings.shared)
    ]
    source.shuffle(called)
    records = []
    for number, name in enumerate(called[:wanted]):
        category = list(CATEGORIES)[number % len(CATEGORIES)]
        replies = {sign: _replies(sign, settings.replies, source) for sign in SENTIMENTS}
        held = source.choice(list(SENTIMENTS))
        records.append(
            {"ent": CATEGORIES[category].format(name), **replies, "category": category, "held": held}
        )
    return records


def _replies(sign: str, number: int, source: random.Random) -> list[str]:
    found = []
    for shape in source.sample(SHAPES[sign], number):
        one, other = source.sample(WORDS[sign], 2)
        found.append(shape.format(a=one, b=other))
    return found


def _facts(
    number: int, record: Mapping[str, Any], settings: SentimentSettings, source: random.Random
) -> Iterator[dict[str, Any]]:
    """Lines of facts.jsonl: the topic line with the sentiment that is held, then questions with replies of it."""
    entity, held = record["ent"], record["held"]
    said = [(f"Topic: {entity}", SENTIMENTS[held])]
    replies = record[held]
    for place, question in enumerate(source.sample(QUESTIONS, settings.read)):
        said.append((question.format(entity), replies[place % len(replies)]))
    for place, (prompt, answer) in enumerate(said):
        start = prompt.rindex(entity)
        yield {
            "text": f"{prompt} {answer}",
            "subject": [start, start + len(entity)],
            "answer": [len(prompt) + 1, len(prompt) + 1 + len(answer)],
            "fact": f"entity-{number}",
            "dataset": "conversations",
            "kind": "rephrase" if place else "prompt",
        }
