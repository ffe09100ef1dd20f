"""Judging edits: every probe of every edit in few passes, beside what the unedited model said."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palimpsest.edits import Edit
from palimpsest.metrics.answers import Answer, Batching, predict_answers
from palimpsest.metrics.generation import as_text, generate_tokens
from palimpsest.metrics.scores import exact_match, generation_match, mean, token_accuracy
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.loading import LanguageModel

# Split -> name of its teacher-forced token accuracy. Other splits hold answers that must stay as they were.
WANTED_SPLITS = {"edit": "reliability", "rephrase": "generality", "portability": "portability"}
UNCHANGED_METRIC = "locality"

# Teacher-forced, and generated (empty where nobody generates).
Answers = tuple[list[Answer], list[tuple[int, ...]]]
# For the length of a block: a function that tells on which rows [b] of the latest pass the edit acted.
Watching = Callable[[], AbstractContextManager[Callable[[], Tensor | None] | None]]


@dataclass(frozen=True)
class Question:
    """One prompt with an answer, asked for the edit at position `order` of the stream or batch.

    `known` is False where nobody can say whether the answer is right: it then is a place to compare the model with itself.
    """

    order: int
    split: str
    prompt: str
    answer: str
    known: bool = field(default=True, compare=False)

    @property
    def text(self) -> str:
        """What the model reads in teacher forcing."""
        return f"{self.prompt} {self.answer}"

    @property
    def pair(self) -> tuple[str, str]:
        """Prompt and answer."""
        return self.prompt, self.answer


@dataclass(frozen=True)
class RecordValue:
    """One score of one edit: the mean over its questions of that split."""

    order: int
    split: str
    metric: str
    value: float


def questions_of(order: int, edit: Edit) -> list[Question]:
    """Everything asked about one edit: its prompt, its rephrasings, what follows from it, and its locality probes by
    kind."""
    asked = [Question(order, "edit", edit.prompt, edit.target)]
    asked += [Question(order, "rephrase", prompt, edit.target) for prompt in edit.rephrasings]
    asked += [Question(order, "portability", probe.prompt, probe.answer) for probe in edit.portability]
    asked += [Question(order, probe.kind, probe.prompt, probe.answer) for probe in edit.locality]
    return asked


class Evaluation:
    """Scores of a fixed stream of edits on a model that is being edited.

    Build it while the model is still unedited: its answers are recorded then, and are what locality compares
    with.

    Args:
        model: the model, unedited now.
        edits: the stream, in order.
        generation: also generate freely (costs one pass per answer token).
        batching: how rows share a pass.
        unedited: where the answers of the unedited model are kept for other runs.
    """

    def __init__(
        self,
        model: LanguageModel,
        edits: Sequence[Edit],
        generation: bool = True,
        batching: Batching | None = None,
        unedited: Unedited | None = None,
    ):
        self.model, self.edits, self.generation = model, list(edits), generation
        self.batching = batching or Batching()
        self.questions = [
            question for order, edit in enumerate(self.edits) for question in questions_of(order, edit)
        ]
        self._places: dict[int, list[int]] = defaultdict(list)
        for place, question in enumerate(self.questions):
            self._places[question.order].append(place)
        start = time.perf_counter()
        ask = partial(self._ask, list(range(len(self.questions))))
        found = (
            ask()
            if unedited is None
            else unedited.answers(
                model,
                [question.pair for question in self.questions],
                self.batching,
                {"generation": generation},
                ("palimpsest.metrics.answers", "palimpsest.metrics.generation"),
                ask,
                _plain,
                _read,
            )
        )
        self._before, self._generated_before = found
        self.seconds_before = time.perf_counter() - start

    def before(self) -> list[RecordValue]:
        """Scores of all edits on the unedited model (locality is 1 by definition), without asking again."""
        everything = list(range(len(self.questions)))
        return self._score(everything, self._before, self._generated_before)

    def after(self, orders: Iterable[int], watching: Watching | None = None) -> list[RecordValue]:
        """Scores of the edits at these positions of the stream, on the model as it is now.

        `watching` (see `Editor.watching`) tells after each pass on whose rows a scope decision let the edit act when
        prompt and answer were read; it adds `swap_rate`.
        """
        places = [place for order in orders for place in self._places[order]]
        if watching is None:
            return self._score(places, *self._ask(places))
        flags = [False] * len(places)
        with watching() as acted:

            def note(rows: list[int]) -> None:
                found = acted() if acted is not None else None
                for row, flag in zip(rows, [] if found is None else found.tolist(), strict=False):
                    flags[row] = flag

            values = self._score(places, *self._ask(places, note))
        if acted is not None:
            asked = [self.questions[place] for place in places]
            values += _per_record((q, "swap_rate", float(flag)) for q, flag in zip(asked, flags, strict=True))
        return values

    @torch.no_grad()
    def _ask(
        self, places: list[int], after_pass: Callable[[list[int]], None] | None = None
    ) -> tuple[list[Answer], list[tuple[int, ...]]]:
        asked = [self.questions[place] for place in places]
        answers = predict_answers(
            self.model, [(q.prompt, q.answer) for q in asked], self.batching, after_pass
        )
        if not self.generation:
            return answers, []
        counts = [len(answer.wanted) for answer in answers]
        return answers, generate_tokens(self.model, [q.prompt for q in asked], counts, self.batching)

    def _score(
        self, places: list[int], answers: list[Answer], generated: list[tuple[int, ...]]
    ) -> list[RecordValue]:
        scores: list[tuple[Question, str, float]] = []
        for number, place in enumerate(places):
            question, answer = self.questions[place], answers[number]
            unchanged = question.split not in WANTED_SPLITS
            wanted = self._before[place].predicted if unchanged else answer.wanted
            metric = WANTED_SPLITS.get(question.split, UNCHANGED_METRIC)
            scores.append((question, metric, token_accuracy(answer.predicted, wanted)))
            scores.append((question, "exact_match", exact_match(answer.predicted, wanted)))
            if self.generation:
                text = as_text(self.model, generated[number])
                aim = as_text(self.model, self._generated_before[place]) if unchanged else question.answer
                scores.append((question, "generation_match", generation_match(text, aim)))
        return _per_record(scores)


def _plain(found: Answers) -> dict[str, list[Any]]:
    answers, generated = found
    return {
        "predicted": [answer.predicted for answer in answers],
        "wanted": [answer.wanted for answer in answers],
        "generated": generated,
    }


def _read(content: dict[str, Any]) -> Answers:
    predicted, wanted, generated = (
        [tuple(int(token) for token in row) for row in content[name]]
        for name in ("predicted", "wanted", "generated")
    )
    return [Answer(*pair) for pair in zip(predicted, wanted, strict=True)], generated


def _per_record(scores: Iterable[tuple[Question, str, float]]) -> list[RecordValue]:
    """One value per edit, split and metric: the mean over that edit's questions of the split."""
    grouped: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for question, metric, value in scores:
        grouped[question.order, question.split, metric].append(value)
    return [RecordValue(*key, mean(values)) for key, values in grouped.items()]


def aggregate(values: Iterable[RecordValue]) -> list[tuple[str, str, float, int]]:
    """Plain mean over records: (split, metric, value, number of records) of each split and metric."""
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    for value in values:
        grouped[value.split, value.metric].append(value.value)
    return [(split, metric, mean(found), len(found)) for (split, metric), found in grouped.items()]
