"""Edit success and drawdown as MEND (arXiv 2110.11309, Section 4) and SERAC (arXiv 2206.06520, Section 4) define them.

Each definition has its own name, for the papers use one word for several (spec 3.7). Success is asked for in scope: the edit
itself, its rephrasings, what it implies. Drawdown is asked for out of scope, near the edit and far from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from palimpsest.metrics.asked import PairAnswer
from palimpsest.metrics.scores import mean

LARGEST = 200.0  # nats; a larger loss counts as this much, so that a perplexity stays a finite number


def counted(nats: float) -> float:
    """A loss or divergence that is no number counts as the largest: a model that says nothing any more is no better than that.

    Left out of a mean instead, it would flatter the editor that broke the model.
    """
    return nats if math.isfinite(nats) else LARGEST


def edit_success(said: Sequence[PairAnswer]) -> float:
    """ES: share of in-scope prompts whose whole new answer is said (exact match of all tokens, teacher-forced)."""
    return mean([float(one.right) for one in said])


def flip_success(before: PairAnswer, said: Sequence[PairAnswer]) -> float | None:
    """ES of an edit that changes something: None where the model said the new answer before (spec Q11).

    With MEND's edits on FEVER, half of which ask for what is said already, doing nothing has an ES of about one half.

    Args:
        before: of the edit's own prompt with its new answer.
    """
    return None if before.right else edit_success(said)


def drawdown(said: Sequence[PairAnswer]) -> float:
    """DD of SERAC: share of out-of-scope prompts whose most probable answer changed at any place."""
    return mean([float(not one.unchanged) for one in said])


def accuracy_drop(before: Sequence[PairAnswer], said: Sequence[PairAnswer]) -> float:
    """DD of MEND: accuracy on the labels of out-of-scope prompts before the edit, minus that after it."""
    return edit_success(before) - edit_success(said)


def drift(said: Sequence[PairAnswer]) -> float | None:
    """DD of SERAC's dialogue task: mean KL(before || after) at the answers' places (nats); None where not measured.

    A divergence that is no number counts as `LARGEST`.
    """
    found = [counted(one.drift) for one in said if one.drift is not None]
    return mean(found) if found else None


def token_loss(said: Sequence[PairAnswer]) -> float:
    """Mean negative log-probability over all answers' tokens (nats)."""
    return math.fsum(one.loss * one.tokens for one in said) / sum(one.tokens for one in said)


def sentiment_success(
    agreeing: Sequence[PairAnswer], opposing: Sequence[PairAnswer], agreeing_before: Sequence[PairAnswer]
) -> float:
    """ES of SERAC's dialogue task: sigmoid(l+ - l-) * min(1, exp(l+ - l+_before)).

    l+ and l- are mean log-probabilities of the tokens of all replies with and against the edited sentiment after the edit.
    The second factor takes back what is won by making both kinds unlikely. 0 where l+ or l- is no number: an edit after which
    the model gives none has failed.
    """
    plus, minus, was = (-token_loss(found) for found in (agreeing, opposing, agreeing_before))
    if math.isnan(plus - minus):
        return 0.0
    return _sigmoid(plus - minus) * math.exp(min(0.0, plus - was))


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
