"""Hook layers: a second copy of the MLP output matrix whose output is used only where it differs enough (COMEBA-HK).

For a hooked layer with inputs K^ [d_k, n] (Eq. 16, 17):
    P = W_0 K^ + b,   O = W_h K^ + b,   M_t = |O_t - P_t|,   Z_t = (M_t - mean M) / std M,
    output O_t where Z_t >= alpha, else P_t.
Mean and (unbiased) standard deviation run over the tokens of the sequence. Because the bias cancels, only
D = W_h - W_0 is kept: O - P = D K^.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from palimpsest.errors import DivergedEdit
from palimpsest.models.families import apply_matrix
from palimpsest.models.hooks import Attachment, attach
from palimpsest.models.loading import LanguageModel

VALIDATED, TEMPORARY, WATCHING = "validated", "temporary", "watching"


@dataclass
class HookDecision:
    """What a hook layer saw in one pass: z-scores [b, n], swapped tokens [b, n], real tokens [b, n]."""

    z: Float[Tensor, "b n"]
    swapped: Bool[Tensor, "b n"]
    real: Bool[Tensor, "b n"]

    @classmethod
    def joined(cls, parts: Sequence[HookDecision]) -> HookDecision:
        """Of passes over the parts of a batch, in order and equally wide."""
        names = ("z", "swapped", "real")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass
class HookLayers:
    """The hook layers of a model.

    Attributes:
        difference: D = W_h - W_0 by layer [d, d_k], float32 or wider (the master); zero before the first edit.
        alpha: threshold of each layer.
        mode: how each layer acts: "validated" swaps tokens in scope, "temporary" always gives O (while the layers are
            being written), "watching" only computes Z.
        padding: "masked" leaves padding out of the statistics and never swaps it; "official" treats it as tokens, as
            the released code does (a record's result then depends on what it is batched with; spec 2.1).
    """

    model: LanguageModel
    layers: tuple[int, ...]
    alpha_z: float
    padding: str = "masked"
    difference: dict[int, Tensor] = field(default_factory=dict)
    alpha: dict[int, float] = field(default_factory=dict)
    mode: dict[int, str] = field(default_factory=dict)
    decisions: dict[int, HookDecision] | None = None
    _attachment: Attachment | None = None
    _shadow: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all edits: D = 0, alpha = alpha_z, every layer validated."""
        wide = torch.promote_types(self.model.dtype, torch.float32)
        for layer in self.layers:
            weight = self.model.mlp_weight(layer)
            self.set_difference(layer, torch.zeros(weight.shape, dtype=wide, device=weight.device))
            self.alpha[layer] = self.alpha_z
            self.mode[layer] = VALIDATED

    def set_difference(self, layer: int, difference: Float[Tensor, "d d_k"]) -> None:
        """Set D of a layer. A rounded copy in the model's dtype is used in passes, the master is kept (spec 2.4)."""
        shadow = difference.to(self.model.dtype)
        if not torch.isfinite(shadow).all():
            raise DivergedEdit(f"W_h of hook layer {layer} would not be finite in {shadow.dtype}")
        self.difference[layer], self._shadow[layer] = difference, shadow

    def attach(self) -> None:
        """Hang the hooks (once)."""
        if self._attachment is None:
            self._attachment = attach(
                self.model, {self.model.mlp_out(layer): self._hook(layer) for layer in self.layers}
            )

    def detach(self) -> None:
        """Take the hooks off."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    @contextmanager
    def modes(self, mode: str) -> Iterator[None]:
        """All layers in one mode for the length of a block; validated again afterwards, whatever happens."""
        self.attach()
        try:
            for layer in self.layers:
                self.mode[layer] = mode
            yield
        finally:
            for layer in self.layers:
                self.mode[layer] = VALIDATED

    @contextmanager
    def noting(self) -> Iterator[dict[int, HookDecision]]:
        """Note what each layer decides during passes in the block (the latest pass wins); the innermost of several notes."""
        outer, noted = self.decisions, dict[int, HookDecision]()
        self.decisions = noted
        try:
            yield noted
        finally:
            self.decisions = outer

    def _hook(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            difference = self._shadow[layer]
            if not torch.any(difference):  # nothing was written yet: the layer is inert
                return None
            change = apply_matrix(difference, inputs[0])  # O - P [b, n, d]
            mode = self.mode[layer]
            if mode == TEMPORARY:
                return output + change
            real = self._real(change)
            z = z_scores(change.float().norm(dim=2), real)
            swapped = self.reaches(z, layer) & real
            if self.decisions is not None:
                self.decisions[layer] = HookDecision(z.detach(), swapped.detach(), real)
            return None if mode == WATCHING else output + change * swapped[..., None].to(change.dtype)

        return hook

    def reaches(self, z: Float[Tensor, "b n"], layer: int) -> Bool[Tensor, "b n"]:
        """Eq. 17's Z >= alpha, but for rounding: alpha is the z-score of an edited token in one batch, and in another batch
        its last digits differ. A NaN (one token, or all alike) compares false: not swapped.
        """
        alpha = self.alpha[layer]
        return z >= alpha - max(1e-5, torch.finfo(self.model.dtype).eps) * (1.0 + abs(alpha))

    def _real(self, change: Float[Tensor, "b n d"]) -> Bool[Tensor, "b n"]:
        mask = self.model.padding if self.padding == "masked" else None
        if mask is None:
            return torch.ones(change.shape[:2], dtype=torch.bool, device=change.device)
        return mask[
            :, -change.shape[1] :
        ].bool()  # with kept keys and values the mask also covers earlier tokens


def z_scores(norms: Float[Tensor, "b n"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Z [b, n] of norms M [b, n] over the real tokens of each row (Eq. 17; unbiased standard deviation).

    NaN where a row has one token or all its norms are equal; minus infinity for tokens that are not real.
    """
    weight = real.to(norms.dtype)
    count = weight.sum(dim=1, keepdim=True)
    mean = (norms * weight).sum(dim=1, keepdim=True) / count
    variance = ((norms - mean) ** 2 * weight).sum(dim=1, keepdim=True) / (count - 1)
    return ((norms - mean) / variance.sqrt()).masked_fill(~real, -torch.inf)


def ceiling(tokens: int) -> float:
    """The largest z-score that any of n numbers can reach: (n - 1) / sqrt(n) (spec 2.2); NaN for a single token."""
    return (tokens - 1) / math.sqrt(tokens) if tokens > 1 else math.nan
