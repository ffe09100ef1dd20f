"""The gradient of a linear map as a sum of outer products, and updates of that form laid over a running model.

For W [m, n] with inputs u_t and output gradients delta_t = dL/d(W u_t):   grad_W L = sum_t delta_t u_t^T
(MEND, section 2.1). t runs over the tokens of all rows. Both factors are read by hooks and detached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from palimpsest.models.objectives import Judged
from palimpsest.models.upper import Upper

HALF_SCALE = 1024.0  # a power of two: nothing else about a gradient changes


@dataclass(frozen=True)
class Factors:
    """u_t [t, n] and delta_t [t, m] of one matrix, in float32; tokens where one of the two is zero are left out."""

    u: Float[Tensor, "t n"]
    delta: Float[Tensor, "t m"]

    def gradient(self) -> Float[Tensor, "m n"]:
        """sum_t delta_t u_t^T."""
        return self.delta.T @ self.u

    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(torch.isfinite(self.u).all() and torch.isfinite(self.delta).all())


@dataclass(frozen=True)
class LowRank:
    """A change of one matrix, left^T right, with left [t, m] and right [t, n]; of several groups, [g, t, m] and [g, t, n]."""

    left: Float[Tensor, "*g t m"]
    right: Float[Tensor, "*g t n"]

    def dense(self) -> Float[Tensor, "m n"]:
        """The change as a matrix."""
        return self.left.mT @ self.right


def loss_scale(dtype: torch.dtype) -> float:
    """By what a loss is multiplied before its gradient passes a network of this type, and the gradient divided after it.

    In float16 numbers below 6e-5 lose digits and those below 6e-8 vanish; gradients of single tokens are often that small.
    """
    return HALF_SCALE if dtype == torch.float16 else 1.0


def scaled_between(logits: Float[Tensor, "k v"], changes: Sequence[LowRank], scale: float) -> Tensor:
    """The logits in at least float32; on its way from them to the changes a gradient is `scale` times as large."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1 and logits.requires_grad:
        logits = logits.clone()  # a hook of its own
        logits.register_hook(lambda gradient: gradient * scale)
        for tensor in (each for change in changes for each in (change.left, change.right)):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: gradient / scale)
    return logits


def gradient_factors(
    rows: Upper, modules: Sequence[Any], weights: Float[Tensor, " b"], groups: int = 1
) -> tuple[list[list[Factors]], Judged]:
    """Factors of the gradient of sum_i weights_i loss_i, group by group for each linear map, and what the model made of the rows.

    Args:
        rows: b rows with targets, standing at or below the lowest of the modules.
        modules: linear maps that one pass calls once.
        groups: the rows are so many groups of equally many, one after the other; each has the gradient of its own rows.
    """
    noted: dict[int, tuple[Tensor, Tensor]] = {}

    def noting(number: int) -> Any:
        def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # The weights are frozen, so the lowest of the maps starts the graph.
            seen = output if output.requires_grad else output.detach().requires_grad_(True)
            noted[number] = (inputs[0].detach(), seen)
            return seen

        return note

    with ExitStack() as hooks, torch.enable_grad():
        for number, module in enumerate(modules):
            hooks.callback(module.register_forward_hook(noting(number)).remove)
        judged = rows.judge()
        outputs = [noted[number][1] for number in range(len(modules))]
        scale = loss_scale(rows.model.dtype)
        sent = torch.autograd.grad(scale * (judged.losses * weights).sum(), outputs)
    found: list[list[Factors]] = [[] for _ in range(groups)]
    for number, gradient in enumerate(sent):
        us, deltas = (_tokens(tensor, groups) for tensor in (noted[number][0], gradient))
        for group, u, delta in zip(found, us, deltas / scale, strict=True):
            kept = (u != 0).any(dim=1) & (delta != 0).any(dim=1)
            group.append(Factors(u[kept], delta[kept]))
    return found, Judged(judged.losses.detach(), judged.right)


def _tokens(tensor: Float[Tensor, "b *n width"], groups: int) -> Float[Tensor, "groups t width"]:
    """All tokens of each group's rows, in float32."""
    return tensor.reshape(groups, -1, tensor.shape[-1]).float()


def descent_cosine(gradient: Factors, change: LowRank) -> float:
    """Cosine of a change and steepest descent, from the factors alone; 0 where one of the two is nothing."""

    def product(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        return float(((one[0] @ other[0].T) * (one[1] @ other[1].T)).sum())

    down, step = (gradient.delta, gradient.u), (change.left, change.right)
    scale = max(0.0, product(down, down) * product(step, step)) ** 0.5  # rounding may leave less than nothing
    return -product(down, step) / scale if scale else 0.0


def joined(parts: Sequence[Sequence[Factors]]) -> list[Factors]:
    """Factors of several groups of rows as those of all of them, matrix by matrix."""
    return [
        Factors(torch.cat([one.u for one in group]), torch.cat([one.delta for one in group]))
        for group in zip(*parts, strict=True)
    ]


def stacked(groups: Sequence[Sequence[LowRank]]) -> list[LowRank]:
    """Changes of several groups of rows as one change of each matrix, [g, t, .]; zeros fill up those of fewer tokens."""
    found = []
    for parts in zip(*groups, strict=True):
        left = pad_sequence([part.left for part in parts], batch_first=True)
        found.append(LowRank(left, pad_sequence([part.right for part in parts], batch_first=True)))
    return found


@contextmanager
def laid_over(modules: Sequence[Any], changes: Sequence[LowRank]) -> Iterator[None]:
    """For the length of a block each map answers as if its matrix had been changed; gradients reach the changes.

    Args:
        changes: one for each map. Those of g groups hold for rows that are g groups of equally many, one after the other.
    """

    def adding(change: LowRank) -> Any:
        left, right = change.left, change.right

        def add(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            states = inputs[0].to(right.dtype)
            if right.dim() == 3:
                states = states.reshape(len(right), -1, states.shape[-1])
            # Few tokens: two thin products instead of a dense matrix and its gradient.
            more = (states @ right.mT) @ left
            return output + more.reshape(output.shape).to(output.dtype)

        return add

    with ExitStack() as hooks:
        for module, change in zip(modules, changes, strict=True):
            hooks.callback(module.register_forward_hook(adding(change)).remove)
        yield
