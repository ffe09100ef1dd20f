"""Bases of key-value writers whose updates go into the MLP matrices themselves: `InPlace`, and batch by batch `MatrixWriter`.

`InPlace` (ROME) holds the matrices: saving, loading, removing. `MatrixWriter` (MEMIT) makes whole batches too: searching z, the
walk through the layers, the way back when something fails. A subclass says how the update of one layer is solved (`_solve`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.carried import carried_bytes, carried_tensors, read_carried
from palimpsest.editors.shared.key_value import KeyValueEditor, LeastSquaresEditor
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.edits import Edit


class InPlace(KeyValueEditor):
    """Keeps nothing but the sums of its updates, and the contexts they were computed with.

    Attributes:
        weights: the matrices of `settings.layers`.
    """

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self.weights = EditedWeights(model, settings.layers)

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


class MatrixWriter(InPlace, LeastSquaresEditor):
    """z on the current weights, then layer by layer: W^l += Delta^l.

    Attributes:
        carried: names of attributes in which `_solve` keeps something from batch to batch: dicts by layer, whose values (a
            tensor, or the `Past` that `KeySystem.solve` gives) it replaces and never changes in place. A batch that fails
            takes them back too, `remove` empties them, and they are part of the state.
    """

    carried: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self._forget()

    @abstractmethod
    def _solve(
        self, layer: int, keys: Float[Tensor, "b d_k"], residuals: Float[Tensor, "b d"]
    ) -> Float[Tensor, "d d_k"]:
        """Delta^l; a row of `keys` is k_i, a row of `residuals` what is to be added to W k_i."""

    def _forget(self) -> None:
        for name in self.carried:
            setattr(self, name, {})

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """One batch, as a whole or not at all."""
        before, carried = self.weights.snapshot(), {name: dict(getattr(self, name)) for name in self.carried}
        edits, targets, failed = self.search_targets(batch, record)
        try:
            self.write(edits, targets, self._solve, self.weights.add, cut=True, record=record)
            refuse_broken(self.model, edits)
        except BaseException:  # an interrupt too must not leave half a batch behind
            self.weights.restore(before)
            for name, kept in carried.items():
                setattr(self, name, kept)
            raise
        return failed

    def state(self) -> EditorState:
        """The sums of all updates, the contexts, and what is carried."""
        found = super().state()
        for name in self.carried:
            found.tensors |= carried_tensors(name, getattr(self, name))
        return found

    def load_state(self, state: EditorState) -> None:
        """Take over a state. All of it is read before anything is changed, so that none is half loaded."""
        layers, device = self.settings.layers, self.model.device
        found = {name: read_carried(name, state.tensors, layers, device) for name in self.carried}
        super().load_state(state)
        for name, kept in found.items():
            setattr(self, name, kept)

    def remove(self) -> None:
        """Restore the weights, and forget what was carried."""
        super().remove()
        self._forget()

    def editing_bytes(self) -> int:
        """Statistics, and what is carried."""
        return super().editing_bytes() + sum(carried_bytes(getattr(self, name)) for name in self.carried)
