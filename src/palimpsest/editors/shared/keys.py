"""Keys k: what enters the second MLP matrix at the subject's last token, averaged over contexts (spec 1.6).

The sequences of a batch are carried through the model block by block, so that nothing below the layer being edited is
computed twice: only that layer's matrix changes between two steps (spec 8.2). Edits share a pass as far as memory lets them,
and the contexts before their prompts are carried once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.beginnings import States, take_apart
from palimpsest.editors.shared.contexts import put_before
from palimpsest.edits import Edit
from palimpsest.models.hooks import captured_inputs, first_hooked
from palimpsest.models.loading import LanguageModel
from palimpsest.models.memory import block_bytes, in_parts
from palimpsest.models.partial import Noted
from palimpsest.models.tokens import pad, subject_index, tokenise

T = TypeVar("T")


class KeyWalk:
    """b edits in all their contexts, at the input of block `layer`, which grows as the walk advances.

    Args:
        contexts: groups of texts put before the prompt, the first group holding only the bare one (""). A key is the mean
            over each group, then over groups: with one group of five, the bare prompt weighs 1/2 (released code).
        cut: drop the tokens after the subject, which no key can depend on. Not with hook layers, whose scope decision
            looks at the whole sequence.
        share: carry what sequences begin with alike once for all. Not where padding counts, whose states it would change.

    With `LanguageModel.lean` off nothing is cut, and every layer is reached from the embeddings.
    """

    def __init__(
        self,
        model: LanguageModel,
        edits: Sequence[Edit],
        contexts: Sequence[Sequence[str]],
        first_layer: int,
        cut: bool,
        share: bool = True,
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
        self.tokens, place = pad(model, ids), torch.tensor(subject, device=model.device)
        self.n_edits = len(edits)
        weights = [1.0 / (len(contexts) * len(group)) for group in contexts for _ in group]
        self.weights = torch.tensor(weights, device=model.device)
        self.bare = torch.arange(len(edits), device=model.device) * len(weights)
        # Hooks may read whole rows: nothing is apart from the first block with one on.
        self.whole_from = first_hooked(model) if model.lean and share else 0
        self.context = torch.arange(len(texts), device=model.device) % len(weights)
        self.apart = take_apart(self.tokens, self.context, place * int(self.whole_from > 0))
        self.subject = place - self.apart.offset
        self.states = self.apart.embed(model)
        self.advance(first_layer)

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Carry the sequences on to the input of block `layer`, through the model as it is now."""
        if layer <= self.layer:
            return
        if not self.model.lean:
            self.layer, self.states = 0, self.apart.embed(self.model)
        if self.layer < self.whole_from < layer:
            self._carry(self.whole_from)
        self._join(layer - 1)
        self._carry(layer)

    def _join(self, last: int) -> None:
        """Put the rows together again before a stretch that ends with block `last`, when it has hooks."""
        if last < self.whole_from or not self.apart.shared:
            return
        states, self.subject = self.apart.join(self.states), self.subject + self.apart.offset
        self.apart = take_apart(self.tokens, self.context, torch.zeros_like(self.subject))
        self.states = self.apart.split(states)

    def _carry(self, layer: int) -> None:
        first, last, rest = self.layer, layer - 1, self.states.rest
        beginnings, kept = self.apart.run_beginnings(self.model, self.states.beginnings, first, last)

        def carry(edits: slice) -> Tensor:
            rows = self._rows(edits)
            after = self.apart.run_rest(self.model, rest[rows], first, last, kept, rows)
            if len(after) == len(rest):
                return after
            rest[rows] = after  # in place: the states of a large batch are not held twice
            return rest

        self.states = States(beginnings, self._in_parts(carry)[-1])
        self.layer = layer

    @torch.no_grad()
    def keys_and_state(self, target_layer: int) -> tuple[Float[Tensor, "b d_k"], Float[Tensor, "b d"]]:
        """Keys of the block the walk has reached, and where the bare prompts stand at `target_layer`.

        Returns:
            K [b, d_k] in float32 or wider, and h [b, d] in the model's dtype, the output of block `target_layer` at the subject.
        """
        self._join(target_layer)
        _, kept = self.apart.run_beginnings(self.model, self.states.beginnings, self.layer, target_layer)
        keys, states = zip(
            *self._in_parts(lambda edits: self._keys_of(edits, target_layer, kept)), strict=True
        )
        return torch.cat(keys), torch.cat(states)

    def _keys_of(self, edits: slice, target_layer: int, kept: Noted) -> tuple[Tensor, Tensor]:
        """`keys_and_state` of some edits; `kept`: keys and values of the beginnings."""
        rows, bare, run = self._rows(edits), self.bare[edits], self.apart.run_rest
        with captured_inputs({0: self.model.mlp_out(self.layer)}) as seen:
            after = run(self.model, self.states.rest[rows], self.layer, self.layer, kept, rows)
        at_subject = seen[0][torch.arange(len(after), device=after.device), self.subject[rows]]
        wide = at_subject.to(torch.promote_types(at_subject.dtype, torch.float32))
        keys = (wide.view(len(bare), len(self.weights), -1) * self.weights[None, :, None].to(wide)).sum(dim=1)
        state = after[bare - rows.start]
        if target_layer > self.layer:
            state = run(self.model, state, self.layer + 1, target_layer, kept, bare)
        return keys, state[torch.arange(len(bare), device=after.device), self.subject[bare]]

    def _in_parts(self, run: Callable[[slice], T]) -> list[T]:
        """`run` on edits that share a pass. Padding stays that of the whole batch."""
        needed = block_bytes(self.model, *self.apart.rest.input_ids.shape)
        return in_parts(self.n_edits, needed, self.model.device, "keys", run)

    def _rows(self, edits: slice) -> slice:
        """The sequences of some edits."""
        return slice(edits.start * len(self.weights), edits.stop * len(self.weights))
