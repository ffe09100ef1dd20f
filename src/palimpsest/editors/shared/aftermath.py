"""Whether a model still gives numbers after an edit.

Losses and updates may all be finite while the model that they make is not: the last step of an optimiser is followed by no
loss, and in half precision activations overflow long before weights do. Methods that write into the model ask here before they
say that an edit is made, while they can still take it back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode, target_logits
from palimpsest.models.tokens import encode_prompts


@torch.no_grad()
def refuse_broken(model: LanguageModel, edits: Sequence[Edit], batching: Batching | None = None) -> None:
    """Ask the model, as it is now, what follows the edits' prompts.

    Raises:
        DivergedEdit: some logit is NaN or infinite.
    """
    lengths = [len(ids) for ids in model.tokenizer([edit.prompt for edit in edits])["input_ids"]]
    for group in (batching or Batching()).groups(lengths):
        mine = [edits[place] for place in group]
        if not torch.isfinite(_logits(model, mine)).all():
            raise DivergedEdit(
                f"after the edit the model gives no numbers any more (weights or activations too large for {model.dtype}); "
                "use smaller steps, or load the model in float32"
            )


def _logits(model: LanguageModel, edits: Sequence[Edit]) -> torch.Tensor:
    """[k, v]; of a decoder at the last prompt token, else where the answers are given."""
    prompts = [edit.prompt for edit in edits]
    if model.kind == "decoder":
        tokens = encode_prompts(model, prompts)
        return model.logits(tokens, (torch.arange(len(prompts)), tokens.lengths.cpu() - 1))
    return target_logits(model, encode(model, prompts, [edit.target for edit in edits]))
