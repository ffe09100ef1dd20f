"""Simultaneous edits: k in one batch on the untouched model, for each k of a list, repeated over disjoint draws.

MEND's Table 5 (arXiv 2110.11309) and SERAC's evaluation over the number of simultaneous edits (arXiv 2206.06520). Each
batch is judged on its own records by edit success in scope and drawdown out of scope (metrics/success.py), then rolled back. All
batches of one k make one set of rows, whose `n_edits` is k and whose step is the number of batches so far; step 0 is the
unedited model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from palimpsest.interruption import deferred
from palimpsest.metrics import success
from palimpsest.metrics.asked import PairAnswer
from palimpsest.metrics.evaluation import Question, RecordValue
from palimpsest.metrics.scores import mean
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.simultaneous_inputs import Simultaneous
from palimpsest.protocols.stream import (
    Progress,
    add_metric,
    add_rows,
    edit_batch,
    keep,
    progress_bar,
    resumed,
)

IN_SCOPE = ("edit", "rephrase", "implied", "true_false")
OUTSIDE = ("near", "far", "locality", "unrelated")
AGREEING, OPPOSING = "sentiment_with", "sentiment_against"


@dataclass
class SimultaneousProgress(Progress):
    """Everything measured so far.

    Attributes:
        totals: of the current k, by split: summed loss before and after, and tokens, of out-of-scope answers.
        edit_seconds: of each batch, by k.
    """

    totals: dict[str, list[float]] = field(default_factory=dict)
    edit_seconds: dict[str, list[float]] = field(default_factory=dict)

    def history(self) -> dict[str, Any]:
        """What `run.json` keeps beside the tables."""
        return {**super().history(), "edit_seconds": self.edit_seconds}


def run(stream: Simultaneous, checkpoints: Checkpoints | None = None) -> SimultaneousProgress:
    """Edit, judge and roll back batch after batch, k after k; the editor keeps the last batch's state."""
    progress = resumed(stream, checkpoints, SimultaneousProgress) or _begin(stream)
    with progress_bar(stream, progress.done) as bar, deferred():
        for step, batch in enumerate(stream.rounds, start=1):
            if step <= progress.step:
                continue
            progress.held_from = batch.orders.start
            spent = progress.seconds["edit"]
            edit_batch(stream, progress, step, batch.orders)
            progress.edit_seconds.setdefault(str(batch.k), []).append(progress.seconds["edit"] - spent)
            _look(stream, progress, batch.questions)
            if step == len(stream.rounds) or stream.rounds[step].k != batch.k:
                _finish(stream, progress, batch.k)
            if step < len(stream.rounds):
                stream.editor.reset()
                keep(stream, progress, checkpoints)
            bar.update(len(batch.orders))
    return progress


def _begin(stream: Simultaneous) -> SimultaneousProgress:
    """Rows of the unedited model: success on the first k's edits. Drawdown is 0 by definition and makes no row."""
    progress = SimultaneousProgress()
    progress.seconds["evaluate"] += stream.asked.seconds_before
    first = [
        question for batch in stream.rounds if batch.k == stream.rounds[0].k for question in batch.questions
    ]
    values = []
    for mine in _by_order(first):
        own = [question for question in mine if question.split not in OUTSIDE]
        before = stream.asked.before(question.pair for question in own)
        values += record_values(own, before, before)
    add_rows(stream, progress, values, n_edits=0)
    return progress


def _look(stream: Simultaneous, progress: SimultaneousProgress, questions: Sequence[Question]) -> None:
    """Ask the edited model; values wait in `progress.pending` until all batches of this k are done."""
    start = time.perf_counter()
    before = stream.asked.before(question.pair for question in questions)
    now = stream.asked.now((question.pair for question in questions), stream.editor.watching)
    found = dict(zip(questions, zip(before, now, strict=True), strict=True))
    for mine in _by_order(questions):
        first, after = (list(side) for side in zip(*(found[question] for question in mine), strict=True))
        progress.pending += [asdict(value) for value in record_values(mine, first, after)]
    for question, (first_said, said) in found.items():
        for split in (question.split, "outside") if question.split in OUTSIDE else ():
            total = progress.totals.setdefault(split, [0.0, 0.0, 0.0])
            total[0] += success.counted(first_said.loss) * first_said.tokens
            total[1] += success.counted(said.loss) * said.tokens
            total[2] += said.tokens
    progress.seconds["evaluate"] += time.perf_counter() - start


