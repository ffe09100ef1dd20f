"""FT: fine-tuning of one MLP matrix on the edits, the baseline of every paper, in the forms that they use.

Adam on W^l [out, in] of one layer, at most `steps` passes over the batch in mini-batches:
    FT-L (`loss: prompt_last`):  -log p(y_t | prompt), all target tokens read at the LAST PROMPT token, as in the toolkit
                                 COMEBA-HK used (a quirk for targets of several tokens, kept because it was measured);
    FT-M (`loss: target_new`):   ordinary masked cross entropy on the target, the stronger form;
    GRACE (`loss: own`):         the model's own loss (models/objectives.py), for all kinds of models; with `stop: argmax` as in
                                 GRACE, section 4: a fresh Adam for each edit, until every target token is what the model gives.
                                 The released stop compares unshifted logits of a decoder and never stops (spec Q15); it is
                                 shifted here.
After every step W is clamped element by element to W_start +- epsilon, where `epsilon` is given.

Everything below the layer is run once per mini-batch, not once per step: it does not change (exact).

Spec: docs/spec/comeba_hk.md; for GRACE's form, and Q15, docs/spec/grace.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import Editor, EditorState, FailedEdit, require
from palimpsest.editors.shared.adam import Adam
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.edits import Edit
from palimpsest.errors import DivergedEdit
from palimpsest.models.families import as_stored
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode
from palimpsest.models.partial import causal_mask, embed, read_out, row_positions, run_blocks
from palimpsest.models.tokens import encode_pairs
from palimpsest.models.upper import Upper


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; defaults are those for GPT2-XL (COMEBA-HK spec 3.1).

    Attributes:
        layer: edited block.
        site: which matrix of it: "mlp_in", "mlp_out", or a dotted path from the block.
        steps: at most so many passes over the batch.
        learning_rate: of Adam.
        epsilon: largest change of any entry within one batch of edits; None for no limit.
        loss: "prompt_last" (FT-L), "target_new" (FT-M) or "own" (the model's own, end token included).
        mini_batch: edits in one step of Adam; None takes the whole batch of edits, which is what the papers' toolkit does
            in batch editing (its `batch_size` is both, spec 3.1).
        stop: "loss" (see stop_loss) or "argmax": a mini-batch whose target tokens are all the most probable ones is skipped,
            a pass that skips all is the last. Needs the loss "own".
        stop_loss: a mini-batch below it is skipped, a pass whose mean is below it is the last.
    """

    layer: int = 0
    site: str = "mlp_out"
    steps: int = 25
    learning_rate: float = 5e-4
    epsilon: float | None = 5e-4
    loss: str = "prompt_last"
    mini_batch: int | None = None
    stop: str = "loss"
    stop_loss: float = 0.01

    def __post_init__(self) -> None:
        losses = ("prompt_last", "target_new", "own")
        require(self.loss in losses, "loss", self.loss, "prompt_last, target_new or own")
        require(self.stop in ("loss", "argmax"), "stop", self.stop, "loss or argmax")
        require(self.stop == "loss" or self.loss == "own", "stop", self.stop, "argmax needs loss: own")
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
    """A mini-batch standing at the input of the edited block, or of the first one with `LanguageModel.lean` off."""

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    read: tuple[Tensor, Tensor]
    targets: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.hidden)


