"""The texts put before a prompt so that keys and target vectors do not depend on what precedes the subject.

MEMIT and COMEBA-HK use the bare prompt and one sampled text each after five start words; ROME uses ten short and ten
longer ones (spec 1.5, 1.8). They are drawn once per editor from the untouched model, with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import TokenBatch, encode_prompts

START_WORDS = ("The", "Therefore", "Because", "I", "You")


@torch.no_grad()
def sample_contexts(
    model: LanguageModel, lengths: tuple[tuple[int, int], ...], seed: int, top_k: int = 5
) -> tuple[tuple[str, ...], ...]:
    """Groups of contexts: the bare one (""), then for each (tokens, how many) a group of sampled texts.

    Args:
        lengths: (number of tokens, start word included; number of texts) of each group; texts take the start words in turn.
            Where start words have different numbers of tokens, the shortest gets `tokens` and all grow by the same.
            What a tokenizer puts before every text (`<s>`) is read while sampling, and is neither counted nor kept.
    """
    generator = torch.Generator().manual_seed(seed)
    groups: list[tuple[str, ...]] = [("",)]
    for tokens, count in lengths:
        words = [START_WORDS[i % len(START_WORDS)] for i in range(count)]
        groups.append(tuple(_continue(model, words, tokens, generator, top_k)))
    return tuple(groups)


def _continue(
    model: LanguageModel, words: list[str], tokens: int, generator: torch.Generator, top_k: int
) -> list[str]:
    batch = encode_prompts(model, words)
    rows = torch.arange(len(words))
    lengths = batch.lengths.cpu()
    ids, mask = batch.input_ids, batch.attention_mask
    special = torch.isin(ids.cpu(), torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long))
    added = (special & mask.cpu().bool()).sum(dim=1)
    while int((lengths - added).min()) < tokens:
        if ids.shape[1] <= int(lengths.max()):
            ids = torch.cat([ids, torch.full_like(ids[:, :1], int(model.tokenizer.pad_token_id))], dim=1)
            mask = torch.cat([mask, torch.zeros_like(mask[:, :1])], dim=1)
        logits = model.logits(TokenBatch(ids, mask), (rows, lengths - 1)).float().cpu()
        logits[:, list(model.tokenizer.all_special_ids)] = -torch.inf  # a context is running text
        values, choices = logits.topk(min(top_k, logits.shape[1]), dim=1)
        drawn = torch.multinomial(values.softmax(dim=1), 1, generator=generator)
        ids[rows, lengths] = choices.gather(1, drawn)[:, 0].to(ids)
        mask[rows, lengths] = 1
        lengths = lengths + 1
    rows_read = [row[: int(n)] for row, n in zip(ids.cpu(), lengths, strict=True)]
    texts = model.tokenizer.batch_decode(rows_read, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def put_before(context: str, prompt: str) -> str:
    """Context, full stop, prompt; the bare context leaves the prompt as it is."""
    return f"{context}. {prompt}" if context else prompt


def longest_context(model: LanguageModel, groups: Sequence[Sequence[str]]) -> int:
    """Tokens that the longest context and the full stop after it put before a prompt (which has its own special tokens)."""
    texts = [f"{context}." for group in groups for context in group]
    return max(len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"])
