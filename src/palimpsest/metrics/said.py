"""Scores of what a model said against what was wanted, each definition under its own name (GRACE, section 4; spec 3.5).

`token_f1` is the number in GRACE's tables. It is defined on token ids and has two surprises that are kept, because it is what was
published: the end token counts as a token of the answer, so a wrong one-token answer scores .5; and repeated tokens
shorten precision and recall, so an exact match with a repeated token stays below 1 (spec, Q11). `squad_f1` and
`exact` have neither; read them beside it.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A mean loss above this many nats is counted as this many, so that a mean over examples stays a finite number.
LARGEST_LOSS = 200.0


def token_f1(said: Sequence[int], wanted: Sequence[int]) -> float:
    """F1 on token ids as GRACE computes it: shared ids as a set, lengths with repeated tokens and the end token.

    Args:
        said: ids without padding, with the end token where one was said.
        wanted: ids without padding, with the end token.
    """
    shared = len(set(said) & set(wanted))
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def squad_f1(said: str, wanted: str) -> float:
    """F1 on words as SQuAD computes it: lower case, no punctuation, no articles, words counted as often as they occur.

    When either has no word left, it is 1 if neither has, else 0.
    """
    first, second = _words(said), _words(wanted)
    if not first or not second:
        return float(first == second)
    shared = sum((Counter(first) & Counter(second)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(first), shared / len(second)
    return 2 * precision * recall / (precision + recall)


def exact(said: Sequence[int], wanted: Sequence[int], end: int | None = None) -> bool:
    """Whether the ids are the same once end tokens at the end are stripped (the corrected error test of spec Q3)."""
    return _stripped(said, end) == _stripped(wanted, end)


def accuracy(said: Sequence[int], wanted: Sequence[int]) -> float:
    """1 when the class that was said is the wanted one, else 0."""
    if len(said) != 1 or len(wanted) != 1:
        raise ValueError(f"a class is one number; got {len(said)} said and {len(wanted)} wanted")
    return float(said[0] == wanted[0])


def perplexity(loss: float) -> float | None:
    """exp of the mean loss (nats per token) of one example; None for NaN, which is dropped and counted."""
    return None if math.isnan(loss) else math.exp(min(loss, LARGEST_LOSS))


def _stripped(ids: Sequence[int], end: int | None) -> list[int]:
    kept = list(ids)
    while end is not None and kept and kept[-1] == end:
        kept.pop()
    return kept


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
