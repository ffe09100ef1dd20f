"""Keys k: what enters the second MLP matrix at the subject's last token, averaged over contexts (spec 1.6).

The sequences of a batch are carried through the model block by block, so that nothing below the layer being edited is
computed twice: only that layer's matrix changes between two steps (spec 8.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.contexts import put_before
from palimpsest.edits import Edit
from palimpsest.models.hooks import captured_inputs
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import causal_mask, embed, row_positions, run_blocks
from palimpsest.models.tokens import pad, subject_index, tokenise


class KeyWalk:
    """b edits in all their contexts, at the input of block `layer`, which grows as the walk advances.

    Args:
        contexts: groups of texts put before the prompt, the first group holding only the bare one (""). A key is the mean
            over each group, then over groups: with one group of five, the bare prompt weighs 1/2 (released code).
        cut: drop the tokens after the subject, which no key can depend on. Not with hook layers, whose scope decision
            looks at the whole sequence.
    """

    def __init__(
        self,
        model: LanguageModel,
        edits: Sequence[Edit],
        contexts: Sequence[Sequence[str]],
        first_layer: int,
        cut: bool,
    ):
        texts = [
            put_before(context, edit.prompt) for edit in edits for group in contexts for context in group
        ]
        owners = [edit for edit in edits for group in contexts for _ in group]
        rows = tokenise(model, texts)
        subject = [
            subject_index(row, text, str(e.subject)) for row, text, e in zip(rows, texts, owners, strict=True)
        ]
        ids = [row.ids[: index + 1] if cut else row.ids for row, index in zip(rows, subject, strict=True)]
        self.model, self.layer = model, 0
        self.tokens = pad(model, ids)
        self.subject = torch.tensor(subject, device=model.device)
        self.n_edits = len(edits)
        weights = [1.0 / (len(contexts) * len(group)) for group in contexts for _ in group]
        self.weights = torch.tensor(weights, device=model.device)
        self.bare = torch.arange(len(edits), device=model.device) * len(weights)
        self.mask = causal_mask(self.tokens.attention_mask, model.dtype)
        self.positions = row_positions(self.tokens)
        self.hidden = embed(model, self.tokens)
        self.advance(first_layer)

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Carry the sequences on to the input of block `layer`, through the model as it is now."""
        if layer > self.layer:
            with self.model.padding_of(self.tokens.attention_mask):
                self.hidden = run_blocks(
                    self.model, self.hidden, self.layer, layer - 1, self.mask, self.positions
                )
            self.layer = layer

    @torch.no_grad()
    def keys_and_state(self, target_layer: int) -> tuple[Float[Tensor, "b d_k"], Float[Tensor, "b d"]]:
        """Keys of the block the walk has reached, and where the bare prompts stand at `target_layer`.

        Returns:
            K [b, d_k] in float32 or wider, and h [b, d] in the model's dtype, the output of block `target_layer` at the subject.
        """
        module = self.model.mlp_out(self.layer)
        with captured_inputs({0: module}) as seen, self.model.padding_of(self.tokens.attention_mask):
            after = run_blocks(self.model, self.hidden, self.layer, self.layer, self.mask, self.positions)
        at_subject = seen[0][torch.arange(len(self.subject), device=after.device), self.subject]
        wide = at_subject.to(torch.promote_types(at_subject.dtype, torch.float32))
        keys = (wide.view(self.n_edits, len(self.weights), -1) * self.weights[None, :, None].to(wide)).sum(
            dim=1
        )
        bare, subject = self.bare, self.subject[self.bare]
        state = after[bare]
        if target_layer > self.layer:
            with self.model.padding_of(self.tokens.attention_mask[bare]):
                state = run_blocks(
                    self.model, state, self.layer + 1, target_layer, self.mask[bare], self.positions[bare]
                )
        return keys, state[torch.arange(self.n_edits, device=after.device), subject]
