"""New questions about nothing that is edited, for what a learned editor must leave alone.

Tables ask open-domain questions beside the edits (MEND and SERAC take them from Natural Questions: spec 3.1). In a generated
world there are few, and tables ask them all, so that none is left to learn from. These are of the same sort, lower case and
without a question mark, but about other things and in other words: thousands of wordings of common words, since a scope
classifier from scratch would learn few by heart, and go on opening for others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from palimpsest.data.world import Syllables
from palimpsest.data.world_names import NEUTRAL, WORDS

# Of the generated world's own questions (world_names.UNRELATED_QUESTIONS) they have only words in which any question is put.
FRAMES = (
    "who {act} the {noun} of {thing}",
    "who {act} the {adjective} {noun} near {thing}",
    "when was the {noun} in {thing} {act}",
    "when did {thing} get a {noun}",
    "where is the {noun} from {thing}",
    "where can one see the {noun} of {thing}",
    "what {noun} was {act} in {thing}",
    "what is the {adjective} {noun} in {thing}",
    "what does a {noun} cost in {thing}",
    "which {noun} was {act} by {thing}",
    "which is the {adjective} {noun} at {thing}",
    "how tall is the {noun} of {thing}",
    "how big was the {adjective} {noun} in {thing}",
    "how many times was the {noun} of {thing} {act}",
    "why was the {noun} of {thing} {act}",
    "is there a {adjective} {noun} in {thing}",
    "can you still buy the {noun} of {thing}",
    "list of every {noun} in {thing}",
    "the {noun} that {act} {thing}",
)
CHOICES = {
    "noun": (*(word for words in WORDS.values() for word in words), *NEUTRAL["noun"], *NEUTRAL["place"]),
    "adjective": NEUTRAL["adjective"],
    "act": (*NEUTRAL["verb"], *NEUTRAL["act"]),
}
LONGEST = 3  # words of an answer


def unrelated_questions(taken: Iterable[str], seed: int) -> Iterator[tuple[str, str]]:
    """(question, answer) without end; same seed, same questions.

    Each asks for a thing of its own, a made-up word. Neither this nor what is said of it occurs in `taken`. Answers are
    made-up names that no model has read: an editor's loss on these compares the model with itself.
    """
    used = {word for text in taken for word in re.findall(r"\w+", text.casefold())}
    source = random.Random(f"{seed} unrelated")
    names = Syllables(source)
    fresh = (word for word in iter(names.word, None) if word.casefold() not in used)
    free = {name: [word for word in words if word not in used] or words for name, words in CHOICES.items()}
    while True:
        for frame in source.sample(FRAMES, len(FRAMES)):
            words = {name: source.choice(choices) for name, choices in free.items()}
            answer = " ".join(next(fresh) for _ in range(source.randint(1, LONGEST)))
            yield frame.format(thing=next(fresh).lower(), **words), answer
