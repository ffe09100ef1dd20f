"""Matrices that are written in place, with fp32 masters and a way back, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import DivergedEdit
from palimpsest.models.families import as_stored, matrix_view
from palimpsest.models.loading import LanguageModel


class EditedWeights:
    """One matrix W^l [out, in] of each of some layers: by default the second MLP matrix [d, d_k].

    The sum of all updates is kept in at least fp32 (the master), because small changes would vanish when added to
    half-precision weights again and again (spec 2.4); the model's own parameter is a rounded copy of base + sum.
    """

    def __init__(self, model: LanguageModel, layers: tuple[int, ...], site: str = "mlp_out"):
        self.model, self.layers, self.site = model, layers, site
        self._original = {layer: self.module(layer).weight.detach().clone() for layer in layers}
        self.updates: dict[int, Tensor] = {}
        for layer in layers:
            wide = torch.promote_types(model.dtype, torch.float32)
            self.updates[layer] = torch.zeros_like(
                matrix_view(self.module(layer)), dtype=wide, memory_format=torch.contiguous_format
            )

    def module(self, layer: int) -> Any:
        """The linear map of a layer whose matrix is edited."""
        return self.model.linear(layer, self.site)

    def original(self, layer: int) -> Tensor:
        """The untouched matrix as it lies in memory; a copy."""
        return self._original[layer].clone()

    def add(self, layer: int, update: Float[Tensor, "out in"]) -> None:
        """W^l += update [out, in]; refuses anything that is not finite before it touches the model."""
        if not torch.isfinite(update).all():
            raise DivergedEdit(f"the update of layer {layer} is not finite")
        self.set(layer, self.updates[layer] + update.to(self.updates[layer]))

    def set(self, layer: int, total: Float[Tensor, "out in"]) -> None:
        """Make the sum of all updates of a layer equal to `total` [out, in]."""
        total = total.to(self.updates[layer])
        module = self.module(layer)
        original = self._original[layer]
        stored = as_stored(module, total)
        rounded = original if not total.any() else (original.to(stored.dtype) + stored).to(original.dtype)
        if not torch.isfinite(rounded).all():  # a large update can overflow in half precision
            raise DivergedEdit(f"the weights of layer {layer} would not be finite in {original.dtype}")
        module.weight.data.copy_(rounded)
        self.updates[layer] = total

    def snapshot(self) -> dict[int, Tensor]:
        """The updates as they are now, to go back to."""
        return {layer: update.clone() for layer, update in self.updates.items()}

    def restore(self, updates: dict[int, Tensor] | None = None) -> None:
        """Back to a snapshot, or to the untouched weights."""
        for layer in self.layers:
            self.set(layer, updates[layer] if updates is not None else torch.zeros_like(self.updates[layer]))

    def tensors(self) -> dict[str, Tensor]:
        """For an editor's state."""
        return {f"update.{layer}": update for layer, update in self.updates.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """From an editor's state."""
        for layer in self.layers:
            self.set(layer, tensors[f"update.{layer}"].to(self.model.device))

    def bytes(self) -> int:
        """Size of the updates."""
        return sum(update.numel() * update.element_size() for update in self.updates.values())
