"""Definitions of the scores. Each has its own name: papers and toolkits use one word for several."""

from __future__ import annotations

import math
from collections.abc import Sequence


def token_accuracy(predicted: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of equal tokens, position by position: reliability, generality and locality of COMEBA-HK (spec
    4.2).

    Teacher-forced: token t is predicted with the right tokens before it. This is neither exact match nor free
    generation. For locality `wanted` are the unedited model's predictions, not the gold answer.
    """
    _refuse_unequal(predicted, wanted)
    return sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(wanted)


def exact_match(predicted: Sequence[int], wanted: Sequence[int]) -> float:
    """1 when every teacher-forced token is equal, else 0."""
    _refuse_unequal(predicted, wanted)
    return float(tuple(predicted) == tuple(wanted))


def generation_match(generated: str, wanted: str) -> float:
    """1 when the freely generated text (as many tokens as the answer has) is the answer, else 0."""
    return float(generated.strip() == wanted.strip())


def mean(values: Sequence[float]) -> float:
    """Plain mean, summed exactly, so that it does not depend on order."""
    if not values:
        raise ValueError("the mean of no values")
    return math.fsum(values) / len(values)


def _refuse_unequal(predicted: Sequence[int], wanted: Sequence[int]) -> None:
    if len(predicted) != len(wanted) or not wanted:
        raise ValueError(f"{len(predicted)} predicted against {len(wanted)} wanted tokens")