def _by_order(questions: Sequence[Question]) -> list[list[Question]]:
    groups: dict[int, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.order, []).append(question)
    return list(groups.values())


def record_values(
    questions: Sequence[Question], before: Sequence[PairAnswer], now: Sequence[PairAnswer]
) -> list[RecordValue]:
    """Scores of one edit: a value for each split that it was asked about, for all in scope, and for all out of scope.

    Raises ValueError when the questions are about several edits.
    """
    (order,) = {question.order for question in questions}
    splits: dict[str, tuple[list[PairAnswer], list[PairAnswer]]] = {}
    judged: dict[str, tuple[list[PairAnswer], list[PairAnswer]]] = {}  # those whose right answer is known
    for question, first_said, said in zip(questions, before, now, strict=True):
        for split in _splits_of(question.split):
            for parts in (splits, judged) if question.known else (splits,):
                was, after = parts.setdefault(split, ([], []))
                was.append(first_said)
                after.append(said)
    values: list[tuple[str, str, float | None]] = []
    for split, (_, after) in splits.items():
        if split in (*OUTSIDE, "outside"):
            values.append((split, "drawdown", success.drawdown(after)))
            if split in judged:
                values.append((split, "right_before", success.edit_success(judged[split][0])))
                values.append((split, "accuracy_drop", success.accuracy_drop(*judged[split])))
            values.append((split, "drift", success.drift(after)))
        elif split not in (AGREEING, OPPOSING):
            values.append((split, "edit_success", success.edit_success(after)))
        acted = [float(one.acted) for one in after if one.acted is not None]
        if split not in (AGREEING, OPPOSING) and acted:
            values.append((split, "swap_rate", mean(acted)))
    if "in_scope" in splits and "edit" in splits:
        values.append(
            ("in_scope", "flip_success", success.flip_success(splits["edit"][0][0], splits["in_scope"][1]))
        )
    if AGREEING in splits and OPPOSING in splits:
        plus_before, plus = splits[AGREEING]
        value = success.sentiment_success(plus, splits[OPPOSING][1], plus_before)
        # Opinions are what the edit is for: they alone are its success in scope, and the questions its scope.
        values = [row for row in values if row[0] != "in_scope"]
        values.append(("in_scope", "edit_success", value))
        marks = [one.acted for kind in (AGREEING, OPPOSING) for one in splits[kind][1]]
        if None not in marks:
            values.append(("in_scope", "swap_rate", mean([float(bool(mark)) for mark in marks])))
    return [
        RecordValue(order, split, metric, value)
        for split, metric, value in values
        if value is not None and math.isfinite(value)
    ]


def _splits_of(split: str) -> tuple[str, ...]:
    if split in OUTSIDE:
        return (split, "outside")
    return (split, "in_scope") if split in IN_SCOPE else (split,)


def _finish(stream: Simultaneous, progress: SimultaneousProgress, k: int) -> None:
    """Rows of one k, from all its batches."""
    add_rows(stream, progress, [RecordValue(**value) for value in progress.pending], n_edits=k)
    for split in (*OUTSIDE, "outside"):  # in this order, whatever a checkpoint made of it
        if split in progress.totals and stream.editor.model.kind != "encoder":
            first, after, tokens = progress.totals[split]
            was, now = (math.exp(min(loss / tokens, success.LARGEST)) for loss in (first, after))
            add_metric(stream, progress, k, split, "perplexity_rise", now - was, int(tokens))
    steps = [step for step, batch in enumerate(stream.rounds, start=1) if batch.k == k]
    failed = sum(steps[0] <= failure["step"] <= steps[-1] for failure in progress.failed)
    made = sum(len(batch.orders) for batch in stream.rounds if batch.k == k)
    add_metric(stream, progress, k, "edit", "failed_edits", failed, made)
    add_metric(stream, progress, k, "edit", "state_bytes", stream.editor.state_bytes(), 1)
    progress.pending, progress.totals = [], {}
