"""What an edited model says after prompts of any length, greedily: `Editor.generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.errors import DataError, SettingsError
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import say


@torch.no_grad()
def generate(model: LanguageModel, prompts: str | Sequence[str], max_new_tokens: int) -> list[str]:
    """Text, or the name of a class, for each prompt; with kept keys and values, as far as the context reaches.

    Raises:
        DataError: a prompt is empty, or fills the whole context.
        SettingsError: `max_new_tokens` is not a whole number above 0.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    texts = isinstance(prompts, Sequence) and all(isinstance(prompt, str) and prompt for prompt in prompts)
    if not texts or not prompts:
        raise DataError(f"generate() takes texts that are not empty, not {prompts!r:.80}")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise SettingsError(f"max_new_tokens = {max_new_tokens!r}; expected a whole number above 0")
    if model.kind == "encoder":
        return [said.text for said in say(model, list(prompts))]
    tokenizer, decoder = model.tokenizer, model.kind == "decoder"
    side, tokenizer.padding_side = tokenizer.padding_side, "left" if decoder else "right"
    try:
        batch = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    finally:
        tokenizer.padding_side = side
    longest, context = batch["input_ids"].shape[1], model.context
    room = context - longest if decoder else context
    if room < 1 or longest > context:
        raise DataError(
            f"the prompt has {longest} tokens, and {model.name} reads at most {context}",
            record=repr(max(prompts, key=len)[:60]),
            field="prompt",
            remedy="Shorten it",
        )
    output = model.network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    said = output[:, batch["input_ids"].shape[1] :] if decoder else output
    return tokenizer.batch_decode(said, skip_special_tokens=True)
