"""COMEBA-HK: Consecutive Batch Model Editing with HooK Layers (Li et al. 2024; arXiv 2403.05330v1).

Facts arrive in batches, one after the other, and nothing is rolled back. Two ideas:

1. Recursive least squares. The update of a batch with keys K_2 [d_k, b] and residuals R [d, b] also respects the keys K'
   of all earlier batches (Eq. 13, 14):
       Delta = R K_2^T C_accu^{-1},   C_accu = lambda C_0 + K' K'^T + K_2 K_2^T
   so that after any number of batches W_h solves the least-squares problem of all of them together.
2. Hook layers. The base weights never change. W_h stands beside W_0, and its output is used only for tokens whose change
   is an outlier within their own sequence: Z_t >= alpha (Eq. 16, 17). alpha starts at alpha_z and follows the batches
   down (Eq. 18): alpha_s = min(alpha_{s-1}, min_i max_t Z_{i,t}), for each hooked layer.

One step (spec 1.4): search z with the validated hooks of the previous step; write layer by layer, layers not yet written
being temporary (always W_h), written ones validated with the old alpha; then measure Z of the batch's prompts on the base
model and lower alpha.

With `hooks: false` this is the paper's ablation: the same recursion, written into the weights themselves.

Spec: docs/spec/comeba_hk.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit, require
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.carried import carried_bytes, carried_tensors, read_carried
from palimpsest.editors.shared.hook_layers import (
    TEMPORARY,
    VALIDATED,
    WATCHING,
    HookDecision,
    HookLayers,
    ceiling,
)
from palimpsest.editors.shared.key_system import NOTHING, Past
from palimpsest.editors.shared.key_value import LeastSquaresEditor, LeastSquaresSettings
from palimpsest.editors.shared.weights import EditedWeights, refuse_other_layers
from palimpsest.edits import Edit
from palimpsest.models.memory import block_bytes, in_parts
from palimpsest.models.tokens import TokenBatch, encode_prompts, subject_index, tokenise


@dataclass(frozen=True)
class Settings(LeastSquaresSettings):
    """Hyper-parameters of `LeastSquaresSettings`, and COMEBA-HK's own.

    Attributes:
        lam: the released default, 15000 (consecutive editing).
        alpha_z: where alpha starts.
        fixed_alpha: True keeps alpha at alpha_z (the paper's Fig. 10, "fixed 3").
        hooks: False writes into the weights (Fig. 4, "w/o HK").
        accumulate: "equation_14", or "released" for what the released code does without hooks, which weighs the past
            keys by lambda too (spec 1.3).
        padding: "masked" or "official", see `HookLayers`. Official needs `target_search: plain`, which pads the
            sequences of one edit together, as the released code does.
        calibrate_with_target: measure Z on prompt + target instead of the prompt (spec quirk 4).
    """

    lam: float | None = 15000.0
    alpha_z: float = 2.2
    fixed_alpha: bool = False
    hooks: bool = True
    accumulate: str = "equation_14"
    padding: str = "masked"
    calibrate_with_target: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(math.isfinite(self.alpha_z), "alpha_z", self.alpha_z, "must be a number")
        require(self.padding in ("masked", "official"), "padding", self.padding, "masked or official")
        require(
            self.accumulate in ("equation_14", "released"),
            "accumulate",
            self.accumulate,
            "equation_14 or released",
        )
        require(
            self.padding == "masked" or self.target_search == "plain",
            "padding",
            self.padding,
            "official padding depends on what is padded together; set target_search: plain",
        )
        require(
            self.accumulate == "equation_14" or not self.hooks,
            "accumulate",
            self.accumulate,
            "the released code differs from Eq. 14 only without hooks; set hooks: false",
        )


class ComebaHk(LeastSquaresEditor):
    """Consecutive batches, remembered keys, and (by default) hook layers."""

    name = "comeba_hk"
    shares_targets = True
    reads_whole_rows = True
    settings_type = Settings
    settings: Settings

    def __init__(self, model, settings, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self.padding_counts = settings.padding == "official"
        self.hooked = (
            HookLayers(model, settings.layers, settings.alpha_z, settings.padding) if settings.hooks else None
        )
        self.weights = None if settings.hooks else EditedWeights(model, settings.layers)
        self._fresh()

    def _fresh(self) -> None:
        """State before the first batch: no key is remembered."""
        self.remembered: dict[int, Past] = {}  # keys of all earlier batches, by layer
        self.alpha_history: list[dict[int, float]] = []

    @property
    def alpha(self) -> dict[int, float]:
        """Threshold of each hooked layer; empty without hooks."""
        return dict(self.hooked.alpha) if self.hooked else {}

    def thresholds(self) -> dict[int, float]:
        """Alpha, which falls with the batches."""
        return self.alpha

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """One step of the algorithm."""
        before = self._keep()
        edits, targets, failed = self.search_targets(batch, record)
        try:
            if self.hooked:
                self._write_hooks(self.hooked, edits, targets, record)
                refuse_broken(self.model, edits)
                self._lower_alpha(self.hooked, edits, record)
            else:
                assert self.weights is not None
                self.write(edits, targets, self._solve, self.weights.add, cut=True, record=record)
                refuse_broken(self.model, edits)
        except BaseException:  # an interrupt too must not leave half a batch behind
            self._take_back(before)
            raise
        return failed

    def _keep(self) -> dict[str, Any]:
        """References are enough to go back to: every writer replaces tensors, none changes them."""
        if self.weights:
            self.weights.refuse_foreign()
        written = self.hooked.difference if self.hooked else self.weights.updates if self.weights else {}
        return {
            "written": dict(written),
            "remembered": dict(self.remembered),
            "alpha": self.alpha,
            "alpha_history": list(self.alpha_history),
        }

    def _take_back(self, kept: dict[str, Any]) -> None:
        for layer, tensor in kept["written"].items():
            if self.hooked:
                self.hooked.set_difference(layer, tensor)
                self.hooked.alpha[layer] = kept["alpha"][layer]
            elif self.weights:
                self.weights.set(layer, tensor)
        self.remembered = kept["remembered"]
        self.alpha_history = kept["alpha_history"]

    def _solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """Delta of Eq. 13, and K' K'^T of the next step."""
        weight = self.lam if self.settings.accumulate == "released" else 1.0
        system, past = self.system(layer, weight), self.remembered.get(layer, NOTHING)
        update, self.remembered[layer] = system.solve(keys, residuals, past)
        return update

    def _write_hooks(
        self, hooked: HookLayers, edits: Sequence[Edit], targets: Tensor, record: dict[str, Any] | None
    ) -> None:
        def write(layer: int, update: Tensor) -> None:
            old = hooked.difference[layer]
            hooked.set_difference(layer, old + update.to(old))
            hooked.mode[layer] = VALIDATED

        with hooked.modes(TEMPORARY):
            self.write(edits, targets, self._solve, write, cut=False, record=record)

    @torch.no_grad()
    def _lower_alpha(self, hooked: HookLayers, edits: Sequence[Edit], record: dict[str, Any] | None) -> None:
        """Eq. 18, on the base model (deeper layers see unedited inputs, as in the released code)."""
        with_target = self.settings.calibrate_with_target
        texts = [f"{edit.prompt} {edit.target}" if with_target else edit.prompt for edit in edits]
        decisions = self._watch(hooked, encode_prompts(self.model, texts))
        for layer in hooked.layers:
            if layer not in decisions:
                continue
            largest = decisions[layer].z.nan_to_num(nan=-torch.inf, neginf=-torch.inf).max(dim=1).values
            seen = largest[torch.isfinite(largest)]  # one-token or constant rows say nothing (spec quirk 6)
            if len(seen) and not self.settings.fixed_alpha:
                hooked.alpha[layer] = min(hooked.alpha[layer], float(seen.min()))
        self.alpha_history.append(dict(hooked.alpha))
        if record is not None:
            record["alpha"] = dict(hooked.alpha)
            record["alpha_history"] = list(self.alpha_history)
            record["z_scores"] = {layer: decision.z.cpu() for layer, decision in decisions.items()}
            record["swapped"] = {
                layer: (hooked.reaches(decision.z, layer) & decision.real).cpu()
                for layer, decision in decisions.items()
            }

    def _watch(self, hooked: HookLayers, tokens: TokenBatch) -> dict[int, HookDecision]:
        """What the layers decide about prompts; as many share a pass as memory lets them, with the padding of all."""

        def watch(rows: slice) -> dict[int, HookDecision]:
            with hooked.modes(WATCHING), hooked.noting() as decisions:
                self.model.hidden(TokenBatch(tokens.input_ids[rows], tokens.attention_mask[rows]))
                return dict(decisions)

        needed = block_bytes(self.model, *tokens.input_ids.shape)
        parts = in_parts(len(tokens.input_ids), needed, self.model.device, "z-scores", watch)
        return {layer: HookDecision.joined([part[layer] for part in parts]) for layer in parts[0]}

    @torch.no_grad()
    def inspect(
        self, prompts: str | Sequence[str], subjects: Sequence[str | None] | None = None
    ) -> list[dict[str, Any]]:
        """For each prompt and hooked layer: z-scores, which tokens are swapped, alpha and the ceiling of the z-score.

        z-scores are those of the edited model's own pass (a swap in a lower layer changes what a higher one sees).
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.hooked or not prompts:
            return []
        subjects = [None] * len(prompts) if subjects is None else subjects
        rows = tokenise(self.model, prompts)
        with self.hooked.noting() as decisions:
            self.model.hidden(encode_prompts(self.model, prompts))
            noted = dict(decisions)
        found = []
        for i, (prompt, subject, row) in enumerate(zip(prompts, subjects, rows, strict=True)):
            at = subject_index(row, prompt, subject) if subject and subject in prompt else None
            n = len(row.ids)
            for layer, decision in noted.items():
                found.append(
                    {
                        "prompt": i,
                        "layer": layer,
                        "tokens": n,
                        "subject_index": at,
                        "z": decision.z[i, :n].tolist(),
                        "swapped": decision.swapped[i, :n].tolist(),
                        "alpha": self.hooked.alpha[layer],
                        "ceiling": ceiling(n),
                    }
                )
        return found

    @contextmanager
    def watching(self) -> Iterator[Callable[[], Tensor | None] | None]:
        """Which rows of the latest pass have a swapped token at any hook layer."""
        if not self.hooked:
            yield None
            return
        with self.hooked.noting() as decisions:

            def acted() -> Tensor | None:
                seen = [decision.swapped.any(dim=1) for decision in decisions.values()]
                decisions.clear()
                return torch.stack(seen).any(dim=0) if seen else None

            yield acted

    def state(self) -> EditorState:
        """D = W_h - W_0 (or the weight updates), remembered keys, alpha, contexts."""
        tensors = self.weights.tensors() if self.weights else {}
        if self.hooked:
            tensors = {f"difference.{layer}": d for layer, d in self.hooked.difference.items()}
        history = [{str(layer): value for layer, value in alpha.items()} for alpha in self.alpha_history]
        alpha = {str(layer): value for layer, value in self.alpha.items()}
        # clones, so that a later batch does not change a state that was taken before it
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors |= carried_tensors("remembered", self.remembered)
        return EditorState(tensors, {"alpha": alpha, "alpha_history": history, "contexts": self.contexts})

    def load_state(self, state: EditorState) -> None:
        """Take over a state. All of it is read before anything is changed, so that none is half loaded."""
        device, contexts = self.model.device, state.plain["contexts"]
        history = [{int(k): v for k, v in alpha.items()} for alpha in state.plain["alpha_history"]]
        found = read_carried("remembered", state.tensors, self.settings.layers, device)
        if self.hooked:
            refuse_other_layers("difference", state.tensors, self.hooked.difference)
            alpha = {layer: float(state.plain["alpha"][str(layer)]) for layer in self.hooked.layers}
            for layer in self.hooked.layers:
                self.hooked.set_difference(layer, state.tensors[f"difference.{layer}"].to(device))
            self.hooked.alpha = alpha
            self.hooked.attach()
        elif self.weights:
            self.weights.load(state.tensors)
        self.remembered = {layer: past for layer, past in found.items() if isinstance(past, Past)}
        self.alpha_history = history
        self.set_contexts(contexts)

    def remove(self) -> None:
        """Take the hooks off (or restore the weights) and forget all keys; the contexts are those this editor drew."""
        if self.hooked:
            self.hooked.detach()
            self.hooked.clear()
        elif self.weights:
            self.weights.restore()
        self._fresh()
        self.set_contexts(self.drawn_contexts)

    def state_bytes(self) -> int:
        """D = W_h - W_0, or the changes of the matrices; constant in the number of edits (claim C21)."""
        if self.hooked:
            return sum(d.nbytes for d in self.hooked.difference.values())
        return self.weights.bytes() if self.weights else 0

    def editing_bytes(self) -> int:
        """C_0, and what is remembered of earlier keys: this grows with the edits until they are folded into d_k x d_k sums."""
        return super().editing_bytes() + carried_bytes(self.remembered)


EDITOR = ComebaHk
