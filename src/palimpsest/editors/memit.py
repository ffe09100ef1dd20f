"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al. 2023, ICLR; arXiv 2210.07229).

A batch of b facts is written into the MLP output matrices W^l [d, d_k] of a few layers l_1 < ... < l_E = L:

    z_i    = h_i^L + delta_i         searched so that the model says the target        (Eq. 16)
    R^l    = (z - h^L) / (L - l + 1)  spread over the remaining layers                  (Eq. 20)
    Delta  = R K^T (lambda C_0 + K K^T)^{-1}                                            (Eq. 14)

with K [d_k, b] the keys at the subjects' last tokens and C_0 [d_k, d_k] = E[k k^T] over a pre-training corpus.
Every call starts from lambda C_0 again: what earlier calls wrote is not protected. That is what COMEBA-HK changes.

Spec: docs/spec/comeba_hk.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.key_value import KeyValueEditor, KeyValueSettings
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.edits import Edit


@dataclass(frozen=True)
class Settings(KeyValueSettings):
    """MEMIT's hyper-parameters: those of `KeyValueSettings`, with MEMIT's lambda for GPT2-XL as default."""

    lam: float | None = 20000.0


class Memit(KeyValueEditor):
    """Batch after batch, each solved against the pre-training statistics alone."""

    name = "memit"
    shares_targets = True
    settings_type = Settings

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self.weights = EditedWeights(model, settings.layers)

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """z on the current weights, then layer by layer."""
        before = self.weights.snapshot()
        edits, targets, failed = self.search_targets(batch, record)
        try:
            self.write(edits, targets, self._solve, self.weights.add, cut=True, record=record)
            refuse_broken(self.model, edits)
        except BaseException:  # an interrupt too must not leave half a batch behind
            self.weights.restore(before)
            raise
        return failed

    def _solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        return self.system(layer).solve(keys, residuals)[0]

    def state(self) -> EditorState:
        """The sums of all updates, and the contexts they were computed with."""
        return EditorState(self.weights.tensors(), {"contexts": self.contexts})

    def load_state(self, state: EditorState) -> None:
        """Write saved updates into the model."""
        contexts = state.plain["contexts"]  # a state without them must not be half loaded
        self.weights.load(state.tensors)
        self.set_contexts(contexts)

    def remove(self) -> None:
        """Restore the weights, and the contexts that this editor drew."""
        self.weights.restore()
        self.set_contexts(self.drawn_contexts)

    def state_bytes(self) -> int:
        """The changed matrices."""
        return self.weights.bytes()


EDITOR = Memit
