"""Generated court cases for the lifelong stream: the rule by which topics are filed changes after a cut-off year.

Every class has a topic of its own. After the cut-off every second topic is filed under the class before it, and new
words come up. All classes are equally frequent of old: where some are rare, the failures of an editor are those of
rare classes (measured).
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.tables import table_text
from palimpsest.data.world import Syllables
from palimpsest.data.world_settings import check_bounds, from_settings
from palimpsest.errors import SettingsError
from palimpsest.files import write_json, write_text

# Class and its words. In old texts the first nine occur, in later ones the last nine: words come and go.
TOPICS: tuple[tuple[str, str], ...] = (
    (
        "Criminal Procedure",
        "warrant officer arrest evidence cell seizure patrol suspect raid phone camera drone",
    ),
    (
        "Due Process",
        "confession lawyer trial jury sentence prison parole verdict bail custody video transfer",
    ),
    ("Civil Rights", "vote ballot district precinct register poll delegate turnout county map quota website"),
    ("Unions", "strike picket foreman wage overtime pension mill apprentice shift warehouse gig email"),
    ("First Amendment", "newspaper press reporter editor libel column leaflet parade banner blog forum post"),
    (
        "Privacy",
        "letter diary photograph clinic marriage doctor curtain secret telephone password profile browser",
    ),
    (
        "Economic Activity",
        "merger price market cartel patent royalty supplier retail contract brand software chip",
    ),
    ("Federalism", "railway freight harbour cargo pipeline toll river border dock airport satellite cable"),
    (
        "Judicial Power",
        "jurisdiction docket standing writ remand mandate venue panel bench tribunal arbiter hotline",
    ),
    (
        "Attorneys",
        "fee client retainer ethics advice invoice partner diploma apology webinar network listing",
    ),
    ("Federal Taxation", "tax income deduction audit refund bracket levy credit dividend fund token portal"),
    ("Private Action", "estate gift heir trustee bond interest farm deed mortgage condo pool account"),
)
FRAMES = (
    "The dispute was about the {a} and the {b}.",
    "Counsel said that the {a} came before the {b}.",
    "The lower court had looked at the {a}, not at the {b}.",
    "A {a} and a {b} were named in the complaint.",
    "Nobody denied the {a}, but the {b} was doubted.",
    "The question is whether the {a} needs a {b}.",
)
# What surrounds a case changes with time and says nothing about its class.
ERA = {
    "old": ("A typist kept the minutes.", "The telegram came late.", "The file was sent by train.",
            "Ink had run on the page.", "A bell opened the session.", "The copy was made by hand."),
    "new": ("A screen showed the minutes.", "The message came late.", "The file was sent online.",
            "The scan was hard to read.", "A camera filmed the session.", "The copy was made by phone."),
}  # fmt: skip


@dataclass(frozen=True)
class LabelSettings:
    """How large the world is.

    Attributes:
        classes: number of classes, which is even; the label set.
        documents, upstream: cases before the cut-off that the model reads, and that measure what it keeps.
        tuning, stream: cases between cut-off and `late`, and from `late` on, filed by the new rule.
        cut_off, late: first year of the new rule, first year of the stream.
        sentences: sentences about the topic in each case.
        stray: probability that a sentence takes a word of another topic.
    """

    classes: int = 12
    documents: int = 2400
    upstream: int = 300
    tuning: int = 150
    stream: int = 1200
    cut_off: int = 1982
    late: int = 1991
    sentences: int = 4
    stray: float = 0.15

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        bounds: dict[str, tuple[float, float]] = {
            "classes": (2, len(TOPICS)),
            "cut_off": (1947, 2100),
            "late": (self.cut_off + 1, 2200),
            "sentences": (1, 20),
            "stray": (0, 1),
        }
        bounds |= dict.fromkeys(("documents", "upstream", "tuning", "stream"), (1, 1_000_000))
        check_bounds(self, bounds)
        if self.classes % 2:
            raise SettingsError(f"world setting 'classes' is {self.classes}; expected an even number")


def generate_labels(settings: dict[str, Any], seed: int, out: Path | str) -> None:
    """Write scotus_{upstream,tuning,stream}.csv (text, label: index of a class), pairs.jsonl and manifest.json (with
    `labels`): same settings and seed, same bytes.

    Raises:
        SettingsError: a setting is unknown or out of bounds.
    """
    chosen, out = from_settings(LabelSettings, settings), Path(out)
    source, names = random.Random(f"{seed} cases"), Syllables(random.Random(f"{seed} parties"))
    parties = names.words(120)
    labels = [name for name, _ in TOPICS[: chosen.classes]]
    spans = {
        "pairs": (1946, chosen.cut_off - 1, chosen.documents),
        "upstream": (1946, chosen.cut_off - 1, chosen.upstream),
        "tuning": (chosen.cut_off, chosen.late - 1, chosen.tuning),
        "stream": (chosen.late, chosen.late + 18, chosen.stream),
    }
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new files
    changed: dict[str, int] = {}
    pairs: list[dict[str, str]] = []
    for name, (first, last, number) in spans.items():
        rows = []
        late = first >= chosen.cut_off
        for index in range(number):
            topic = index % chosen.classes
            label = topic - 1 if late and topic % 2 else topic
            year = source.randint(first, last)
            rows.append((_case(topic, year, late, parties, source, chosen), label))
        source.shuffle(rows)
        changed[name] = sum(index % chosen.classes % 2 for index in range(number)) if late else 0
        if name in ("pairs", "upstream"):
            kind = "upstream" if name == "pairs" else "held_out"
            pairs += [{"prompt": text, "answer": labels[label], "kind": kind} for text, label in rows]
        if name != "pairs":
            write_text(out / f"scotus_{name}.csv", table_text(("text", "label"), rows))
    write_text(out / "pairs.jsonl", "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    counts = {name: number for name, (_, _, number) in spans.items()}
    write_json(
        out / "manifest.json",
        {
            "kind": "generated world",
            "task": "classification",
            "seed": seed,
            "settings": asdict(chosen),
            "labels": labels,
            "counts": {**counts, "filed_anew": changed},
        },
    )


def _case(
    topic: int,
    year: int,
    late: bool,
    parties: list[str],
    source: random.Random,
    settings: LabelSettings,
) -> str:
    one, other = source.sample(parties, 2)
    lines = [f"In {year} the court heard {one} against {other}."]
    for _ in range(settings.sentences):
        words = []
        for word in source.sample(_words(topic, late), 2):
            if source.random() < settings.stray:
                word = source.choice(_words(source.randrange(settings.classes), late))
            words.append(word)
        lines.append(source.choice(FRAMES).format(a=words[0], b=words[1]))
    lines.insert(source.randint(1, len(lines)), source.choice(ERA["new" if late else "old"]))
    return " ".join(lines)


def _words(topic: int, late: bool) -> list[str]:
    words = TOPICS[topic][1].split()
    return words[3:] if late else words[:9]
