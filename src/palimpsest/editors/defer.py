"""Defer: a gate and a value network beside one linear map (the SERAC-like baseline of GRACE; spec section 4).

With q [d_in] the asking state: g = sigmoid(w q + b) and v = V q + c. While an edit is made, the output becomes
g v + (1 - g) o at the chosen positions; afterwards v where g >= threshold, else the map's own output o. Both networks
are trained by every edit on its own loss, with no example of what should stay. Nothing is changed before the first
edit. The released code works on single rows only (Q9); here each row of a batch has its own gate.

Spec: docs/spec/grace.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.editors.base import require
from palimpsest.editors.shared.adapter_editor import AdapterSettings
from palimpsest.editors.shared.gated_adapter import Override, Query
from palimpsest.editors.shared.small_nets import SmallNets


@dataclass(frozen=True)
class Settings(AdapterSettings):
    """Hyper-parameters of `AdapterSettings` (defaults: the released ones), and Defer's own.

    Attributes:
        threshold: the gate is open from here on.
    """

    learning_rate: float = 0.1
    replacement: str = "all"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.threshold < 1, "threshold", self.threshold, "between 0 and 1")


class Defer(SmallNets):
    """Both networks persist over the stream."""

    name = "defer"
    settings_type = Settings
    settings: Settings

    def _draw(self) -> dict[str, Tensor]:
        gate, gate_bias = self.linear_start(1)
        value, value_bias = self.linear_start(self.adapter.value_width)
        return {
            "gate.weight": gate,
            "gate.bias": gate_bias,
            "value.weight": value,
            "value.bias": value_bias,
        }

    def _decide(self, query: Query) -> Override | None:
        if not (self.training or self.edits_made):
            return None
        gate = torch.sigmoid(self.linear("gate", query.states))[:, 0]
        if self.training:
            return Override(torch.ones_like(gate, dtype=torch.bool), self.linear("value", query.states), gate)
        fired = gate >= self.settings.threshold
        return Override(fired, self.linear("value", query.states)) if bool(fired.any()) else None


EDITOR = Defer