class FineTuning(Editor):
    """Fine-tuning, batch after batch on the weights the last batch left."""

    name = "ft"
    settings_type = Settings
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics=None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        model.block(settings.layer)
        if settings.loss != "own":
            model.need_decoder(f"{self.name} with loss: {settings.loss}")
        self.first = settings.layer if model.lean else 0  # the block that mini-batches stand at
        self.weights = EditedWeights(model, (settings.layer,), settings.site)

    def lowest_block(self) -> int:
        """The edited block."""
        return self.settings.layer

    def edited_site(self) -> str:
        """The edited matrix."""
        return self.settings.site

    def margin(self) -> int:
        """The end token, which a decoder's own loss counts."""
        return int(self.settings.loss == "own" and self.model.kind == "decoder")

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Adam until the stop rule says so or the passes are used up."""
        before = self.weights.snapshot()
        losses, change = self.fit(self.mini_batches(batch, self.settings.mini_batch), self.settings.steps)
        try:
            refuse_broken(self.model, batch)
        except BaseException:
            self.weights.restore(before)
            raise
        if record is not None:
            record |= {"losses": losses, "updates": {self.settings.layer: change.float().cpu()}}
        return []

    def mini_batches(self, edits: Sequence[Edit], size: int | None) -> list[_MiniBatch | Upper]:
        """The edits, `size` at a time (None: all at once), standing at the input of the edited block."""
        size = size or len(edits)
        return [self._prepare(edits[i : i + size]) for i in range(0, len(edits), size)]

    def fit(
        self, batches: Sequence[_MiniBatch | Upper], steps: int, stop: bool = True
    ) -> tuple[list[float], Tensor]:
        """A fresh Adam over the mini-batches, at most `steps` passes; returns (loss of each pass, change of W [out, in]).

        Args:
            stop: whether the stop rule applies; without it every mini-batch is stepped on in every pass.

        Raises:
            DivergedEdit: a loss or the result is not finite; the model is as before then.
        """
        layer = self.settings.layer
        weight = self.weights.module(layer).weight
        before = weight.detach().clone()
        # Adam steps on a copy of at least float32: in half precision its epsilon and small squares are zero.
        start = before.to(torch.promote_types(before.dtype, torch.float32))
        master = start.clone()
        optimiser = Adam([master], self.settings.learning_rate)
        losses: list[float] = []
        weight.requires_grad_(True)
        try:
            for _ in range(steps):
                loss, done = self._one_pass(batches, weight, master, start, optimiser, stop)
                losses.append(loss)
                if done:
                    break
        finally:
            weight.requires_grad_(False)
            weight.grad = None
            weight.data.copy_(before)
        change = as_stored(self.weights.module(layer), master - start)  # back to [out, in]
        self.weights.add(layer, change)
        return losses, change

    def pull(self, master: Tensor) -> Tensor | None:
        """Gradient of what a subclass adds to the loss, at W as it lies in memory; None adds nothing."""
        return None

    def _one_pass(
        self,
        batches: Sequence[_MiniBatch | Upper],
        weight: Tensor,
        master: Tensor,
        start: Tensor,
        optimiser: Adam,
        stop: bool,
    ) -> tuple[float, bool]:
        """(mean loss over the edits, whether the stop rule says that this pass is the last)."""
        total, count, all_right = 0.0, 0, True
        for batch in batches:
            loss, right = self._loss(batch)
            if not torch.isfinite(loss):
                raise DivergedEdit(
                    f"the fine-tuning loss is {float(loss.detach())}; use a smaller learning_rate"
                )
            total, count = total + float(loss.detach()) * len(batch), count + len(batch)
            all_right = all_right and right
            if stop and (right if self.settings.stop == "argmax" else loss < self.settings.stop_loss):
                continue
            gradient = torch.autograd.grad(loss, weight)[0].to(master.dtype)
            more = self.pull(master)
            optimiser.step([gradient if more is None else gradient + more])
            if self.settings.epsilon is not None:
                master.clamp_(start - self.settings.epsilon, start + self.settings.epsilon)
            weight.data.copy_(master)
        mean = total / max(count, 1)
        return mean, stop and (
            all_right if self.settings.stop == "argmax" else mean < self.settings.stop_loss
        )

    @torch.no_grad()
    def _prepare(self, edits: Sequence[Edit]) -> _MiniBatch | Upper:
        if self.settings.loss == "own":
            inputs = encode(self.model, [edit.prompt for edit in edits], [edit.target for edit in edits])
            return Upper(self.model, inputs, self.settings.layer, self.settings.site)
        pairs = encode_pairs(self.model, [(edit.prompt, edit.target) for edit in edits])
        tokens = pairs.tokens
        mask, positions = causal_mask(tokens.attention_mask, self.model.dtype), row_positions(tokens)
        with self.model.padding_of(tokens.attention_mask):
            hidden = embed(self.model, tokens)
            if self.first:
                hidden = run_blocks(self.model, hidden, 0, self.first - 1, mask, positions)
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

    def _loss(self, batch: _MiniBatch | Upper) -> tuple[Tensor, bool]:
        """(mean loss of a mini-batch, whether every target token is the most probable one; only "own" can tell)."""
        if isinstance(batch, Upper):
            judged = batch.judge()
            return judged.losses.mean(), bool(judged.right.all())
        last = self.model.n_blocks - 1
        hidden = run_blocks(self.model, batch.hidden, self.first, last, batch.mask, batch.positions)
        log_p = read_out(self.model, hidden[batch.read]).float().log_softmax(dim=1)
        return -(log_p.gather(1, batch.targets[:, None])[:, 0] * batch.weight).sum(), False

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
