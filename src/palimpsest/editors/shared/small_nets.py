"""Small networks beside a linear map, trained edit after edit: what Defer and the memory network share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.base import EditorState, edit_name
from palimpsest.editors.shared.adapter_editor import AdapterEditor
from palimpsest.edits import Edit
from palimpsest.errors import PalimpsestError
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode
from palimpsest.models.upper import Upper


class SmallNets(AdapterEditor):
    """Parameters that every edit goes on training, with a fresh Adam and without examples of what should stay.

    Attributes:
        parameters: by name, in at least float32.
        edits_made: the adapter passes everything through while it is 0.
    """

    def __init__(self, model: LanguageModel, settings: Any, statistics: Any = None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        self._fresh()

    @abstractmethod
    def _draw(self) -> dict[str, Tensor]:
        """Initial parameters, from `self.generator`."""

    def _fresh(self) -> None:
        self.parameters = {name: tensor.to(self.model.device) for name, tensor in self._draw().items()}
        self.edits_made, self.training = 0, False

    def linear_start(self, outputs: int) -> tuple[Float[Tensor, "o d_in"], Float[Tensor, " o"]]:
        """Weight and bias of a linear map as torch initialises one: uniform within 1 / sqrt(d_in)."""
        limit = self.adapter.key_width**-0.5
        shapes = ((outputs, self.adapter.key_width), (outputs,))
        weight, bias = (
            torch.empty(shape, dtype=self.wide).uniform_(-limit, limit, generator=self.generator)
            for shape in shapes
        )
        return weight, bias

    def linear(self, name: str, states: Float[Tensor, "b d_in"]) -> Float[Tensor, "b o"]:
        """The linear map `name` of the parameters."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return torch.nn.functional.linear(states.to(self.wide), weight, bias)

    def _teach(self, edit: Edit, record: dict[str, Any] | None) -> None:
        inputs = encode(self.model, [edit.prompt], [edit.target])
        upper = Upper(self.model, inputs, self.settings.layer, self.settings.site)
        before = self.parameters
        learning = {name: tensor.clone().requires_grad_(True) for name, tensor in before.items()}
        self.parameters, self.training = learning, True
        try:
            losses = self.minimise(list(learning.values()), lambda: upper.row_losses().mean())
        except BaseException:  # an interrupt too must not leave half an edit behind
            self.parameters = before
            raise
        finally:
            self.training = False
        self.parameters = {name: tensor.detach() for name, tensor in learning.items()}
        self.edits_made += 1
        if record is not None:
            record.setdefault("edits", []).append({"edit": edit_name(edit), "losses": losses})

    def _give(self) -> EditorState:
        tensors = {name: tensor.clone() for name, tensor in self.parameters.items()}
        return EditorState(tensors, {"edits_made": self.edits_made})

    def _take(self, state: EditorState) -> None:
        for name, own in self.parameters.items():
            found = tuple(state.tensors[name].shape) if name in state.tensors else None
            if found != tuple(own.shape):
                raise PalimpsestError(
                    f"the saved state of {self.name} has {name} of shape {found}, but shape {tuple(own.shape)} is "
                    "expected here. Load it into an editor with the settings it was saved from"
                )
        self.parameters = {
            name: state.tensors[name].to(own, copy=True) for name, own in self.parameters.items()
        }
        self.edits_made = int(state.plain["edits_made"])

    def state_bytes(self) -> int:
        """The parameters; constant in the number of edits."""
        return sum(tensor.nbytes for tensor in self.parameters.values())
