"""MEND: Model Editor Networks with gradient Decomposition (Mitchell et al. 2022, ICLR; arXiv 2110.11309).

An edit's gradient at W_l [m, n] is sum_t delta_t u_t^T. Networks g_l trained beforehand map each pair of factors, and

    (u~_t, delta~_t) = g_l(u_t, delta_t),     W_l' = W_l - alpha_l sum_t delta~_t u~_t^T         (section 3.1, Eq. 3)

with a learned step size alpha_l for each matrix. A batch is one edit: the gradient is taken of the sum of the edits' losses, so
that a batch of k asks the networks for what k edits alone would (`reduction: mean` is the released form, whose factors shrink
with k while their normalisation does not). In a sequence the gradient is taken at the already edited weights; nothing protects
earlier edits. Algorithm 2 of the paper leaves alpha out, section 3.1 has it; it is used here (Q2). The released code adds the
update instead of subtracting it (Q1): `sign: plus`.

Training: `palimpsest train-editor`; shared/mend_learner.py. Spec: docs/spec/serac_mend.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.editors.base import (
    Editor,
    EditorState,
    FailedEdit,
    LostEdit,
    edit_name,
    read_settings,
    require,
)
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.gradient_factors import (
    Factors,
    LowRank,
    descent_cosine,
    gradient_factors,
    joined,
)
from palimpsest.editors.shared.learned import open_trained
from palimpsest.editors.shared.mend_edit import (
    EditedMatrices,
    Matrix,
    changes,
    chosen_matrices,
    edit_inputs,
    lowest_block,
    order_in_network,
    row_weights,
    with_padding_targets,
)
from palimpsest.editors.shared.mend_learner import MendLearner
from palimpsest.editors.shared.mend_network import INITS, TRANSFORMS, MendNetwork
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit, PalimpsestError
from palimpsest.learning.artefact import TrainedEditor, TrainedError
from palimpsest.learning.settings import TrainingSettings
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.upper import Upper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Hyper-parameters; defaults are the published ones, with the layers of GPT2-XL (spec 2.5, 2.6).

    Attributes:
        layers, sites: blocks, and which linear maps of each: "mlp_in", "mlp_out", or a dotted path from the block.
        paths: further linear maps as dotted paths from the network, such as those of an encoder-decoder's decoder.
        rank, blocks: r (at most n + m) and number of blocks of each network.
        init: "identity" (U zero, V standard normal, as released), "identity_xavier" (V Xavier uniform, as the paper says),
            "xavier" (U too, and no residual connection: what was released for Table 6) or "xavier_residual" (with it).
        norm: whether the factors are normalised.
        share: whether matrices of one shape share a network.
        transform: "combined", "separate", "x_only", "delta_only" or "one_sided" (`mend_network.FactorEditor`).
        sign: "minus", or "plus" as released.
        alpha0: step sizes before training.
        lr, lr_lr: learning rates of Adam for the networks and for the step sizes. lr 0 learns the step sizes only. (In the
            released code the networks' optimiser holds the step sizes too and clears their gradients before their own
            one moves: there they follow `lr`.)
        c_edit: weight of the edit loss beside that of locality.
        share_passes: training steps between two updates of the networks share the model's passes; False: one by one.
        reduction: "sum_over_edits" (each edit's mean over its tokens) or "mean" (over all tokens of the batch, as released).
        end_token: whether the end token after a decoder's target counts as part of it.
        locality_over: of a decoder, the outputs that predict "all" tokens of x_loc, or those of its "answer"; or
            "answer_unshifted", a toolkit's slip (E7).
        mask_padding: False counts padding as targets (E5).
        alpha_order: "config", or "network": step sizes are dealt out in the network's own order (M2).
        last_chunk_only: of a larger batch only the last chunk of this size is edited, the rest is lost (M1: 128): reported as
            `lost`, but no failure, since the code that does this counts it as made.
    """

    # How to edit, not what was learned: these may differ from the training.
    EDIT_TIME: ClassVar[frozenset[str]] = frozenset(
        ("reduction", "mask_padding", "alpha_order", "last_chunk_only", "end_token")
    )

    layers: tuple[int, ...] = (45, 46, 47)
    sites: tuple[str, ...] = ("mlp_out", "mlp_in")
    paths: tuple[str, ...] = ()
    rank: int = 1920
    blocks: int = 2
    init: str = "identity"
    norm: bool = True
    share: bool = True
    transform: str = "combined"
    sign: str = "minus"
    alpha0: float = 1e-4
    lr: float = 1e-6
    lr_lr: float = 1e-4
    c_edit: float = 0.1
    share_passes: bool = True
    reduction: str = "sum_over_edits"
    end_token: bool = False
    locality_over: str = "all"
    mask_padding: bool = True
    alpha_order: str = "config"
    last_chunk_only: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "init": INITS,
            "transform": TRANSFORMS,
            "sign": ("minus", "plus"),
            "reduction": ("sum_over_edits", "mean"),
            "locality_over": ("all", "answer", "answer_unshifted"),
            "alpha_order": ("config", "network"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), " or ".join(allowed))
        for name in ("rank", "blocks"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least one")
        for name in ("lr", "lr_lr"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(self.c_edit > 0, "c_edit", self.c_edit, "must be positive")
        chunk = self.last_chunk_only
        require(chunk is None or chunk >= 1, "last_chunk_only", chunk, "at least one, or null")


class Mend(Editor):
    """Edits with trained networks; they and the base model stay as they are, only the edited matrices change."""

    name = "mend"
    settings_type = Settings
    learns = True
    settings: Settings
    trained: TrainedEditor

    def __init__(self, model: LanguageModel, settings: Settings, trained: TrainedEditor, seed: int = 0):
        super().__init__(model, settings, seed=seed)
        self.trained = trained
        self.matrices = _matrices(model, settings)
        self.network = _network(model, settings, self.matrices, seed)
        try:
            self.network.load_state_dict(trained.tensors)
        except RuntimeError as error:
            raise TrainedError(
                f"the trained weights do not fit the matrices {', '.join(one.name for one in self.matrices)} of "
                f"{model.name}. Train it again: palimpsest train-editor"
            ) from error
        if settings.norm and self.network.tokens_seen() < 2:
            raise TrainedError(
                "the normalisation of this trained editor has seen no token. Train it again: palimpsest train-editor"
            )
        self.network.eval().requires_grad_(False)
        self.weights = EditedMatrices(model, self.matrices)

    @classmethod
    def read_inputs(cls, model: LanguageModel, settings: Any, given: Any) -> tuple[Any, Any]:
        """As every editor; `given` is the training (`make_editor(trained=...)`): a TrainedEditor or the folder of one."""
        return open_trained(cls, model, settings, given)

    @classmethod
    def learner(cls, model: LanguageModel, settings: Any, seed: int) -> MendLearner:
        """The networks at their start, for `learning.train`."""
        chosen: Settings = read_settings(cls, settings)
        matrices = _matrices(model, chosen)
        return MendLearner(model, chosen, matrices, _network(model, chosen, matrices, seed))

    def lowest_block(self) -> int:
        """The lowest block with an edited matrix."""
        return lowest_block(self.model, self.matrices)

    def margin(self) -> int:
        """The end token, which a decoder's rows carry whether or not it counts."""
        return 1 if self.model.kind == "decoder" else 0

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """One gradient of the whole batch, one change of every matrix; a change that is not finite touches nothing."""
        first = self._first_kept(len(batch))
        factors, losses = self._factors(batch[first:])
        with torch.no_grad():
            made = changes(self.network, factors, self.settings.sign, self._alpha())
            updates = [one.dense() for one in made]
        for matrix, update in zip(self.matrices, updates, strict=True):
            if not torch.isfinite(update).all():
                raise DivergedEdit(f"the update of {matrix.name} is not finite; load the model in float32")
        before = self.weights.snapshot()
        try:
            for number, update in enumerate(updates):
                self.weights.add(number, update)
            refuse_broken(self.model, batch)
        except BaseException:
            self.weights.restore(before)
            raise
        if record is not None:
            record |= self._notes(factors, made, losses)
        if first:
            log.warning("mend with last_chunk_only: %d of %d edits are lost", first, len(batch))
        reason = (
            f"last_chunk_only: only the last {len(batch) - first} of the batch's {len(batch)} edits are made"
        )
        return [LostEdit(edit_name(edit), reason) for edit in batch[:first]]

    def _first_kept(self, edits: int) -> int:
        """Place in the batch of the first edit that is made."""
        size = self.settings.last_chunk_only
        return 0 if size is None else (edits - 1) // size * size

    def _alpha(self) -> Tensor:
        if self.settings.alpha_order == "config":
            return self.network.alpha
        return self.network.alpha[order_in_network(self.model, self.matrices)]

    def _factors(self, batch: Sequence[Edit]) -> tuple[list[Factors], Tensor]:
        """Factors of the batch's gradient at the weights as they are now, and the edits' losses [b]."""
        prompts, targets = [edit.prompt for edit in batch], [edit.target for edit in batch]
        inputs = edit_inputs(self.model, prompts, targets, self.settings.end_token)
        if not self.settings.mask_padding and self.model.kind == "decoder":
            inputs = with_padding_targets(inputs, int(self.model.tokenizer.pad_token_id))
        weights = row_weights(inputs, self.settings.reduction)
        losses, parts = torch.zeros_like(weights), []
        for group in Batching().groups(inputs.padding.sum(dim=1).tolist()):
            rows = Upper(self.model, inputs.rows(group), self.lowest_block())
            found, judged = gradient_factors(rows, [one.module for one in self.matrices], weights[group])
            parts += found
            losses[group] = judged.losses.to(losses.dtype)
        return joined(parts), losses

    def _notes(self, factors: Sequence[Factors], made: Sequence[LowRank], losses: Tensor) -> dict[str, Any]:
        """Losses before the edit and, for each matrix, its step size, the norms of gradient and update, and the cosine of the
        step taken with steepest descent."""
        matrices = {}
        alphas = self._alpha().tolist()
        for matrix, one, change, alpha in zip(self.matrices, factors, made, alphas, strict=True):
            matrices[matrix.name] = {
                "alpha": alpha,
                "tokens": len(one.u),
                "gradient_norm": float(one.gradient().norm()),
                "update_norm": float(change.dense().norm()),
                "cosine": descent_cosine(one, change),
            }
        return {"losses": losses.tolist(), "matrices": matrices}

    def state(self) -> EditorState:
        """The sum of all updates, and which trained networks made them."""
        return EditorState(self.weights.tensors(), {"trained": self.trained.fingerprint})

    def load_state(self, state: EditorState) -> None:
        """Write saved updates into the model; refuses those of other networks."""
        found, own = state.plain.get("trained"), self.trained.fingerprint
        if found != own:
            raise PalimpsestError(
                f"this state was made by a MEND with trained weights {found}, not {own}. Load it with the folder it was "
                "made with (trained=...)"
            )
        self.weights.load(state.tensors)

    def remove(self) -> None:
        """Restore the weights."""
        self.weights.restore()

    def state_bytes(self) -> int:
        """The changed matrices."""
        return self.weights.bytes()


def _matrices(model: LanguageModel, settings: Settings) -> list[Matrix]:
    return chosen_matrices(model, settings.layers, settings.sites, settings.paths)


def _network(model: LanguageModel, settings: Settings, matrices: Sequence[Matrix], seed: int) -> MendNetwork:
    network = MendNetwork(
        [matrix.shape for matrix in matrices],
        share=settings.share,
        transform=settings.transform,
        norm=settings.norm,
        rank=settings.rank,
        blocks=settings.blocks,
        init=settings.init,
        alpha0=settings.alpha0,
        seed=seed,
    )
    return network.to(model.device)


EDITOR = Mend
