"""Training of MEND's networks (MEND, Algorithm 1; spec 2.5): edit with (x_e, y_e), judge on x' and on x_loc.

    L_e = NLL(y' | x') of the edited model,   L_loc = KL(p_before || p_after) on x_loc,   L = c_edit L_e + L_loc

The base model is not trained and the factors are detached, so there are no second-order terms. Blocks below the lowest edited
one are run once for all rows of a step: no edit changes what they give. Steps between two updates of the networks share their
passes: each row answers as its own step's edit makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palimpsest.editors.shared.gradient_factors import (
    Factors,
    descent_cosine,
    gradient_factors,
    laid_over,
    loss_scale,
    scaled_between,
    stacked,
)
from palimpsest.editors.shared.mend_edit import (
    Matrix,
    changes,
    edit_inputs,
    lowest_block,
    row_weights,
    with_padding_targets,
)
from palimpsest.editors.shared.mend_network import MendNetwork
from palimpsest.learning.examples import Draw, Outside
from palimpsest.learning.loop import TOTAL, Steps, finite
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, judged, target_places
from palimpsest.models.upper import Upper


@dataclass(frozen=True)
class EditOutcome:
    """What one edit did to its draws.

    Attributes:
        edit_loss, locality: L_e and L_loc.
        edit_right, query_right: whether the edit's prompt and x' get the new answer [k] (edit_right: [0] in training).
        outside_before, outside_after: whether x_loc got its answer before and after [k].
        outside_known: whether that answer is known to be right [k].
        cosines: of each matrix' change and steepest descent (none in training).
    """

    edit_loss: Float[Tensor, ""]
    locality: Float[Tensor, ""]
    edit_right: Bool[Tensor, " edits"]
    query_right: Bool[Tensor, " k"]
    outside_before: Bool[Tensor, " k"]
    outside_after: Bool[Tensor, " k"]
    outside_known: Bool[Tensor, " k"]
    cosines: list[float]


class MendLearner:
    """What the loop trains: the networks and step sizes of one set of matrices.

    Args:
        settings: of the editor (`mend.Settings`).
        network: on the model's device, in float32.
    """

    def __init__(self, model: LanguageModel, settings: Any, matrices: Sequence[Matrix], network: MendNetwork):
        self.model, self.settings, self.network = model, settings, network
        self.matrices = list(matrices)
        self.modules = [matrix.module for matrix in matrices]
        self.lowest = lowest_block(model, matrices)

    def groups(self) -> list[dict[str, Any]]:
        """The networks with `lr`, the step sizes with `lr_lr`."""
        networks = [p for name, p in self.network.named_parameters() if name != "alpha"]
        return [
            {"params": networks, "lr": self.settings.lr},
            {"params": [self.network.alpha], "lr": self.settings.lr_lr},
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, step sizes, running statistics."""
        return dict(self.network.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take them over."""
        self.network.load_state_dict(dict(tensors))

    def step(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Losses of one edit of all draws at once; "total" is not a number when the gradient of the edit is none."""
        self.network.train()
        outcomes = self._edit_and_look([draws], whole=False)
        if outcomes is None:
            return {TOTAL: self.network.alpha.sum() * torch.nan}
        return self._losses(outcomes[0])

    def together(self, groups: Sequence[Sequence[Draw]], parameters: Sequence[Tensor]) -> Steps | None:
        """Several steps in the same passes; the sums of normalisation are as before if one of them is not finite."""
        if not self.settings.share_passes or len(groups) < 2:
            return None
        self.network.train()
        before = {name: tensor.clone() for name, tensor in self.network.named_buffers()}
        outcomes = self._edit_and_look(groups, whole=False)
        if outcomes is not None:
            losses = [self._losses(outcome) for outcome in outcomes]
            total = torch.stack([each[TOTAL] for each in losses]).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            if finite(gradients):
                return losses, gradients
        for name, tensor in self.network.named_buffers():
            tensor.copy_(before[name])
        return None

    def _losses(self, outcome: EditOutcome) -> dict[str, Tensor]:
        return {
            TOTAL: self.settings.c_edit * outcome.edit_loss + outcome.locality,
            "edit": outcome.edit_loss,
            "locality": outcome.locality,
        }

    @torch.no_grad()
    def validate(self, draws: Sequence[Draw]) -> dict[str, float]:
        """Losses, successes and drawdown over groups of `k_train` draws; step sizes, and cosines with steepest descent."""
        self.network.eval()
        k = self.settings.k_train
        groups = [draws[at : at + k] for at in range(0, len(draws), k)]
        size = self.settings.accumulate if self.settings.share_passes else 1
        outcomes: list[EditOutcome] = []
        for at in range(0, len(groups), size):
            found = self._edit_and_look(groups[at : at + size], whole=True)
            if found is None:
                return {TOTAL: float("nan")}
            outcomes += found

        def all_of(name: str) -> Tensor:
            return torch.cat([getattr(outcome, name) for outcome in outcomes])

        def share(name: str) -> float:
            return float(all_of(name).float().mean())

        edit = sum(float(outcome.edit_loss) for outcome in outcomes) / len(outcomes)
        locality = sum(float(outcome.locality) for outcome in outcomes) / len(outcomes)
        known = all_of("outside_known")
        before, after = (
            float(all_of(f"outside_{when}")[known].float().mean()) for when in ("before", "after")
        )
        values = {
            TOTAL: self.settings.c_edit * edit + locality,
            "edit": edit,
            "locality": locality,
            "edit success": share("edit_right"),
            "rephrase success": share("query_right"),
        }
        if bool(known.any()):
            values |= {"right before": before, "drawdown": before - after}
        names = [matrix.name for matrix in self.matrices]
        each = zip(*(outcome.cosines for outcome in outcomes), strict=True)
        values |= {f"alpha {name}": a for name, a in zip(names, self.network.alpha.tolist(), strict=True)}
        return values | {f"cosine {name}": sum(c) / len(c) for name, c in zip(names, each, strict=True)}

    def _edit_and_look(self, groups: Sequence[Sequence[Draw]], whole: bool) -> list[EditOutcome] | None:
        """Edit on the draws of each group together and judge; None when the gradient of one is not finite.

        Args:
            groups: of equally many draws.
            whole: judge the edits' own prompts too.
        """
        g, k = len(groups), len(groups[0])
        rows = Upper(self.model, self._inputs(groups), self.lowest)
        number = torch.arange(3 * g * k).view(g, 3, k)  # of the rows: edits, queries, outside
        edits, outside = rows.rows(number[:, 0].flatten()), rows.rows(number[:, 2].flatten())
        looked = rows if whole else rows.rows(number[:, 1:].flatten())
        factors = self._factors(edits, g)
        if not all(one.finite() for group in factors for one in group):
            return None
        kept = self._locality_places(outside.inputs)
        with torch.no_grad():
            asked = target_places(outside.inputs)
            first = outside.logits(_both(asked, kept))
            before = first[len(asked[0]) :]
            right_before = judged(first[: len(asked[0])], outside.inputs, asked).right
        # One group after the other, so that each is normalised by the tokens up to its own.
        made = [changes(self.network, group, self.settings.sign) for group in factors]
        with laid_over(self.modules, stacked(made)):
            asked = target_places(looked.inputs)
            each = len(looked) // g  # rows of a group, those outside last
            here = (kept[0] + (kept[0] // k + 1) * (each - k), kept[1])
            logits = looked.logits(_both(asked, here))
        every = [change for group in made for change in group]
        logits = scaled_between(logits, every, loss_scale(self.model.dtype))
        verdict = judged(logits[: len(asked[0])], looked.inputs, asked)
        losses, right = verdict.losses.view(g, each), verdict.right.view(g, each)
        apart = divergences(before, logits[len(asked[0]) :])
        return [
            EditOutcome(
                edit_loss=losses[one, -2 * k : -k].mean(),
                locality=apart[kept[0] // k == one].mean(),
                edit_right=right[one, : each - 2 * k],
                query_right=right[one, -2 * k : -k],
                outside_before=right_before[one * k : (one + 1) * k],
                outside_after=right[one, -k:],
                outside_known=torch.tensor([draw.outside.known for draw in groups[one]], device=right.device),
                cosines=[descent_cosine(*pair) for pair in zip(factors[one], made[one], strict=True)]
                if whole
                else [],
            )
            for one in range(g)
        ]

    def _factors(self, edits: Upper, groups: int) -> list[list[Factors]]:
        """Of the gradient that each group's edits have."""
        if not self.settings.mask_padding and self.model.kind == "decoder":
            padding = int(self.model.tokenizer.pad_token_id)  # in the gradient alone, not in what is judged
            edits.inputs = with_padding_targets(edits.inputs, padding, groups)
        weights = row_weights(edits.inputs, self.settings.reduction, groups)
        return gradient_factors(edits, self.modules, weights, groups)[0]

    def _inputs(self, groups: Sequence[Sequence[Draw]]) -> Inputs:
        """For each group rows of k edits, then k queries x', then k prompts x_loc."""
        pairs = list[tuple[str, str]]()
        for draws in groups:
            pairs += [(draw.edit.prompt, draw.edit.target) for draw in draws]
            pairs += [(draw.query, draw.query_answer) for draw in draws]
            pairs += [with_answer(draw.outside, self.model.kind) for draw in draws]
        prompts, targets = zip(*pairs, strict=True)
        return edit_inputs(self.model, prompts, targets, self.settings.end_token)

    def _locality_places(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(row, column) of the outputs whose divergence is taken (spec 2.5, E7)."""
        rows, columns = target_places(inputs)
        if self.model.kind != "decoder" or self.settings.locality_over == "answer":
            return rows, columns
        if self.settings.locality_over == "answer_unshifted":
            return rows, columns + 1
        last = torch.zeros(len(inputs), dtype=columns.dtype, device=columns.device)
        last = last.scatter_reduce(0, rows, columns, "amax")
        before = torch.arange(inputs.padding.shape[1], device=columns.device)[None] <= last[:, None]
        found = torch.nonzero(before, as_tuple=True)
        return found[0], found[1]


def with_answer(outside: Outside, kind: str) -> tuple[str, str]:
    """Prompt and answer of x_loc; a decoder's prompt without an answer gives its last word as one: all of it is read."""
    prompt, _, word = outside.prompt.strip().rpartition(" ")
    if outside.answer.strip() or kind != "decoder" or not prompt:
        return outside.prompt, outside.answer
    return prompt, word


def divergence(before: Float[Tensor, "k v"], after: Float[Tensor, "k v"]) -> Float[Tensor, ""]:
    """KL(p_before || p_after), mean over k outputs, in at least float32."""
    return divergences(before, after).mean()


def divergences(before: Float[Tensor, "k v"], after: Float[Tensor, "k v"]) -> Float[Tensor, " k"]:
    """KL(p_before || p_after) of k outputs, in at least float32."""
    wide = torch.promote_types(after.dtype, torch.float32)
    log_p, log_q = before.to(wide).log_softmax(dim=1), after.to(wide).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _both(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
