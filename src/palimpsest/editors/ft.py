"""FT: fine-tuning of one MLP output matrix on the edits (the baseline of ROME, MEMIT and COMEBA-HK; spec 1.8).

Adam on W^l [d, d_k] of one layer, at most `steps` passes over the batch in mini-batches:
    FT-L (`loss: prompt_last`):  -log p(y_t | prompt), all target tokens read at the LAST PROMPT token, as in the toolkit
                                 the papers used (a quirk for targets of several tokens, kept because it is what was measured);
    FT-M (`loss: target_new`):   ordinary masked cross entropy on the target, the stronger form.
After every step W is clamped element by element to W_start +- epsilon, where `epsilon` is given.

Everything below the layer is run once per mini-batch, not once per step: it does not change (exact).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import Editor, EditorState, FailedEdit, require
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit
from palimpsest.models.families import as_stored
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import causal_mask, embed, read_out, row_positions, run_blocks
from palimpsest.models.tokens import encode_pairs


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; defaults are those for GPT2-XL (spec 3.1).

    Attributes:
        layer: edited block.
        steps: at most so many passes over the batch.
        learning_rate: of Adam.
        epsilon: largest change of any entry within one batch of edits; None for no limit.
        loss: "prompt_last" (FT-L) or "target_new" (FT-M).
        mini_batch: edits in one step of Adam; None takes the whole batch of edits, which is what the papers' toolkit does
            in batch editing (its `batch_size` is both, spec 3.1).
        stop_loss: a mini-batch below it is skipped, a pass whose mean is below it is the last.
    """

    layer: int = 0
    steps: int = 25
    learning_rate: float = 5e-4
    epsilon: float | None = 5e-4
    loss: str = "prompt_last"
    mini_batch: int | None = None
    stop_loss: float = 0.01

    def __post_init__(self) -> None:
        require(self.loss in ("prompt_last", "target_new"), "loss", self.loss, "prompt_last or target_new")
        require(self.steps >= 1, "steps", self.steps, "at least one")
        require(
            self.mini_batch is None or self.mini_batch >= 1,
            "mini_batch",
            self.mini_batch,
            "at least one, or null",
        )
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be positive")
        require(
            self.epsilon is None or self.epsilon > 0,
            "epsilon",
            self.epsilon,
            "must be positive, or null for no limit",
        )


@dataclass
class _MiniBatch:
    """A mini-batch standing at the input of the edited block."""

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    read: tuple[Tensor, Tensor]
    targets: Tensor
    weight: Tensor


class FineTuning(Editor):
    """Constrained fine-tuning, batch after batch on the weights the last batch left."""

    name = "ft"
    settings_type = Settings
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics=None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        model.block(settings.layer)
        self.weights = EditedWeights(model, (settings.layer,))

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Adam until the losses are small or the passes are used up."""
        layer, settings = self.settings.layer, self.settings
        size = settings.mini_batch or len(batch)
        batches = [self._prepare(batch[i : i + size]) for i in range(0, len(batch), size)]
        weight = self.model.mlp_out(layer).weight
        before = weight.detach().clone()
        # Adam steps on a copy of at least float32: in half precision its epsilon and small squares are zero.
        start = before.to(torch.promote_types(before.dtype, torch.float32))
        master = start.clone()
        optimiser = torch.optim.Adam([master], lr=settings.learning_rate)
        losses: list[float] = []
        weight.requires_grad_(True)
        try:
            for _ in range(settings.steps):
                losses.append(self._one_pass(batches, weight, master, start, optimiser))
                if losses[-1] < settings.stop_loss:
                    break
        finally:
            weight.requires_grad_(False)
            weight.grad = None
            weight.data.copy_(before)
        change = as_stored(self.model.mlp_out(layer), master - start)  # back to [d, d_k]
        self.weights.add(layer, change)
        if record is not None:
            record |= {"losses": losses, "updates": {layer: change.float().cpu()}}
        return []

    def _one_pass(
        self,
        batches: list[_MiniBatch],
        weight: Tensor,
        master: Tensor,
        start: Tensor,
        optimiser: torch.optim.Optimizer,
    ) -> float:
        total, count = 0.0, 0
        for batch in batches:
            loss = self._loss(batch)
            if not torch.isfinite(loss):
                raise DivergedEdit(f"the fine-tuning loss is {float(loss)}; use a smaller learning_rate")
            total, count = total + float(loss.detach()) * len(batch.hidden), count + len(batch.hidden)
            if loss < self.settings.stop_loss:
                continue
            master.grad = torch.autograd.grad(loss, weight)[0].to(master.dtype)
            optimiser.step()
            if self.settings.epsilon is not None:
                master.clamp_(start - self.settings.epsilon, start + self.settings.epsilon)
            weight.data.copy_(master)
        return total / max(count, 1)

    @torch.no_grad()
    def _prepare(self, edits: Sequence[Edit]) -> _MiniBatch:
        pairs = encode_pairs(self.model, [(edit.prompt, edit.target) for edit in edits])
        tokens = pairs.tokens
        mask, positions = causal_mask(tokens.attention_mask, self.model.dtype), row_positions(tokens)
        with self.model.padding_of(tokens.attention_mask):
            hidden = embed(self.model, tokens)
            if self.settings.layer:
                hidden = run_blocks(self.model, hidden, 0, self.settings.layer - 1, mask, positions)
        rows, columns, targets, weights = zip(*self._reads(pairs), strict=True)
        return _MiniBatch(
            hidden,
            mask,
            positions,
            (torch.tensor(rows), torch.tensor(columns)),
            torch.stack(targets),
            torch.tensor(weights, device=hidden.device),
        )

    def _reads(self, pairs) -> Iterator[tuple[int, int, Tensor, float]]:
        """(row, column, token, weight) of every target token; weights are means over tokens, then over edits."""
        n = len(pairs.answer_start)
        for row, (start, end) in enumerate(
            zip(pairs.answer_start.tolist(), pairs.answer_end.tolist(), strict=True)
        ):
            for t in range(start, end):
                column = start - 1 if self.settings.loss == "prompt_last" else t - 1
                yield row, column, pairs.tokens.input_ids[row, t], 1.0 / (n * (end - start))

    def _loss(self, batch: _MiniBatch) -> Tensor:
        hidden = run_blocks(
            self.model,
            batch.hidden,
            self.settings.layer,
            self.model.n_blocks - 1,
            batch.mask,
            batch.positions,
        )
        log_p = read_out(self.model, hidden[batch.read]).float().log_softmax(dim=1)
        return -(log_p.gather(1, batch.targets[:, None])[:, 0] * batch.weight).sum()

    def state(self) -> EditorState:
        """The sum of all changes."""
        return EditorState(self.weights.tensors())

    def load_state(self, state: EditorState) -> None:
        """Write saved changes into the model."""
        self.weights.load(state.tensors)

    def remove(self) -> None:
        """Restore the weights."""
        self.weights.restore()

    def state_bytes(self) -> int:
        """The changed matrix."""
        return self.weights.bytes()


EDITOR = FineTuning
