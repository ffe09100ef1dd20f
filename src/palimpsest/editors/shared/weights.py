"""Matrices that are written in place, with fp32 masters and a way back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import DivergedEdit, PalimpsestError
from palimpsest.models.families import as_stored, matrix_view
from palimpsest.models.loading import LanguageModel


class EditedWeights:
    """One matrix W^l [out, in] of each of some layers: by default the second MLP matrix [d, d_k].

    The sum of all updates is kept in at least fp32 (the master), because small changes would vanish when added to
    half-precision weights again and again (spec 2.4); the model's own parameter is a rounded copy of base + sum.

    "Untouched" is what was found when this was built. Another editor that writes the same matrix afterwards would be wiped
    out unnoticed, or leave its change in what is restored: no matrix is written that is not as it was left here.
    """

    def __init__(self, model: LanguageModel, layers: tuple[int, ...], site: str = "mlp_out"):
        self.model, self.layers, self.site = model, layers, site
        self._original = {layer: self.module(layer).weight.detach().clone() for layer in layers}
        # Layers whose writing was interrupted: not as noted, and still our own.
        self._midway: set[int] = set()
        self.updates: dict[int, Tensor] = {}
        for layer in layers:
            wide = torch.promote_types(model.dtype, torch.float32)
            self.updates[layer] = torch.zeros_like(
                matrix_view(self.module(layer)), dtype=wide, memory_format=torch.contiguous_format
            )

    def module(self, layer: int) -> Any:
        """The linear map of a layer whose matrix is edited."""
        return self.model.linear(layer, self.site)

    def called(self, layer: int) -> str:
        """What errors call a matrix."""
        return f"the matrix {self.site} of layer {layer}"

    def original(self, layer: int) -> Tensor:
        """The untouched matrix as it lies in memory; a copy."""
        return self._original[layer].clone()

    def add(self, layer: int, update: Float[Tensor, "out in"]) -> None:
        """W^l += update [out, in]; refuses what is of another shape or not finite before it touches the model."""
        if update.shape != self.updates[layer].shape:  # torch would spread a smaller one over the matrix
            raise PalimpsestError(
                f"the update of {self.called(layer)} is {' x '.join(map(str, update.shape)) or 'a number'}, the matrix "
                f"{' x '.join(map(str, self.updates[layer].shape))} (out x in). Return a whole update, turned round if need be"
            )
        if not torch.isfinite(update).all():
            raise DivergedEdit(f"the update of layer {layer} is not finite")
        self.set(layer, self.updates[layer] + update.to(self.updates[layer]))

    def set(self, layer: int, total: Float[Tensor, "out in"]) -> None:
        """Make the sum of all updates of a layer equal to `total` [out, in].

        Raises:
            DivergedEdit: the matrix would not be finite.
            PalimpsestError: another editor has changed it.
        """
        self.refuse_foreign([layer])
        self._write(layer, total)

    def _write(self, layer: int, total: Tensor) -> None:
        total = total.to(self.updates[layer])
        rounded = self._rounded(layer, total)
        if not torch.isfinite(rounded).all():  # a large update can overflow in half precision
            raise DivergedEdit(f"the weights of layer {layer} would not be finite in {rounded.dtype}")
        self._midway.add(layer)
        self.module(layer).weight.data.copy_(rounded)
        self.updates[layer] = total
        self._midway.discard(layer)

    def _rounded(self, layer: int, total: Tensor) -> Tensor:
        """The matrix as it lies in memory when the sum of all updates is `total`; the same bits each time."""
        original = self._original[layer]
        if not total.any():
            return original
        stored = as_stored(self.module(layer), total)
        return (original.to(stored.dtype) + stored).to(original.dtype)

    def refuse_foreign(self, layers: Iterable[int] | None = None) -> None:
        """Raise PalimpsestError where a matrix is not as it was last written or found here.

        What was written is worked out again instead of kept: a copy of every matrix would be large.
        """
        for layer in self.layers if layers is None else layers:
            if layer in self._midway:
                continue
            if not torch.equal(self.module(layer).weight, self._rounded(layer, self.updates[layer])):
                raise PalimpsestError(
                    f"{self.called(layer)} of {self.model.name} is not as this editor left it: another editor has changed it "
                    "since. Editors of one matrix are removed in the reverse order: remove() the other one first, or load the "
                    "model anew"
                )

    def snapshot(self) -> dict[int, Tensor]:
        """The updates as they are now, to go back to; refused where another editor has changed a matrix since."""
        self.refuse_foreign()
        return {layer: update.clone() for layer, update in self.updates.items()}

    def restore(self, updates: dict[int, Tensor] | None = None) -> None:
        """Back to a snapshot, or to the untouched weights; where nothing was written there is nothing to take back.

        Raises:
            PalimpsestError: another editor has changed a matrix since; none is written then.
        """
        touched = [layer for layer in self.layers if layer in self._midway or self.updates[layer].any()]
        if updates is not None:
            touched = [layer for layer in self.layers if layer in touched or updates[layer].any()]
        self.refuse_foreign(touched)
        for layer in touched:
            self._write(layer, torch.zeros_like(self.updates[layer]) if updates is None else updates[layer])

    def tensors(self) -> dict[str, Tensor]:
        """For an editor's state."""
        return {f"update.{layer}": update for layer, update in self.updates.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """From an editor's state; refused, before anything is written, where it is of other matrices."""
        refuse_other_layers("update", tensors, self.updates)
        self.refuse_foreign()
        for layer in self.layers:
            self._write(layer, tensors[f"update.{layer}"].to(self.model.device))

    def bytes(self) -> int:
        """Size of the updates."""
        return sum(update.nbytes for update in self.updates.values())


def refuse_other_layers(kind: str, saved: Mapping[str, Tensor], own: Mapping[int, Tensor]) -> None:
    """Raise PalimpsestError unless the tensors "kind.layer" of a state are of the editor's own layers and shapes."""
    found = {name: tuple(tensor.shape) for name, tensor in saved.items() if name.startswith(f"{kind}.")}
    wanted = {f"{kind}.{layer}": tuple(tensor.shape) for layer, tensor in own.items()}
    if found == wanted:
        return

    def told(shapes: Mapping[str, tuple[int, ...]]) -> str:
        each = (f"{name} {' x '.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
        return ", ".join(each) or f"no {kind}"

    raise PalimpsestError(
        f"this state holds {told(found)}, but the editor has {told(wanted)}. Load it into an editor with the layers it was "
        "saved from; nothing was changed"
    )
