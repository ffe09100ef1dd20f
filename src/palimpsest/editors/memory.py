"""Memory network: soft attention over a fixed number of values instead of a codebook (GRACE's ablation; spec section 4).

With q [d_in] the asking state, the output at the chosen positions is always sum_j softmax(W q + b)_j V_j, for
`entries` values V_j [d_out]; the linear map's own output is never used. So every input is changed, upstream too: that
is the point of the ablation. The released code acts before the first edit already (Q16, `from_start`); by default the
model is untouched until then, so that rows of the unedited model mean the same for all editors.

Spec: docs/spec/grace.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import require
from palimpsest.editors.shared.adapter_editor import AdapterSettings
from palimpsest.editors.shared.gated_adapter import Override, Query
from palimpsest.editors.shared.small_nets import SmallNets
from palimpsest.models.loading import LanguageModel


@dataclass(frozen=True)
class Settings(AdapterSettings):
    """Hyper-parameters of `AdapterSettings` (defaults: the released ones), and the memory's own.

    Attributes:
        entries: number of values.
        from_start: act before the first edit, as released.
    """

    learning_rate: float = 0.1
    replacement: str = "all"
    entries: int = 100
    from_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.entries >= 1, "entries", self.entries, "at least one")


class Memory(SmallNets):
    """Attention and values persist over the stream."""

    name = "memory"
    settings_type = Settings
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics: Any = None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        if settings.from_start:
            self.adapter.attach()

    def acts_unedited(self) -> bool:
        """With `from_start` the untrained memory speaks from the beginning."""
        return self.settings.from_start

    def reset(self) -> None:
        """Roll back to the state before the first edit, in which a memory that acts `from_start` acts already."""
        super().reset()
        if self.settings.from_start:
            self.adapter.attach()

    def _draw(self) -> dict[str, Tensor]:
        weight, bias = self.linear_start(self.settings.entries)
        shape = (self.settings.entries, self.adapter.value_width)
        values = torch.rand(shape, dtype=self.wide, generator=self.generator)
        return {"attention.weight": weight, "attention.bias": bias, "values": values}

    def _decide(self, query: Query) -> Override | None:
        if not (self.training or self.edits_made or self.settings.from_start):
            return None
        attention = self.linear("attention", query.states).softmax(dim=1)
        every = torch.ones(len(attention), dtype=torch.bool, device=attention.device)
        return Override(every, attention @ self.parameters["values"])


EDITOR = Memory
