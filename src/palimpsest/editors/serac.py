"""SERAC: a memory of edits, a scope classifier, and a counterfactual model beside a frozen base (Mitchell et al. 2022).

arXiv 2206.06520, section 3. With the memory Z of texts z_i = (x_e, y_e), the classifier g and the small model h:

    i* = argmax_i g(z_i, x)        out(x) = h([z_i*; x])  if g(z_i*, x) > threshold,  else f(x)

A soft gate gives log((1 - g) p_f + g p_h) for every input instead. Editing is appending a text; g and h are trained
beforehand (shared/serac_learner.py, `palimpsest train-editor`) and serve any number of edits. Retrieval is top-1, the gate
acts once per input, h sees only the edit that was retrieved. With `counterfactual: base` the base itself reads the edit: the
"retrieve and prompt" baseline.

Deviations of later re-runs, as settings (spec section 6): `rephrase: false` (E1: g learns the wording of prompts),
`objective: mixture` with `gate: soft` (E2), `texts: released` (E3: the stored text of a decoder's edit is cut at its last
blank for g, while queries are asked with the answer that is being scored), `memory: last_batch` (E9: the grown memory is
dropped, so that sequential edits are those of one batch only).

Spec: docs/spec/serac_mend.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.base import read_settings, require
from palimpsest.editors.shared.counterfactual import SCRATCH, EditReader, check_template, counterfactual_model
from palimpsest.editors.shared.learned import open_trained
from palimpsest.editors.shared.learned_weights import learned, take
from palimpsest.editors.shared.routed_editor import RoutedEditor, StoredEdit
from palimpsest.editors.shared.routed_output import Prompts, Voice
from palimpsest.editors.shared.scope_classifier import ScopeClassifier, ScopeShape
from palimpsest.editors.shared.scope_memory import ScopeMemory
from palimpsest.editors.shared.serac_learner import SeracLearner, releases, scope_text
from palimpsest.learning.artefact import TrainedEditor
from palimpsest.learning.settings import TrainingSettings
from palimpsest.models.loading import LanguageModel


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Hyper-parameters; `Training` has those of the loop. Defaults are the released ones (spec 1.5) where it has any.

    Attributes:
        gate: "hard" (the reported method) or "soft".
        threshold: g must be larger to open a hard gate.
        memory: "all" edits are kept, or those of the "last_batch" only (E9).
        replace_same_prompt: a new edit takes the place of stored ones with its very prompt.
        texts: "corrected", or "released" (E3; decoders only).
        classifier, encoder, distance, distance_heads, scale, bounded, pooling: see `ScopeShape`.
        scope_width, scope_blocks, scope_heads: of an encoder made from scratch.
        freeze: train only so many last blocks of the encoder, and its head; None = all of it.
        counterfactual: "scratch", "base" (no model of its own), or where it is read from.
        cf_width, cf_blocks, cf_heads: of a counterfactual model made from scratch.
        initial_range: standard deviation of the weights of either, when made from scratch (T5 has its own rule).
        cf_steps: the counterfactual model is trained for so many steps only; None = as long as the classifier. No effect with
            objective: mixture, whose loss trains both.
        cf_right: its training also ends once so many training inputs in a row were answered rightly, given the gold edit; None =
            it goes on. No effect with objective: mixture.
        template, separator: text of an edit as h reads it, and what stands between it and the input.
        objective: "supervised", or "mixture" (E2: the loss of the soft mixture, without knowing what is in scope).
        negatives: out-of-scope pairs of a step: "diagonal" (out-of-scope input i with edit i), "all" (each of these with each
            edit), or "every" (and each in-scope input with the edits that are not its own). No effect with objective: mixture,
            which has no pairs.
        lr, lr_counterfactual: of Adam for g and h.
        c_edit, c_scope: weights of L_h and L_g.
    """

    k_train: int = 10
    steps: int = 1_000_000
    patience: int | None = 40_000
    gate: str = "hard"
    threshold: float = 0.5
    memory: str = "all"
    replace_same_prompt: bool = False
    texts: str = "corrected"
    classifier: str = "embedding"
    encoder: str = SCRATCH
    distance: str = "sq_l2"
    distance_heads: int = 1
    scale: float = 1.0
    bounded: bool = False
    pooling: str = "first"
    scope_width: int = 64
    scope_blocks: int = 2
    scope_heads: int = 4
    freeze: int | None = None
    counterfactual: str = SCRATCH
    cf_width: int = 64
    cf_blocks: int = 2
    cf_heads: int = 4
    initial_range: float = 0.02
    cf_steps: int | None = None
    cf_right: int | None = None
    template: str = "{prompt} {target}"
    separator: str = " "
    objective: str = "supervised"
    negatives: str = "diagonal"
    lr: float = 1e-5
    lr_counterfactual: float = 1e-5
    c_edit: float = 0.1
    c_scope: float = 1.0

    EDIT_TIME: ClassVar[frozenset[str]] = frozenset({"gate", "threshold", "memory", "replace_same_prompt"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("gate", ("hard", "soft")),
            ("memory", ("all", "last_batch")),
            ("texts", ("corrected", "released")),
            ("objective", ("supervised", "mixture")),
            ("negatives", ("diagonal", "all", "every")),
        ):
            require(getattr(self, name) in known, name, getattr(self, name), " or ".join(known))
        require(0 < self.threshold < 1, "threshold", self.threshold, "between 0 and 1")
        for name in ("lr", "lr_counterfactual", "c_edit", "c_scope"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("freeze", "cf_steps", "cf_right"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least one, or null for all")
        require(self.cf_width % self.cf_heads == 0, "cf_heads", self.cf_heads, "must divide cf_width")
        require(self.cf_blocks >= 1, "cf_blocks", self.cf_blocks, "at least one")
        check_template(self.template)
        self.scope()

    def scope(self) -> ScopeShape:
        """What the classifier is."""
        return ScopeShape(
            classifier=self.classifier,
            encoder=self.encoder,
            width=self.scope_width,
            blocks=self.scope_blocks,
            heads=self.scope_heads,
            initial_range=self.initial_range,
            distance=self.distance,
            distance_heads=self.distance_heads,
            scale=self.scale,
            bounded=self.bounded,
            pooling=self.pooling,
        )

    def reader(self, base: LanguageModel, seed: int) -> EditReader:
        """h, with random weights where it is made from scratch."""
        shape: dict[str, Any] = {"width": self.cf_width, "blocks": self.cf_blocks, "heads": self.cf_heads}
        shape["initial_range"] = self.initial_range
        model = counterfactual_model(base, self.counterfactual, shape, seed)
        segments = self.counterfactual == SCRATCH and base.kind == "encoder"
        return EditReader(base, model, self.template, self.separator, segments)


class Serac(RoutedEditor):
    """Inputs that the classifier puts into the scope of a stored edit are answered by the counterfactual model.

    Attributes:
        classifier, reader: g and h, as they were trained.
        scope: the stored edits as g needs them.
    """

    name = "serac"
    settings_type = Settings
    learns = True
    settings: Settings
    trained: TrainedEditor

    def __init__(self, model: LanguageModel, settings: Settings, trained: TrainedEditor, seed: int = 0):
        self.classifier = ScopeClassifier(model, settings.scope(), seed)
        self.reader = settings.reader(model, seed)
        take(self.classifier, self.reader, trained.tensors)
        self.scope = ScopeMemory(self.classifier)
        super().__init__(model, settings, seed=seed)
        self.trained = trained

    @classmethod
    def read_inputs(cls, model: LanguageModel, settings: Any, given: Any) -> tuple[Any, Any]:
        """As every editor; `given` is the training (`make_editor(trained=...)`): a TrainedEditor or the folder of one."""
        return open_trained(cls, model, settings, given)

    @classmethod
    def learner(cls, model: LanguageModel, settings: Any, seed: int) -> Any:
        """What `palimpsest train-editor` trains: see `shared/serac_learner.py`."""
        chosen: Settings = read_settings(cls, settings)
        return SeracLearner(
            model, chosen, ScopeClassifier(model, chosen.scope(), seed), chosen.reader(model, seed)
        )

    # what RoutedEditor asks for ----------------------------------------------------------------------------------------

    def _voice(self) -> Voice:
        return self.reader

    def _mixes(self) -> bool:
        return self.settings.gate == "soft"

    def _scores(self, asked: Prompts) -> Float[Tensor, "b n"]:
        return self.scope.log_scope(asked.texts(whole=releases(self.model, self.settings.texts)))

    def _in_scope(self, score: Float[Tensor, " b"]) -> Tensor:
        return score.exp() > self.settings.threshold

    def _share(self, score: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return score.exp()

    def _shown(self, score: float) -> float:
        return float(torch.tensor(score).exp())

    def _stored(self, new: Sequence[StoredEdit]) -> None:
        texts = self.settings.texts
        self.scope.append([scope_text(self.model, texts, edit.prompt, edit.target) for edit in new])
        self.reader.memory += [(edit.prompt, edit.target) for edit in new]

    def _kept(self, places: Sequence[int]) -> None:
        self.scope.keep(places)
        self.reader.memory[:] = [self.reader.memory[place] for place in places]
        self.reader.forget()

    def _identity(self) -> dict[str, Any]:
        return {"training": self.trained.fingerprint}

    # edits -------------------------------------------------------------------------------------------------------------

    def _staying(self, new: Sequence[StoredEdit]) -> Sequence[int]:
        """None with memory: last_batch."""
        return [] if self.settings.memory == "last_batch" else super()._staying(new)

    def state_bytes(self) -> int:
        """Both networks, and the stored texts."""
        return super().state_bytes() + sum(
            tensor.nbytes for tensor in learned(self.classifier, self.reader).values()
        )


EDITOR = Serac
