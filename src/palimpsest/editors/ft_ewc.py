"""FT+EWC: fine-tuning of one matrix with elastic weight consolidation (Kirkpatrick et al. 2017; a baseline of GRACE, section 4).

Each edit minimises  L(W) + lambda sum_ij F_ij (W_ij - W*_ij)^2  with a fresh Adam, F the diagonal Fisher information (without
the factor 1/2, as released). Two choices of F and W*:
    fisher: edits      F = mean squared gradient over the last `fisher_mem` edits, the current one included, at the weights as
                       they are now; W* = these weights (as released). F is divided by the number of edits there are, not
                       by fisher_mem, and gradients do not leak from one item into the next (spec Q13).
    fisher: upstream   F from upstream examples on the unedited model (statistics/fisher.py), W* = the unedited weights: EWC as
                       its paper has it.

Spec: docs/spec/grace.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit, read_settings, require
from palimpsest.editors.ft import FineTuning
from palimpsest.editors.ft import Settings as FineTuningSettings
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit, SettingsError, StatisticsError
from palimpsest.models.families import as_stored
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode
from palimpsest.models.upper import Upper
from palimpsest.statistics.fisher import FisherStatistics, squared_gradients


@dataclass(frozen=True)
class Settings(FineTuningSettings):
    """Hyper-parameters of the released code (GRACE spec, section 4).

    Attributes:
        lam: lambda, weight of the penalty.
        fisher: "edits" or "upstream", see above.
        fisher_mem: edits over which F is averaged (with fisher: edits).
    """

    steps: int = 100
    learning_rate: float = 1e-2
    epsilon: float | None = None
    loss: str = "own"
    stop: str = "argmax"
    lam: float = 0.1
    fisher: str = "edits"
    fisher_mem: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss == "own", "loss", self.loss, "own, whose Fisher information is taken")
        require(self.lam >= 0, "lam", self.lam, "must not be negative")
        require(self.fisher in ("edits", "upstream"), "fisher", self.fisher, "edits or upstream")
        require(self.fisher_mem >= 1, "fisher_mem", self.fisher_mem, "at least one")


class FineTuningEwc(FineTuning):
    """Fine-tuning that is held back where the weights matter."""

    name = "ft_ewc"
    settings_type = Settings
    settings: Settings

    def __init__(
        self,
        model: LanguageModel,
        settings: Settings,
        statistics: FisherStatistics | None = None,
        seed: int = 0,
    ):
        super().__init__(model, settings, statistics, seed)
        self.recent: list[Edit] = []
        self._pull: tuple[Tensor, Tensor] | None = None  # (2 lambda F, W*) as W lies in memory

    @classmethod
    def read_inputs(cls, model: LanguageModel, settings: Any, given: Any) -> tuple[Any, Any]:
        """As every editor; with fisher: upstream, `given` is a FisherStatistics or the folder of a saved one."""
        chosen: Settings = read_settings(cls, settings)
        if chosen.fisher != "upstream":
            return chosen, None
        if given is None:
            raise SettingsError(
                f"{cls.name} with fisher: upstream needs Fisher statistics of the model. Collect them with "
                "statistics.fisher.collect_fisher, and pass them as statistics=... (--statistics)"
            )
        found = FisherStatistics.load(given) if isinstance(given, str | Path) else given
        found.check(model, chosen.layer, chosen.site)
        return chosen, found

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Fisher information, then fine-tuning under its penalty."""
        recent = [*self.recent, *batch][-self.settings.fisher_mem :]
        fisher, anchor = self._penalty(recent)
        module = self.weights.module(self.settings.layer)
        self._pull = (2 * self.settings.lam * as_stored(module, fisher).to(anchor), anchor)
        try:
            failed = super().apply(batch, record)
        finally:
            self._pull = None
        self.recent = recent
        if record is not None:
            record["fisher"] = fisher.cpu()
        return failed

    def pull(self, master: Tensor) -> Tensor | None:
        """2 lambda F (W - W*), the gradient of the penalty."""
        if self._pull is None:
            return None
        weight, anchor = self._pull
        return weight * (master - anchor)

    def _penalty(self, recent: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """F [out, in] and W* as it lies in memory, in at least float32."""
        layer, site, model = self.settings.layer, self.settings.site, self.model
        if self.statistics is not None:
            original = self.weights.original(layer)
            wide = torch.promote_types(original.dtype, torch.float32)
            return self.statistics.matrix(layer).to(model.device), original.to(wide)
        inputs = encode(model, [edit.prompt for edit in recent], [edit.target for edit in recent])
        try:
            squares = squared_gradients(model, Upper(model, inputs, layer), layer, site)
        except StatisticsError as error:  # of these edits alone: the run goes on
            raise DivergedEdit(str(error)) from error
        weight = self.weights.module(layer).weight.detach().clone()
        return squares / len(recent), weight.to(torch.promote_types(weight.dtype, torch.float32))

    def state(self) -> EditorState:
        """The changes, and the edits that the next Fisher information is taken over."""
        return EditorState(self.weights.tensors(), {"recent": [edit.to_dict() for edit in self.recent]})

    def load_state(self, state: EditorState) -> None:
        """Take over a state."""
        recent = [Edit.from_dict(edit) for edit in state.plain["recent"]]
        super().load_state(state)
        self.recent = recent

    def remove(self) -> None:
        """Restore the weights and forget the edits."""
        super().remove()
        self.recent = []


EDITOR = FineTuningEwc
