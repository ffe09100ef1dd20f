"""What editors with a gated adapter on one linear map share: GRACE, Defer, the memory network.

They edit one example at a time, on the model's own loss, and leave every weight of the model as it is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.editors.base import (
    ONE_EDITS_FAULT,
    Editor,
    EditorState,
    FailedEdit,
    edit_name,
    require,
)
from palimpsest.editors.shared.adam import Adam
from palimpsest.editors.shared.belonging import KEY, refuse_foreign
from palimpsest.editors.shared.gated_adapter import REPLACEMENTS, GatedAdapter, Override, Query
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit, PalimpsestError
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode_prompts_only
from palimpsest.models.upper import Upper


@dataclass(frozen=True)
class AdapterSettings:
    """Hyper-parameters of all of them.

    Attributes:
        layer: block of the linear map (of an encoder-decoder: of the encoder), from 0.
        site: "mlp_in" or "mlp_out", first or second matrix of the MLP, or a dotted path from the block.
        steps: of Adam, for each edit.
        learning_rate: of Adam, which starts afresh at each edit.
        replacement: output positions that are overwritten: "prompt_before", "last", "prompt" or "all".
        stop_loss: an edit is done when its loss is below; None for the paper's fixed number of steps.
    """

    layer: int = 4
    site: str = "mlp_out"
    steps: int = 100
    learning_rate: float = 1.0
    replacement: str = "prompt_before"
    stop_loss: float | None = None

    def __post_init__(self) -> None:
        require(self.layer >= 0, "layer", self.layer, "number of a block, from 0")
        require(self.steps >= 1, "steps", self.steps, "at least one")
        positive = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(positive, "learning_rate", self.learning_rate, "must be positive")
        known = ", ".join(REPLACEMENTS)
        require(self.replacement in REPLACEMENTS, "replacement", self.replacement, f"one of {known}")
        above = self.stop_loss is None or self.stop_loss > 0
        require(above, "stop_loss", self.stop_loss, "must be positive, or null for a fixed number of steps")


class AdapterEditor(Editor):
    """An editor whose whole effect is one gated adapter. A subclass calls its `_fresh` at the end of its `__init__`."""

    identity_fields: ClassVar[tuple[str, ...]] = (
        "layer",
        "site",
        "replacement",
    )  # settings a state depends on
    settings: Any

    def __init__(self, model: LanguageModel, settings: Any, statistics: Any = None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        self.adapter = GatedAdapter(model, settings.layer, settings.site, self._decide, settings.replacement)
        self.wide = torch.promote_types(model.dtype, torch.float32)  # precision of what is learned
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device

    # what a method must say ------------------------------------------------------------------------------------------

    @abstractmethod
    def _decide(self, query: Query) -> Override | None:
        """The rule of the adapter."""

    @abstractmethod
    def _teach(self, edit: Edit, record: dict[str, Any] | None) -> None:
        """Make one edit. Where it raises, the editor must be as before the call."""

    @abstractmethod
    def _fresh(self) -> None:
        """Forget all edits."""

    @abstractmethod
    def _give(self) -> EditorState:
        """What was learned: copies."""

    @abstractmethod
    def _take(self, state: EditorState) -> None:
        """Take over a state that belongs here."""

    # what they share -------------------------------------------------------------------------------------------------

    def _check(self, batch: Sequence[Edit]) -> tuple[list[Edit], list[FailedEdit]]:
        """An edit whose prompt leaves nothing to overwrite is refused: it would be said to be made, and do nothing."""
        usable, failed = super()._check(batch)
        if self.settings.replacement != "prompt_before" or self.model.kind != "decoder" or self.adapter.shift:
            return usable, failed
        asked = encode_prompts_only(self.model, [edit.prompt for edit in usable]).query if usable else ()
        for edit, place in zip(list(usable), list(asked), strict=True):
            if int(place) == 0:
                usable.remove(edit)
                reason = (
                    "the prompt is one token, and replacement 'prompt_before' writes only before the last: nothing "
                    "would be written. Give a longer prompt, or set replacement: prompt"
                )
                failed.append(FailedEdit(edit_name(edit), reason))
        return usable, failed

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """The edits one after the other; one that cannot be made leaves everything as it was before it."""
        failed = []
        before = self.state() if len(batch) > 1 else None  # one alone takes itself back
        self.adapter.attach()
        for edit in batch:
            try:
                self._teach(edit, record)
            except ONE_EDITS_FAULT as error:
                failed.append(FailedEdit(edit_name(edit), str(error)))
            except BaseException:  # out of memory, an interrupt: nobody would be told which edits are made
                if before is not None:
                    self.load_state(before)
                raise
        return failed

    def minimise(self, parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> list[float]:
        """A fresh Adam on the parameters; the losses before each step.

        Raises:
            DivergedEdit: a loss is not finite, before a step or after the last.
        """
        settings, losses = self.settings, list[float]()
        optimiser = Adam(parameters, settings.learning_rate)
        for _ in range(settings.steps):
            value = loss()
            losses.append(float(value.detach()))
            _refuse_loss(losses[-1], len(losses) - 1)
            if settings.stop_loss is not None and losses[-1] < settings.stop_loss:
                return losses
            optimiser.step(torch.autograd.grad(value, parameters))
        with torch.no_grad():
            _refuse_loss(float(loss()), len(losses))
        return losses

    @contextmanager
    def watching(self) -> Iterator[Callable[[], Tensor | None] | None]:
        """On which rows of the latest pass the adapter overwrote anything."""
        self.adapter.latest = None

        def acted() -> Tensor | None:
            latest, self.adapter.latest = self.adapter.latest, None
            return None if latest is None else latest.fired.detach()

        yield acted

    def put_in_place(self) -> None:
        """The adapter hangs from the first edit on."""
        self.adapter.attach()

    def margin(self) -> int:
        """The end token, which a decoder's own loss counts."""
        return int(self.model.kind == "decoder")

    def lowest_block(self) -> int | None:
        """The block of the adapter: what lies below is never changed."""
        return int(self.settings.layer)

    def edited_site(self) -> str | None:
        """The linear map of the adapter."""
        return str(self.settings.site)

    def deciding(self, rows: Upper) -> Callable[[Sequence[int]], Tensor] | None:
        """Whether a row is overwritten, and by what: the model's weights, and what asks, stay the same for ever."""
        query = self.adapter.query_above(rows)

        def decided(chosen: Sequence[int]) -> Tensor:
            mine = list(chosen)
            decision = None
            if self.adapter.is_attached:
                decision = self._decide(Query(query.states[mine], query.outputs[mine]))
            found = query.outputs.new_zeros(len(mine), 1 + self.adapter.value_width, dtype=self.wide)
            if decision is not None:
                found[:, 0] = decision.fired
                found[:, 1:] = torch.where(decision.fired[:, None], decision.value, found[:, 1:])
            return found

        return decided

    def identity(self) -> dict[str, Any]:
        """What a state belongs to."""
        return {"model": self.model.fingerprint} | {
            name: getattr(self.settings, name) for name in self.identity_fields
        }

    def state(self) -> EditorState:
        """Everything learned, with what it belongs to and where the random source stands."""
        found = self._give()
        found.tensors["generator"] = self.generator.get_state().clone()
        found.plain[KEY] = self.identity()
        return found

    def load_state(self, state: EditorState) -> None:
        """Take over a state.

        Raises:
            PalimpsestError: it was saved for another model, layer, site or kind of answer; nothing has changed then.
        """
        refuse_foreign(state, self.identity(), f"state of {self.name}", "model and settings")
        if "generator" not in state.tensors:
            raise PalimpsestError(
                f"this state of {self.name} lacks 'generator', where its random source stood. Save it again with save_state"
            )
        self._take(state)
        self.generator.set_state(state.tensors["generator"].cpu())
        self.adapter.attach()

    def remove(self) -> None:
        """Take the adapter off and forget everything. The weights were never changed."""
        self.adapter.detach()
        self.generator.manual_seed(self.seed)
        self._fresh()


def _refuse_loss(loss: float, steps: int) -> None:
    if not math.isfinite(loss):
        raise DivergedEdit(f"the loss is {loss} after {steps} steps; use a smaller learning_rate")
