"""Keys k: what enters the second MLP matrix at the subject's last token, averaged over contexts (spec 1.6).

The sequences of a batch are carried through the model block by block, so that nothing below the layer being edited is
computed twice: only that layer's matrix changes between two steps (spec 8.2). Edits share a pass as far as memory lets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.editors.shared.contexts import put_before
from palimpsest.edits import Edit
from palimpsest.models.hooks import captured_inputs
from palimpsest.models.loading import LanguageModel
from palimpsest.models.memory import block_bytes, in_parts
from palimpsest.models.partial import causal_mask, embed, row_positions, run_blocks
from palimpsest.models.tokens import pad, subject_index, tokenise

T = TypeVar("T")


class KeyWalk:
    """b edits in all their contexts, at the input of block `layer`, which grows as the walk advances.

    Args:
        contexts: groups of texts put before the prompt, the first group holding only the bare one (""). A key is the mean
            over each group, then over groups: with one group of five, the bare prompt weighs 1/2 (released code).
        cut: drop the tokens after the subject, which no key can depend on. Not with hook layers, whose scope decision
            looks at the whole sequence.

    With `LanguageModel.lean` off nothing is cut, and every layer is reached from the embeddings.
    """

    def __init__(
        self,
        model: LanguageModel,
        edits: Sequence[Edit],
        contexts: Sequence[Sequence[str]],
        first_layer: int,
        cut: bool,
    ):
        cut = cut and model.lean
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
        if layer <= self.layer:
            return
        if not self.model.lean:
            self.layer, self.hidden = 0, embed(self.model, self.tokens)

        def carry(edits: slice) -> None:
            rows = self._rows(edits)
            after = self._run(self.hidden[rows], rows, self.layer, layer - 1)
            if len(after) == len(self.hidden):
                self.hidden = after
            else:  # in place: the states of a large batch are not held twice
                self.hidden[rows] = after

        self._in_parts(carry)
        self.layer = layer

    @torch.no_grad()
    def keys_and_state(self, target_layer: int) -> tuple[Float[Tensor, "b d_k"], Float[Tensor, "b d"]]:
        """Keys of the block the walk has reached, and where the bare prompts stand at `target_layer`.

        Returns:
            K [b, d_k] in float32 or wider, and h [b, d] in the model's dtype, the output of block `target_layer` at the subject.
        """
        keys, states = zip(*self._in_parts(lambda edits: self._keys_of(edits, target_layer)), strict=True)
        return torch.cat(keys), torch.cat(states)

    def _keys_of(self, edits: slice, target_layer: int) -> tuple[Tensor, Tensor]:
        """`keys_and_state` of some edits."""
        rows, bare = self._rows(edits), self.bare[edits]
        with captured_inputs({0: self.model.mlp_out(self.layer)}) as seen:
            after = self._run(self.hidden[rows], rows, self.layer, self.layer)
        at_subject = seen[0][torch.arange(len(after), device=after.device), self.subject[rows]]
        wide = at_subject.to(torch.promote_types(at_subject.dtype, torch.float32))
        keys = (wide.view(len(bare), len(self.weights), -1) * self.weights[None, :, None].to(wide)).sum(dim=1)
        state = after[bare - rows.start]
        if target_layer > self.layer:
            state = self._run(state, bare, self.layer + 1, target_layer)
        return keys, state[torch.arange(len(bare), device=after.device), self.subject[bare]]

    def _in_parts(self, run: Callable[[slice], T]) -> list[T]:
        """`run` on edits that share a pass. Padding stays that of the whole batch."""
        needed = block_bytes(self.model, *self.tokens.input_ids.shape)
        return in_parts(self.n_edits, needed, self.model.device, "keys", run)

    def _rows(self, edits: slice) -> slice:
        """The sequences of some edits."""
        return slice(edits.start * len(self.weights), edits.stop * len(self.weights))

    def _run(
        self, states: Float[Tensor, "r n d"], rows: slice | Int[Tensor, " r"], first: int, last: int
    ) -> Float[Tensor, "r n d"]:
        """Blocks first..last on the states of some sequences."""
        with self.model.padding_of(self.tokens.attention_mask[rows]):
            return run_blocks(self.model, states, first, last, self.mask[rows], self.positions[rows])
