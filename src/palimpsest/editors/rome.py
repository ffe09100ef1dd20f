"""ROME: Rank-One Model Editing (Meng et al. 2022, NeurIPS; arXiv 2202.05262). One fact, one layer, a rank-one update.

    k* = mean key over contexts,   v* = MLP output searched so that the model says the target      (Eq. 3, 4)
    u  = C_0^{-1} k*,   Lambda = (v* - W k) / (u^T k),   W^ = W + Lambda u^T                           (Eq. 2)

W [d, d_k]. In the released code k* is the mean over contexts in u but k is the key of the bare prompt alone; when the two
differ, u^T k can be tiny and the update blows up ("disabling edits"). `form: corrected` (default; R-ROME, arXiv
2403.07175) uses k* everywhere; `form: released` is the original.

Spec: docs/spec/comeba_hk.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit, edit_name, require
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.key_value import SEARCHES, KeyValueSettings
from palimpsest.editors.shared.keys import KeyWalk
from palimpsest.editors.shared.matrix_writer import InPlace
from palimpsest.editors.shared.target_vectors import TargetVectors
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit, EditError
from palimpsest.models.families import apply_matrix


@dataclass(frozen=True)
class Settings(KeyValueSettings):
    """ROME's hyper-parameters for GPT2-XL: one layer, clamp 4, ten contexts of 5 and ten of 10 tokens.

    Attributes:
        form: "corrected" or "released", see the file's first lines.
        use_statistics: False leaves C_0 out, u = k* (what a widely used toolkit ships as "mom2_adjustment: false").
    """

    layers: tuple[int, ...] = (17,)
    context_lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    clamp: float = 4.0
    form: str = "corrected"
    use_statistics: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.layers) == 1, "layers", self.layers, "ROME edits one layer")
        require(self.form in ("corrected", "released"), "form", self.form, "corrected or released")


class Rome(InPlace):
    """The edits of a batch are made one after the other, each on the model the previous one left."""

    name = "rome"
    settings_type = Settings
    settings: Settings
    prepares_rounds = True

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self._ahead: dict[tuple[str, str, str | None], TargetVectors] = {}  # of the untouched model
        self._untouched = True

    def prepare(self, coming: Sequence[Edit]) -> None:
        """Search v* of edits that will each be made on the untouched model together (single rounds)."""
        self._ahead.clear()
        usable, _ = self._check(coming)
        if not self._untouched or len(usable) < 2:
            return
        flat = [context for group in self.contexts for context in group]
        search = SEARCHES[self.settings.target_search]
        found = search(self.model, usable, flat, self.settings.search("mlp"))
        for row, edit in enumerate(usable):
            self._ahead[edit.prompt, edit.target, edit.subject] = found.rows([row])

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Rank-one updates, one by one."""
        failed, notes = [], []
        start = self.weights.snapshot()
        for edit in batch:
            note: dict[str, Any] | None = {} if record is not None else None
            before = self.weights.snapshot()
            try:
                self._edit_one(edit, note)
                refuse_broken(self.model, [edit])
            except EditError as error:
                self.weights.restore(before)
                failed.append(FailedEdit(edit_name(edit), str(error)))
            except BaseException:
                self.weights.restore(start)
                raise
            notes.append(note)
        if record is not None:
            record["edits"] = notes
        return failed

    def _edit_one(self, edit: Edit, record: dict[str, Any] | None) -> None:
        layer = self.settings.layers[0]
        ahead = self._ahead.get((edit.prompt, edit.target, edit.subject)) if self._untouched else None
        _, targets, _ = self.search_targets([edit], record, site="mlp", found=ahead)
        flat = [context for group in self.contexts for context in group]
        mean_key = self._key(edit, flat)
        used = mean_key if self.settings.form == "corrected" else self._key(edit, [""])
        direction = self._direction(mean_key)
        output = apply_matrix(self.model.mlp_weight(layer).to(torch.float64), used) + self._bias(layer)
        denominator = direction @ used
        if denominator.abs() < 1e-12:
            raise DivergedEdit("u^T k is zero: the rank-one update is not defined (use form: corrected)")
        update = torch.outer((targets[0].to(torch.float64) - output) / denominator, direction)
        self._untouched = False
        self.weights.add(layer, update)
        if record is not None:
            record |= {
                "key": used.cpu(),
                "u": direction.cpu(),
                "denominator": float(denominator),
                "update": update.float().cpu(),
            }

    def _key(self, edit: Edit, contexts: list[str]) -> Tensor:
        layer = self.settings.layers[0]
        keys, _ = KeyWalk(self.model, [edit], (contexts,), layer, cut=True).keys_and_state(layer)
        return keys[0].to(torch.float64)

    def _direction(self, key: Tensor) -> Tensor:
        """u, of length one (the length cancels in Eq. 2)."""
        if self.settings.use_statistics:
            key = self.covariance(self.settings.layers[0]).solve(key[:, None])[:, 0]
        return key / key.norm()

    def _bias(self, layer: int) -> Tensor:
        bias = self.model.mlp_out(layer).bias
        return torch.zeros((), dtype=torch.float64) if bias is None else bias.to(torch.float64)

    def load_state(self, state: EditorState) -> None:
        """Write a saved update into the model."""
        super().load_state(state)
        self._ahead.clear()
        self._untouched = not any(bool(update.any()) for update in self.weights.updates.values())

    def remove(self) -> None:
        """Restore the weights, and the contexts that this editor drew. What was prepared with these stays."""
        others = self.contexts != self.drawn_contexts  # those of a state that was loaded
        super().remove()
        if others:
            self._ahead.clear()
        self._untouched = True


EDITOR = Rome
