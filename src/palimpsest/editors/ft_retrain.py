"""FT+Retrain: fine-tuning of one matrix with replay of all edits so far (Rolnick et al. 2019; a baseline of GRACE, section 4).

Every `retrain_frequency` edits, before the current one is made, the matrix is trained for `retrain_epochs` passes over all
edits so far, the current one included, in the order they came, one edit a step of a fresh Adam. The edit itself is then made
as in FT. The released code calls the retraining without its model and copies an unedited one that it never uses
(spec Q14); both starting points that it may have meant are here: `retrain_from: current` or `initial`.

Spec: docs/spec/grace.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.editors.base import EditorState, FailedEdit, require
from palimpsest.editors.ft import FineTuning
from palimpsest.editors.ft import Settings as FineTuningSettings
from palimpsest.edits import Edit
from palimpsest.models.batching import Batching
from palimpsest.models.objectives import encode
from palimpsest.models.upper import Upper


@dataclass(frozen=True)
class Settings(FineTuningSettings):
    """Hyper-parameters of the released code (GRACE spec, section 4).

    Attributes:
        retrain_frequency: edits from one retraining to the next.
        retrain_epochs: passes over the edits.
        retrain_from: "current" weights, or the "initial" ones of the unedited model.
        retrain_memory: only so many of the latest edits are replayed; None = all, as released (its option of
            this name is not read).
    """

    steps: int = 100
    learning_rate: float = 1e-2
    epsilon: float | None = None
    loss: str = "own"
    stop: str = "argmax"
    retrain_frequency: int = 50
    retrain_epochs: int = 5
    retrain_from: str = "current"
    retrain_memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss == "own", "loss", self.loss, "own")
        for name in ("retrain_frequency", "retrain_epochs"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least one")
        start = self.retrain_from
        require(start in ("current", "initial"), "retrain_from", start, "current or initial")
        memory = self.retrain_memory
        require(memory is None or memory >= 1, "retrain_memory", memory, "at least one, or null for all")


class FineTuningRetrain(FineTuning):
    """Fine-tuning, and now and then everything again."""

    name = "ft_retrain"
    settings_type = Settings
    settings: Settings

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self.past: list[Edit] = []

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Retrain when it is due, then fine-tune on the batch."""
        past, every = [*self.past, *batch], self.settings.retrain_frequency
        before = self.weights.snapshot()
        try:
            if len(past) // every > len(self.past) // every:
                losses = self._retrain(past)
                if record is not None:
                    record["retrain_losses"] = losses
            failed = super().apply(batch, record)
        except BaseException:  # neither half of an edit may stay behind
            self.weights.restore(before)
            raise
        self.past = past
        return failed

    def _retrain(self, past: Sequence[Edit]) -> list[float]:
        """Loss of each pass over the edits."""
        if self.settings.retrain_from == "initial":
            self.weights.restore()
        replayed = past[-self.settings.retrain_memory :] if self.settings.retrain_memory else past
        losses, _ = self.fit(self._singly(replayed), self.settings.retrain_epochs, stop=False)
        return losses

    def _singly(self, edits: Sequence[Edit]) -> list[Upper]:
        """Each edit at the input of the edited block; what lies below is run in batches."""
        lengths = [len(self.model.tokenizer(f"{edit.prompt} {edit.target}")["input_ids"]) for edit in edits]
        found: dict[int, Upper] = {}
        for group in Batching().groups(lengths):
            mine = [edits[place] for place in group]
            inputs = encode(self.model, [edit.prompt for edit in mine], [edit.target for edit in mine])
            upper = Upper(self.model, inputs, self.settings.layer, self.settings.site)
            found |= {place: upper.rows([row]) for row, place in enumerate(group)}
        return [found[place] for place in range(len(edits))]

    def state(self) -> EditorState:
        """The changes, and all edits so far."""
        return EditorState(self.weights.tensors(), {"past": [edit.to_dict() for edit in self.past]})

    def load_state(self, state: EditorState) -> None:
        """Take over a state."""
        past = [Edit.from_dict(edit) for edit in state.plain["past"]]
        super().load_state(state)
        self.past = past

    def remove(self) -> None:
        """Restore the weights and forget the edits."""
        super().remove()
        self.past = []


EDITOR = FineTuningRetrain
