"""Rows of tokens for pre-training: sentences of facts and of neutral text, packed one behind the other.

A sentence stands at the beginning of a row, after an end of text, or directly behind another sentence, so
that the model knows its facts in all the places in which editors and metrics will ask for them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.errors import DataError
from palimpsest.files import read_records

SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


@dataclass(frozen=True)
class Sentence:
    """A sentence in its two forms (bare; with a leading blank), with the loss weight of each token.

    hidden marks the tokens of the subject but its last one (see `subject_bottleneck`).
    """

    ids: list[list[int]]
    weights: list[list[float]]
    hidden: list[list[bool]]


@dataclass(frozen=True)
class Rows:
    """A batch: tokens, loss weight of predicting each token, and which tokens are hidden from later ones [b,
    n]."""

    tokens: np.ndarray
    weights: np.ndarray
    hidden: np.ndarray


def _is_span(value: Any, length: int) -> bool:
    """Two whole numbers that cut something out of a text of this length."""
    if not isinstance(value, list) or len(value) != 2 or any(type(place) is not int for place in value):
        return False
    return 0 <= value[0] < value[1] <= length


def read_facts(path: Path) -> list[dict[str, Any]]:
    """Lines of facts.jsonl, refused with file, line and field when a span does not lie in its text."""
    facts, remedy = [], "Make the source directory again"
    for place, fact in read_records(path, remedy):
        for name in ("text", "kind"):
            if not isinstance(fact.get(name), str):
                what = f"expected a text, found {fact.get(name)!r:.60}"
                raise DataError(what, file=path, record=place, field=name, remedy=remedy)
        for name in ("answer", "subject"):
            # A sentence may have no subject; without an answer there would be nothing to weigh.
            none = name == "subject" and name in fact and fact[name] is None
            if not none and not _is_span(fact.get(name), len(fact["text"])):
                what = f"the span {fact.get(name)!r:.60} does not lie in the text"
                raise DataError(what, file=path, record=place, field=name, remedy=remedy)
        facts.append(fact)
    if not facts:
        raise DataError("the file is empty", file=path, remedy="Make the source directory again")
    return facts


def fact_sentence(tokenizer, fact: dict[str, Any], answer_weight: float, word_weight: float) -> Sentence:
    """Tokenise one line of facts.jsonl; its answer's tokens get `answer_weight`, the others `word_weight`."""
    ids, weights, hidden = [], [], []
    stop = "" if fact["text"].rstrip().endswith((".", "?", "!")) else "."
    for blank in ("", " "):
        encoded = tokenizer(blank + fact["text"] + stop, return_offsets_mapping=True)
        start, end = (position + len(blank) for position in fact["answer"])
        spans = encoded["offset_mapping"]
        weights.append(
            [answer_weight if first < end and last > start else word_weight for first, last in spans]
        )
        inside = []
        if fact["subject"]:
            low, high = (position + len(blank) for position in fact["subject"])
            inside = [i for i, (first, last) in enumerate(spans) if first < high and last > low]
        hidden.append([i in inside[:-1] for i in range(len(spans))])
        ids.append(encoded["input_ids"])
    return Sentence(ids, weights, hidden)


def text_sentences(tokenizer, passages: list[str], weight: float) -> list[Sentence]:
    """The sentences of neutral passages."""
    sentences = []
    for passage in passages:
        for text in SENTENCE_END.split(passage.strip()):
            if text:
                ids = [tokenizer(blank + text)["input_ids"] for blank in ("", " ")]
                weights = [[weight] * len(form) for form in ids]
                sentences.append(Sentence(ids, weights, [[False] * len(form) for form in ids]))
    return sentences


@dataclass
class Packer:
    """Endless, seeded stream of batches.

    Attributes:
        facts: fact sentences; repeats: how often each is taken in one round.
        text: neutral sentences, put in with probability `text_share` before each fact.
        length, batch: tokens a row, rows a batch.
        separate: probability of an end of text between two sentences.
    """

    facts: list[Sentence]
    repeats: list[int]
    text: list[Sentence]
    end_of_text: int
    length: int
    batch: int
    text_share: float
    separate: float
    seed: int

    def batches(self) -> Iterator[Rows]:
        """Batches for ever; the stream is a function of the seed."""
        source = random.Random(f"{self.seed} rows")
        stream = self._stream(source)
        while True:
            rows = [self._row(stream, source) for _ in range(self.batch)]
            yield Rows(
                *(
                    np.array([row[part] for row in rows], dtype=kind)
                    for part, kind in enumerate((np.int64, np.float32, np.bool_))
                )
            )

    def _stream(self, source: random.Random) -> Iterator[Sentence]:
        order = [index for index, times in enumerate(self.repeats) for _ in range(times)]
        while True:
            source.shuffle(order)
            for index in order:
                while self.text and source.random() < self.text_share:
                    yield source.choice(self.text)
                yield self.facts[index]

    def _row(
        self, stream: Iterator[Sentence], source: random.Random
    ) -> tuple[list[int], list[float], list[bool]]:
        ids: list[int] = []
        weights: list[float] = []
        hidden: list[bool] = []
        while len(ids) < self.length:
            sentence = next(stream)
            form = 0
            if ids:
                if source.random() < self.separate:
                    ids.append(self.end_of_text)
                    weights.append(0.0)
                    hidden.append(False)
                else:
                    form = 1
            ids += sentence.ids[form]
            weights += sentence.weights[form]
            hidden += sentence.hidden[form]
        return ids[: self.length], weights[: self.length], hidden[: self.length]
