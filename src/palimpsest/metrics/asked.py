"""(prompt, answer) pairs asked of a model before any edit and again after: what is right, what stayed as it was.

Everything is teacher-forced: a token counts as said when it is the most probable one, given the right tokens before it. Of
a decoder the answer's own tokens count, without an end token, since not every decoder learned to end; of an encoder-decoder
`</s>` counts too, as in MEND and SERAC; of a classifier the class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, encode, target_logits, target_places, without_end

# For the length of a block: a function that tells on which rows [b] of the latest pass the edit acted.
Watching = Callable[[], AbstractContextManager[Callable[[], Tensor | None] | None]]


@dataclass(frozen=True)
class PairAnswer:
    """What the model made of one pair.

    Attributes:
        right: every token of the answer is said.
        unchanged: the same tokens are said at the answer's places as before any edit, right or wrong.
        loss: mean negative log-probability of the answer's tokens (nats).
        tokens: their number.
        drift: mean over these places of KL(before || now) (nats), infinite where it is no number; None where it was not
            asked for.
        acted: whether the edit acted on the pair; None where nobody watched or the editor has no scope decision.
    """

    right: bool
    unchanged: bool
    loss: float
    tokens: int
    drift: float | None = None
    acted: bool | None = None


@dataclass(frozen=True)
class _Before:
    """What the unedited model made of one pair."""

    said: PairAnswer
    predicted: Tensor  # [m]


@dataclass
class _Group:
    """Rows that share a pass, and what the unedited model said about them."""

    places: list[int]
    inputs: Inputs
    predicted: list[Tensor] = field(default_factory=list)  # [m] for each row
    before: list[Tensor] | None = None  # log-probabilities [m, v] for each row


class AskedPairs:
    """Pairs with what the unedited model says about them. Build it before the first edit.

    Args:
        model: the model, unedited now.
        pairs: (prompt, answer); the same pair may stand there twice, it is asked once.
        batching: how rows share a pass.
        drift: measure KL too; keeps the logits of all answers' places.
        unedited: where the answers of the unedited model are kept for other runs; not those whose logits are wanted.

    Raises:
        DataError: an empty prompt or answer, a class that the model does not have, a text that is too long.
    """

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[tuple[str, str]],
        batching: Batching | None = None,
        drift: bool = False,
        unedited: Unedited | None = None,
    ):
        start = time.perf_counter()
        batching = batching or Batching()
        self.model = model
        self.pairs = list(dict.fromkeys(pairs))
        self._place = {pair: place for place, pair in enumerate(self.pairs)}
        self._groups = [self._encoded(places) for places in self._batches(batching)]
        self._at = {
            place: (number, row)
            for number, group in enumerate(self._groups)
            for row, place in enumerate(group.places)
        }
        ask = partial(self._first, drift)
        found = (
            ask()
            if unedited is None or drift
            else unedited.answers(model, self.pairs, batching, {}, (__name__,), ask, _plain, _read)
        )
        self._before = [one.said for one in found]
        for group in self._groups:
            group.predicted = [found[place].predicted for place in group.places]
        self.seconds_before = time.perf_counter() - start

    def before(self, pairs: Iterable[tuple[str, str]]) -> list[PairAnswer]:
        """What the unedited model said; nothing is asked again."""
        return [self._before[self._place[pair]] for pair in pairs]

    @torch.no_grad()
    def now(self, pairs: Iterable[tuple[str, str]], watching: Watching | None = None) -> list[PairAnswer]:
        """What the model says as it is now.

        `watching` (see `Editor.watching`) tells after each pass on which rows the edit acted.
        """
        chosen = [self._place[pair] for pair in pairs]
        rows: dict[int, list[int]] = {}
        for place in sorted(set(chosen)):
            number, row = self._at[place]
            rows.setdefault(number, []).append(row)
        found: dict[int, PairAnswer] = {}
        with watching() if watching is not None else nullcontext() as acted:
            for number in sorted(rows):
                group, mine = self._groups[number], sorted(rows[number])
                for row, said in zip(mine, self._ask(group, mine, acted), strict=True):
                    found[group.places[row]] = said
        return [found[place] for place in chosen]

    def _batches(self, batching: Batching) -> Iterable[list[int]]:
        joined = [f"{prompt} {answer}" for prompt, answer in self.pairs]
        texts = joined if self.model.kind == "decoder" else [prompt for prompt, _ in self.pairs]
        lengths = [len(ids) for ids in self.model.tokenizer(texts)["input_ids"]] if texts else []
        return batching.groups(lengths)

    def _encoded(self, places: list[int]) -> _Group:
        prompts, answers = zip(*(self.pairs[place] for place in places), strict=True)
        inputs = encode(self.model, prompts, answers)
        return _Group(places, without_end(inputs) if self.model.kind == "decoder" else inputs)

    @torch.no_grad()
    def _first(self, drift: bool) -> list[_Before]:
        """Ask the unedited model every pair; with `drift` the groups keep its log-probabilities."""
        found: dict[int, _Before] = {}
        for group in self._groups:
            logits, counts = _logits(self.model, group.inputs)
            predicted = list(logits.argmax(dim=1).cpu().split(counts))
            logs = logits.log_softmax(dim=1)
            if drift:
                group.before = list(logs.cpu().split(counts))
            nothing = [0.0 if drift else None] * len(predicted)
            said = _said(group.inputs, logs, counts, predicted, nothing)
            found |= {place: _Before(*one) for place, *one in zip(group.places, said, predicted, strict=True)}
        return [found[place] for place in range(len(self.pairs))]

    def _ask(
        self, group: _Group, rows: list[int], acted: Callable[[], Tensor | None] | None
    ) -> Iterable[PairAnswer]:
        inputs = group.inputs if len(rows) == len(group.places) else group.inputs.rows(rows)
        logits, counts = _logits(self.model, inputs)
        marks = acted() if acted is not None else None
        logs = logits.log_softmax(dim=1)
        drifts: list[float | None] = [None] * len(rows)
        if group.before is not None:
            parts = zip(rows, logs.cpu().split(counts), strict=True)
            drifts = [_kl(group.before[row], now) for row, now in parts]
        said = _said(inputs, logs, counts, [group.predicted[row] for row in rows], drifts)
        if acted is None:
            return said
        # A pass in which no row is in scope is one without a decision for some editors: it acted on none.
        flags = [False] * len(rows) if marks is None else marks.tolist()
        return [replace(one, acted=bool(flag)) for one, flag in zip(said, flags, strict=True)]


def _plain(found: list[_Before]) -> dict[str, list[Any]]:
    return {
        "predicted": [one.predicted.tolist() for one in found],
        "right": [one.said.right for one in found],
        "loss": [one.said.loss for one in found],
    }


def _read(content: dict[str, Any]) -> list[_Before]:
    rows = zip(*(content[name] for name in ("predicted", "right", "loss")), strict=True)
    return [
        _Before(PairAnswer(bool(right), True, float(loss), len(ids)), torch.tensor([int(one) for one in ids]))
        for ids, right, loss in rows
    ]


def _logits(model: LanguageModel, inputs: Inputs) -> tuple[Tensor, list[int]]:
    """Logits at the targets' places [k, v] in at least float32, and the number of places of each row."""
    logits = target_logits(model, inputs)
    counts = torch.bincount(target_places(inputs)[0], minlength=len(inputs)).tolist()
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), counts


def _said(
    inputs: Inputs,
    logs: Tensor,
    counts: list[int],
    before: Sequence[Tensor],
    drifts: Sequence[float | None],
) -> list[PairAnswer]:
    wanted = inputs.targets[target_places(inputs)]
    losses = -logs.gather(1, wanted[:, None])[:, 0].cpu()
    now, aims = logs.argmax(dim=1).cpu(), wanted.cpu()
    parts = zip(losses.split(counts), now.split(counts), aims.split(counts), before, drifts, strict=True)
    return [
        PairAnswer(
            right=bool(torch.equal(said, aim)),
            unchanged=bool(torch.equal(said, old)),
            loss=float(loss.double().mean()),
            tokens=len(aim),
            drift=drift,
        )
        for loss, said, aim, old, drift in parts
    ]


def _kl(before: Tensor, now: Tensor) -> float:
    """Mean over the places of KL(before || now), from log-probabilities [m, v]; rounding below 0 is cut off.

    Infinite where it is no number: the model gives none any more, which is no drift of 0, and none to leave out of a mean.
    """
    each = (before.exp() * (before - now)).double().sum(dim=1)
    value = float(each.mean())
    return max(0.0, value) if math.isfinite(value) else math.inf
