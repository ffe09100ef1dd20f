"""Text drift: perplexity of a model on held-out plain text, a meter of what editing does to everything else.

At mini scale it tells drift, not fluency (the models are small): compare it with its own value before
editing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from palimpsest.errors import DataError
from palimpsest.metrics.answers import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import pad
from palimpsest.text_files import text_lines

HELD_OUT_SHARE = 0.1
TEXT_TOKENS = 4096


@dataclass(frozen=True)
class TextLoss:
    """Mean negative log-likelihood (nats) over `tokens` predicted tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite when it is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def held_out_passages(path: Path | str, share: float = HELD_OUT_SHARE) -> Iterator[str]:
    """The last `share` of the lines of a file (one passage a line; blank ones do not count), at least one line.

    The lines are counted first, then given one after the other: whoever needs few of them reads no further, and none of the
    others (90 % of .4 GB at the paper's sizes) is kept.

    Raises:
        DataError: no such file, no text in it, or text that is not UTF-8.
    """
    count = sum(1 for _ in _lines(path))
    if not count:
        raise DataError("the file holds no text", file=path, remedy="Give a file with one passage a line")
    return islice(_lines(path), count - max(1, round(share * count)), None)


def _lines(path: Path | str) -> Iterator[str]:
    for line in text_lines(path, "Give the text the model was pre-trained with"):
        # Other characters end a line too, such as U+2028.
        yield from (part.strip() for part in line.splitlines() if part.strip())


def token_rows(model: LanguageModel, passages: Iterable[str], budget: int = TEXT_TOKENS) -> list[list[int]]:
    """Token rows of passages, one passage a row, cut at the context, until `budget` tokens are reached."""
    rows: list[list[int]] = []
    left = budget
    for passage in passages:
        if left < 2:
            break
        # Cut as text first: a tokenizer warns about rows longer than its model.
        tokens = model.tokenizer(passage, truncation=True, max_length=model.context)["input_ids"][:left]
        if len(tokens) > 1:
            rows.append(tokens)
            left -= len(tokens)
    return rows


@torch.no_grad()
def text_loss(
    model: LanguageModel, rows: Sequence[Sequence[int]], batching: Batching | None = None
) -> TextLoss:
    """Mean loss of predicting each token of each row from those before it, row by row in padded batches."""
    total, count = 0.0, 0
    for group in (batching or Batching(tokens=1024)).groups([len(row) for row in rows]):
        chosen = [list(rows[number]) for number in group]
        lines = torch.cat([torch.full((len(row) - 1,), i) for i, row in enumerate(chosen)])
        columns = torch.cat([torch.arange(len(row) - 1) for row in chosen])
        logits = model.logits(pad(model, chosen), (lines, columns)).float()
        wanted = torch.tensor([token for row in chosen for token in row[1:]], device=logits.device)
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().sum())
        count += len(wanted)
    if not count:
        raise DataError("no passage has two tokens", remedy="Give longer passages for the text-drift meter")
    return TextLoss(total / count, count)
