"""SERAC's dialogue sentiment (ConvSent): `blender_{train,val,test}.json`, a list of {ent, pos, neg} (spec 3.5).

The edit says what to think of an entity: "Topic: E" -> "Sentiment: Positive" or "Sentiment: Negative". It is judged by the
replies to opinion questions about E: those of the edited sentiment should become likelier than the others. Which
sentiment is edited in is drawn by the record's name, so that both are equally frequent.
"""

from __future__ import annotations

import zlib

from palimpsest.data.records import Record, RecordReader, Schema
from palimpsest.edits import Edit, Probe

QUESTIONS = (
    "What do you think of {}?",
    "What do you feel about {}?",
    "How do you view {}?",
    *(
        f"What is your {word} {{}}?"
        for word in (
            *("opinion of", "stance on", "position on", "attitude about", "view on", "take on"),
            *("impression of", "assessment of", "judgment of", "sentiment of"),
        )
    ),
)
SENTIMENTS = {"pos": "Sentiment: Positive", "neg": "Sentiment: Negative"}
WITH, AGAINST = "sentiment_with", "sentiment_against"


def opinions(record: Record) -> Edit:
    """One entity; both lists of replies must hold at least one, or neither metric nor loss has a meaning."""
    entity = record.text("ent")
    replies = {sign: tuple(dict.fromkeys(record.texts(sign))) for sign in SENTIMENTS}
    if shared := set(replies["pos"]) & set(replies["neg"]):
        raise record.error(f"the reply {min(shared)!r} stands in 'pos' too", "neg")
    number = zlib.crc32(record.identifier.encode())
    wished, other = ("pos", "neg") if number % 2 else ("neg", "pos")
    probes = []
    for kind, sign in ((WITH, wished), (AGAINST, other)):
        for place, reply in enumerate(replies[sign]):
            question = QUESTIONS[(number // 2 + place) % len(QUESTIONS)]
            probes.append(Probe(question.replace("{}", entity), reply, kind))
    return record.edit(
        prompt=f"Topic: {entity}",
        target=SENTIMENTS[wished],
        subject=entity,
        truth=SENTIMENTS[other],
        portability=tuple(probes),
        relation=record.text("category") if record.has("category") else None,
    )


READER = RecordReader(
    "conversations",
    "conversation",
    (Schema("blender", frozenset({"ent", "pos", "neg"}), opinions),),
)
