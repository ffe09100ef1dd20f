"""Greedy generation without forcing, in batches, each row as many tokens as its answer has.

Every step runs the whole row again, without kept keys and values: methods that decide their scope over the
whole sequence (COMEBA-HK) then decide at each step as they do in teacher forcing, which they cannot when a
step sees one token. Answers are short, so this costs little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import pad, tokenise


def generate_tokens(
    model: LanguageModel, prompts: Sequence[str], counts: Sequence[int], batching: Batching | None = None
) -> list[tuple[int, ...]]:
    """Greedy continuation of each prompt: `counts[i]` token ids (fewer only where the context ends)."""
    batching = batching or Batching()
    rows = [list(row.ids) for row in tokenise(model, prompts)]
    starts = [len(row) for row in rows]
    while True:
        waiting = [
            number
            for number, row in enumerate(rows)
            if len(row) - starts[number] < counts[number] and len(row) < model.context
        ]
        if not waiting:
            return [tuple(row[start:]) for row, start in zip(rows, starts, strict=True)]
        for group in batching.groups([len(rows[number]) for number in waiting]):
            chosen = [waiting[place] for place in group]
            batch = pad(model, [rows[number] for number in chosen])
            last = (batch.lengths - 1).cpu()
            asking = torch.tensor([starts[number] - 1 for number in chosen], device=model.device)
            with model.asking_at(asking):
                said = model.logits(batch, (torch.arange(len(chosen)), last)).argmax(dim=-1).tolist()
            for number, token in zip(chosen, said, strict=True):
                rows[number].append(token)


def as_text(model: LanguageModel, tokens: Sequence[int]) -> str:
    """Generated tokens as text, without blanks at the ends, for comparison with a written answer."""
    return model.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()
