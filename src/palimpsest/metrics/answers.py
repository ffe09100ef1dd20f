"""What a model says at the places where an answer stands: teacher-forced predictions, in padded batches.

The pair prompt + " " + answer is run once; the answer's token at position t is predicted by the logits at t -
1. Rows are sorted by length and padded on the right. Causal attention and masked scope statistics make the
numbers the same as one row at a time. Only the logits that are read are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import TokenBatch, encode_pairs


@dataclass(frozen=True)
class Answer:
    """Token ids of one answer: predicted ones (given the right tokens before each), and those written."""

    predicted: tuple[int, ...]
    wanted: tuple[int, ...]


def predict_answers(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    batching: Batching | None = None,
    after_pass: Callable[[list[int]], None] | None = None,
) -> list[Answer]:
    """Argmax predictions at the answer's tokens of every (prompt, answer), in the order of `pairs`.

    `after_pass` is called after each pass with the places of its rows in `pairs`.

    Raises DataError when an answer has no token of its own, or a pair is longer than the model's context.
    """
    if not pairs:
        return []
    batch = encode_pairs(model, pairs)
    lengths = batch.tokens.lengths.tolist()
    starts, ends = batch.answer_start.tolist(), batch.answer_end.tolist()
    _refuse_empty(pairs, starts, ends)
    answers: list[Answer | None] = [None] * len(pairs)
    for group in (batching or Batching()).groups(lengths):
        tokens = _rows(batch.tokens, group, max(lengths[row] for row in group))
        counts = [ends[row] - starts[row] for row in group]
        rows = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(counts))
        columns = torch.cat([torch.arange(starts[row], ends[row]) for row in group])
        # A codebook is asked at the last prompt token, wherever the answer ends.
        asking = torch.tensor([starts[row] - 1 for row in group], device=model.device)
        with model.asking_at(asking):
            predicted = model.logits(tokens, (rows, columns - 1)).argmax(dim=-1).cpu()
        wanted = tokens.input_ids.cpu()[rows, columns]
        if after_pass is not None:
            after_pass(group)
        for row, said, written in zip(group, predicted.split(counts), wanted.split(counts), strict=True):
            answers[row] = Answer(tuple(said.tolist()), tuple(written.tolist()))
    return [answer for answer in answers if answer is not None]


def _rows(tokens: TokenBatch, rows: list[int], longest: int) -> TokenBatch:
    chosen: Tensor = torch.tensor(rows, device=tokens.input_ids.device)
    return TokenBatch(tokens.input_ids[chosen, :longest], tokens.attention_mask[chosen, :longest])


def _refuse_empty(pairs: Sequence[tuple[str, str]], starts: list[int], ends: list[int]) -> None:
    for (prompt, answer), start, end in zip(pairs, starts, ends, strict=True):
        if start < 1 or end <= start:
            raise DataError(
                f"the answer {answer!r} has no token that follows the prompt",
                record=repr(prompt[:60]),
                field="answer",
                remedy="Give a prompt and an answer that are not empty",
            )
