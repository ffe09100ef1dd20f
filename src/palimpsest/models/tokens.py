"""How text becomes tokens: prompts, prompt-and-answer pairs, and where the subject ends.

Positions are found by character offsets, so they hold for any fast tokenizer and any way of joining words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.errors import DataError

if TYPE_CHECKING:
    from palimpsest.models.loading import LanguageModel


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded rows: input_ids [b, n] and attention_mask [b, n] (1 for real tokens)."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device))

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each row [b]."""
        return self.attention_mask.sum(dim=1)


@dataclass(frozen=True)
class PairBatch:
    """Rows of prompt + answer; the answer's tokens are [answer_start, answer_end) in each row."""

    tokens: TokenBatch
    answer_start: Tensor
    answer_end: Tensor


@dataclass(frozen=True)
class Tokenised:
    """Token ids and their character spans, of one text."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def index_of_end(self, start: int, end: int) -> int:
        """Index of the last token that overlaps the characters [start, end)."""
        touching = [i for i, (first, last) in enumerate(self.spans) if first < end and last > start]
        return touching[-1]


def tokenise(model: LanguageModel, texts: Sequence[str], spare: int = 0) -> list[Tokenised]:
    """Tokenise texts, refusing what does not fit into the model's context with `spare` tokens more."""
    if not texts:
        return []
    encoded = model.tokenizer(list(texts), return_offsets_mapping=True, padding=False, truncation=False)
    rows = [
        Tokenised(ids, spans)
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    for text, row in zip(texts, rows, strict=True):
        if not row.ids:
            raise DataError(
                "the text has no tokens", record=repr(text[:60]), remedy="Give a text that is not empty"
            )
        if len(row.ids) + spare > model.context:
            raise DataError(
                f"the text has {len(row.ids) + spare} tokens, but {model.name} reads at most {model.context}",
                record=repr(text[:60] + "…"),
                remedy="Shorten prompt or target, or use a model with a longer context",
            )
    return rows


def pad(model: LanguageModel, rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Right-pad token rows into one batch on the model's device."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), int(model.tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return TokenBatch(ids, mask).to(model.device)


def join(prompt: str, answer: str) -> str:
    """One blank between prompt and answer, as in every paper here."""
    return f"{prompt} {answer}" if answer else prompt


def encode_prompts(model: LanguageModel, prompts: Sequence[str]) -> TokenBatch:
    """Right-padded prompts."""
    return pad(model, [row.ids for row in tokenise(model, prompts)])


def encode_pairs(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> PairBatch:
    """Right-padded prompt + answer rows with the answer's token span."""
    rows = tokenise(model, [join(prompt, answer) for prompt, answer in pairs])
    starts, ends = [], []
    for (prompt, _), row in zip(pairs, rows, strict=True):
        inside = [i for i, (_, last) in enumerate(row.spans) if last > len(prompt)]
        starts.append(inside[0] if inside else len(row.ids))
        ends.append(inside[-1] + 1 if inside else len(row.ids))
    return PairBatch(pad(model, [row.ids for row in rows]), torch.tensor(starts), torch.tensor(ends))


def cut_to_context(model: LanguageModel, texts: Sequence[str]) -> list[str]:
    """Each text, or as much of its beginning as the model reads: for documents (prompts are refused instead)."""
    cut = []
    for text in texts:
        room = model.context
        while len(model.tokenizer(text)["input_ids"]) > model.context:
            kept = model.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=room)
            text = text[: max(last for _, last in kept["offset_mapping"])]
            room -= 1  # the end of a cut text may fall into more tokens than before
        cut.append(text)
    return cut


def last_occurrence(text: str, subject: str) -> int:
    """Where the subject occurs last as whole words ("Ann" is not in "Annville"), else last at all; -1: nowhere."""
    whole = occurrences(text, subject)
    return whole[-1] if whole else text.rfind(subject)


def occurrences(text: str, subject: str) -> list[int]:
    """Where the subject starts as whole words."""
    return [found.start() for found in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)]


def subject_index(row: Tokenised, text: str, subject: str) -> int:
    """Index, in a tokenised text, of the subject's last token at its last occurrence.

    Raises DataError when the subject does not occur.
    """
    start = last_occurrence(text, subject)
    if start < 0:
        raise DataError(
            f"the subject {subject!r} does not occur in {text!r}",
            field="subject",
            remedy="Write it as in the prompt",
        )
    return row.index_of_end(start, start + len(subject))
