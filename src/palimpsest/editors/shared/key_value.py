"""What all key-value writers share: settings, contexts, target vectors and the layer-by-layer write.

ROME, MEMIT and COMEBA-HK differ in the statistics they solve against and in where the result is kept; everything else
is here, once.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.editors.base import Editor, FailedEdit, edit_name, require
from palimpsest.editors.shared.contexts import longest_context, sample_contexts
from palimpsest.editors.shared.factors import FactoredCovariance, factored
from palimpsest.editors.shared.key_system import SOLVERS, KeySystem
from palimpsest.editors.shared.keys import KeyWalk
from palimpsest.editors.shared.layer_writer import write_layers
from palimpsest.editors.shared.stored_targets import StoredTargets, about_targets
from palimpsest.editors.shared.target_vectors import Search, TargetVectors, search_target_vectors
from palimpsest.editors.shared.target_vectors_plain import search_target_vectors_plain
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit, SettingsError
from palimpsest.models.loading import LanguageModel

SEARCHES = {"fast": search_target_vectors, "plain": search_target_vectors_plain}


@dataclass(frozen=True)
class KeyValueSettings:
    """Hyper-parameters of the family, named and set as in MEMIT for GPT2-XL (spec 3.1).

    Attributes:
        layers: edited layers, in order; z is searched at the last one.
        context_lengths: (tokens, how many) of each group of generated contexts, besides the bare prompt.
        context_texts: contexts given by hand instead: groups of texts, the first one ("",).
        steps, learning_rate, learning_rate_ratio, clamp, kl_weight, decay, stop_loss, loss_layer: of the search of z
            (see `Search`); learning_rate_ratio replaces learning_rate by a multiple of |h_0|.
        target_search: "fast", or "plain" for the one-by-one form it is held to.
    """

    layers: tuple[int, ...] = (13, 14, 15, 16, 17)
    context_lengths: tuple[tuple[int, int], ...] = ((10, 5),)
    context_texts: tuple[tuple[str, ...], ...] | None = None
    steps: int = 20
    learning_rate: float = 0.5
    learning_rate_ratio: float | None = None
    clamp: float = 0.75
    kl_weight: float = 0.0625
    decay: float = 0.5
    stop_loss: float = 0.05
    loss_layer: int | None = None
    target_search: str = "fast"

    def __post_init__(self) -> None:
        require(bool(self.layers), "layers", self.layers, "give at least one layer")
        require(
            list(self.layers) == sorted(set(self.layers)),
            "layers",
            self.layers,
            "layers must rise, without repetition",
        )
        require(self.steps >= 1, "steps", self.steps, "at least one pass is needed")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be positive")
        ratio = self.learning_rate_ratio
        require(ratio is None or ratio > 0, "learning_rate_ratio", ratio, "must be positive, or null")
        require(self.stop_loss >= 0, "stop_loss", self.stop_loss, "must be a number, and not negative")
        require(
            self.loss_layer is None or self.loss_layer >= self.layers[-1],
            "loss_layer",
            self.loss_layer,
            "the loss must be read at the last edited layer or above it",
        )
        require(self.clamp > 0, "clamp", self.clamp, "must be positive, as a multiple of |h_0|")
        require(
            self.kl_weight >= 0 and self.decay >= 0,
            "kl_weight, decay",
            (self.kl_weight, self.decay),
            "must not be negative",
        )
        require(
            self.target_search in SEARCHES,
            "target_search",
            self.target_search,
            f"one of {', '.join(SEARCHES)}",
        )
        require(
            all(number >= 1 for group in self.context_lengths for number in group),
            "context_lengths",
            self.context_lengths,
            "a group has at least one token and one text",
        )
        groups = self.context_texts
        require(
            groups is None or (len(groups) > 0 and tuple(groups[0]) == ("",)),
            "context_texts",
            groups,
            'the first group must be [""], the bare prompt',
        )

    def search(self, site: str = "block") -> Search:
        """The part that concerns target vectors."""
        return Search(
            layer=self.layers[-1],
            steps=self.steps,
            learning_rate=self.learning_rate,
            learning_rate_ratio=self.learning_rate_ratio,
            clamp=self.clamp,
            kl_weight=self.kl_weight,
            decay=self.decay,
            stop_loss=self.stop_loss,
            loss_layer=self.loss_layer,
            site=site,
        )


@dataclass(frozen=True)
class LeastSquaresSettings(KeyValueSettings):
    """Those of methods that weigh new keys against C_0.

    Attributes:
        lam: lambda, weight of C_0 (Eq. 15).
        lam_ratio: lambda / d_k, to carry a setting over to another width (spec 3.3); replaces lam when given.
        solver: "woodbury", on factors that are kept, or "cholesky", a new factor for each batch (`key_system.py`).
    """

    lam: float | None = 20000.0
    lam_ratio: float | None = None
    solver: str = "woodbury"

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.lam if self.lam_ratio is None else self.lam_ratio
        require(
            chosen is not None and chosen > 0,
            "lam / lam_ratio",
            chosen,
            "one of the two must be given and positive",
        )
        require(self.solver in SOLVERS, "solver", self.solver, f"one of {', '.join(SOLVERS)}")


def check_fit(settings: KeyValueSettings, model: LanguageModel) -> None:
    """Refuse layers that the model does not have, to edit or to read the loss at, and contexts that it cannot read.

    Raises:
        ModelError: an edited layer does not exist. SettingsError: names the setting.
    """
    for layer in settings.layers:
        model.block(layer)
    read = settings.loss_layer
    if read is not None and not (
        read < model.n_blocks and (settings.target_search == "fast" or read == model.n_blocks - 1)
    ):
        raise SettingsError(
            f"loss_layer is {read}, but {model.name} has the blocks 0 to {model.n_blocks - 1}"
            + (
                ", and target_search 'plain' reads the loss at the last one"
                if settings.target_search == "plain"
                else ""
            )
            + ". Leave loss_layer out to read it at the last one"
        )
    longest = max((tokens for tokens, _ in settings.context_lengths), default=0)
    if settings.context_texts is None and longest >= model.context:
        raise SettingsError(
            f"context_lengths asks for texts of {longest} tokens, but {model.name} reads {model.context} with the prompt behind "
            "them. Ask for shorter ones"
        )


class KeyValueEditor(Editor, ABC):
    """An editor that searches target vectors and writes them as values of keys."""

    needs_statistics: ClassVar[bool] = True
    needs_subject: ClassVar[bool] = True
    needs_decoder: ClassVar[bool] = True
    shares_targets: ClassVar[bool] = False
    settings: KeyValueSettings

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        check_fit(settings, model)
        if self.statistics is not None:
            missing = [layer for layer in settings.layers if layer not in self.statistics.layers]
            if missing:
                raise SettingsError(
                    f"the statistics hold layers {list(self.statistics.layers)}, but {self.name} edits {list(settings.layers)}. "
                    f"Collect them for layers {missing} too"
                )
        given = settings.context_texts
        self.set_contexts(
            given if given is not None else sample_contexts(model, settings.context_lengths, seed)
        )
        self.drawn_contexts = self.contexts  # a state brings its own; `remove` goes back to these

    def set_contexts(self, groups: Sequence[Sequence[str]]) -> None:
        """Groups of context texts; kept with the state because keys depend on them (spec quirk 15)."""
        self.contexts = [list(group) for group in groups]

    def use_targets(self, folder: Path | str) -> None:
        """Take z from a search made beforehand instead of searching.

        Right only while every batch starts from the untouched model, as in single-round editing.
        """
        if not self.shares_targets:
            raise SettingsError(
                f"{self.name} searches on the model as it edits it: it cannot use stored target vectors"
            )
        stored = StoredTargets.load(folder)
        stored.check(about_targets(self.model.fingerprint, self.settings.search(), self.contexts))
        self.stored_targets = stored

    def lowest_block(self) -> int:
        """The first edited layer."""
        return min(self.settings.layers)

    def margin(self) -> int:
        """The longest context and the full stop after it."""
        return longest_context(self.model, self.contexts)

    def editing_bytes(self) -> int:
        """C_0 of the edited layers, as it is stored: no answer needs it, every further edit does (spec, quirk 19)."""
        if self.statistics is None:
            return 0
        matrices = (self.statistics.stored(layer) for layer in self.settings.layers)
        return sum(matrix.nbytes for matrix in matrices)

    def covariance(self, layer: int) -> FactoredCovariance:
        """C_0 [d_k, d_k] of a layer, where its matrix lies, with a factor that all editors share."""
        return factored(self.statistics, layer, self.model.mlp_weight(layer).device)

    def search_targets(
        self,
        batch: Sequence[Edit],
        record: dict[str, Any] | None,
        site: str = "block",
        found: TargetVectors | None = None,
    ) -> tuple[list[Edit], Tensor, list[FailedEdit]]:
        """Target vectors of a batch, unless they were `found` before.

        Returns:
            (edits that have one, z [b, d], the others with their reason).
        """
        if found is not None:
            pass
        elif self.stored_targets is not None:
            found = self.stored_targets.look_up(batch, self.model.device)
        else:
            flat = [context for group in self.contexts for context in group]
            found = SEARCHES[self.settings.target_search](self.model, batch, flat, self.settings.search(site))
        fine = found.finite & torch.isfinite(found.z).all(dim=1)
        failed = [
            FailedEdit(edit_name(edit), "the search of its target vector diverged (loss not finite)")
            for edit, good in zip(batch, fine.tolist(), strict=True)
            if not good
        ]
        if not fine.any():
            raise DivergedEdit("the search of every target vector of the batch diverged (loss not finite)")
        if record is not None:
            record |= {
                "z": found.z.cpu(),
                "initial": found.initial.cpu(),
                "losses": found.losses,
                "contexts": self.contexts,
            }
        return [edit for edit, good in zip(batch, fine.tolist(), strict=True) if good], found.z[fine], failed

    def write(
        self,
        edits: Sequence[Edit],
        targets: Tensor,
        solve: Callable[[int, Tensor, Tensor], Tensor],
        write: Callable[[int, Tensor], None],
        cut: bool,
        record: dict[str, Any] | None,
    ) -> None:
        """Write z into the layers (see `layer_writer`)."""
        walk = KeyWalk(
            self.model, edits, self.contexts, self.settings.layers[0], cut, share=not self.padding_counts
        )
        write_layers(walk, self.settings.layers, targets, solve, write, record)


class LeastSquaresEditor(KeyValueEditor, ABC):
    """One whose updates solve the least-squares problem of all keys of a batch (MEMIT, COMEBA-HK)."""

    settings: LeastSquaresSettings

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self._systems: dict[int, KeySystem] = {}

    @property
    def lam(self) -> float:
        """lambda."""
        ratio = self.settings.lam_ratio
        return float(self.settings.lam) if ratio is None else ratio * self.model.inner_width  # type: ignore[arg-type]

    def system(self, layer: int, weight: float = 1.0) -> KeySystem:
        """What solves against lambda C_0 and earlier keys of a layer, these weighted by `weight`."""
        if layer not in self._systems:
            self._systems[layer] = KeySystem(self.covariance(layer), self.lam, weight, self.settings.solver)
        return self._systems[layer]
