"""Rows that stand at one linear map, and all that comes after it written out: the same numbers as the network's own modules.

An edit of a small model takes hundreds of passes over one short row. There, nearly all time goes into calling modules and
recording a graph, not into arithmetic. So, for each family (`lean_t5.py`, `lean_gpt2.py`, `lean_bert.py`), what follows the
map is written as plain tensor operations, what no edit changes is computed once, positions that nobody reads are left out, and
the gradient with respect to the map's output stands beside each step, so that nothing is recorded. Joined and scaled matrices
are as large as the network: all rows of a model share them (`written_out`).

The map itself is called as a module: its hooks run and its weight may change. No other weight above it may change while
such rows are in use, and no hook of a module above it runs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import NONE, Inputs

Back = Callable[[Tensor], Tensor]
P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., Any])
WIDEST_FIRST = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
)  # 64 bits at a time are read ten times faster


def no_type_check(function: F) -> F:
    """Tests do not check the shapes of this function: made anew at every step, it would be compiled for that each time.

    Their checks go by the name, which is that of `typing`'s; that one would keep mypy out too.
    """
    return function


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch: rows, tokens of a row, heads."""

    rows: int
    tokens: int
    heads: int

    def split(self, states: Float[Tensor, "k w"]) -> Float[Tensor, "bh n c"]:
        """Heads apart."""
        cut = states.view(self.rows, self.tokens, self.heads, -1).transpose(1, 2)
        return cut.reshape(self.rows * self.heads, self.tokens, -1)

    def join(self, states: Float[Tensor, "bh n c"]) -> Float[Tensor, "k w"]:
        """Heads beside each other."""
        apart = states.view(self.rows, self.heads, self.tokens, -1).transpose(1, 2)
        return apart.reshape(self.rows * self.tokens, -1)


@dataclass(frozen=True)
class Wanted:
    """The target tokens of all rows, in order.

    Attributes:
        places: of each, in the flattened [rows x columns].
        tokens: what it should be.
        row: to which row it belongs.
        share: its part of the row's mean loss.
        count: rows in all.
    """

    places: Int[Tensor, " k"]
    tokens: Int[Tensor, " k"]
    row: Int[Tensor, " k"]
    share: Float[Tensor, " k"]
    count: int

    @staticmethod
    def of(targets: Int[Tensor, "b m"], dtype: torch.dtype) -> Wanted:
        """From targets as `objectives.Inputs` has them."""
        b, m = targets.shape
        places = (targets != NONE).reshape(-1).nonzero()[:, 0]
        row = torch.div(places, m, rounding_mode="floor")
        share = 1.0 / torch.bincount(row, minlength=b).to(dtype)[row]
        return Wanted(places, targets.reshape(-1)[places], row, share, b)

    def measure(
        self, logits: Float[Tensor, "k v"]
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"], Callable[[Float[Tensor, " b"]], Tensor]]:
        """Mean loss of each row, whether all its tokens are the most probable ones, and the way back to the logits."""
        log_p = torch.log_softmax(logits, -1)
        each = log_p.gather(1, self.tokens[:, None])[:, 0] * self.share
        losses = each.new_zeros(self.count).index_add_(0, self.row, each, alpha=-1)
        missed = (logits.argmax(-1) != self.tokens).to(losses.dtype)
        wrong = torch.zeros_like(losses).index_add_(0, self.row, missed)

        @no_type_check
        def back(gradient: Float[Tensor, " b"]) -> Float[Tensor, "k v"]:
            weight = (gradient[self.row] * self.share)[:, None]
            return log_p.exp().scatter_add_(1, self.tokens[:, None], -torch.ones_like(weight)).mul_(weight)

        return losses, wrong == 0, back


class LeanRows(ABC):
    """One family's way on from a linear map.

    Attributes:
        asked: input [b, n, d_in] of the map, which no edit of it changes.
        middle: states [b, n, d] to which the MLP of the map's block is added.
        wanted: what `answers` noted; None before.
    """

    asked: Float[Tensor, "b n d_in"]
    middle: Float[Tensor, "b n d"]
    wanted: Any

    @staticmethod
    @abstractmethod
    def side(model: LanguageModel, layer: int, module: Any) -> str | None:
        """ "in" or "out", the side of the MLP on which the map lies; None where this way does not know how to go on."""

    @abstractmethod
    def __init__(
        self, model: LanguageModel, layer: int, side: str, hidden: Float[Tensor, "b n d"], padding: Tensor
    ):
        """Run block `layer` up to the map once; `side` is that of `side()`, `hidden` the block's input."""

    @staticmethod
    @abstractmethod
    def kept(model: LanguageModel, layer: int, side: str, rows: int, tokens: int) -> int:
        """How many numbers such rows keep, `tokens` each with their padding; shared weights and `answers` not counted."""

    @abstractmethod
    def lay_out(self, padding: Int[Tensor, "b n"]) -> None:
        """Note the rows' shape, and who may attend to whom."""

    def rows(self, index: Int[Tensor, " k"], padding: Int[Tensor, "k n"]) -> LeanRows:
        """Some of the rows, with the padding that they need; nothing is run again."""
        other, n = copy.copy(self), padding.shape[1]
        other.wanted = None
        other.asked, other.middle = self.asked[index, :n], self.middle[index, :n]
        other.lay_out(padding)
        return other

    @abstractmethod
    def answers(self, inputs: Inputs) -> None:
        """Say once which answers are asked for."""

    @abstractmethod
    def measure(
        self, output: Float[Tensor, "b n d_out"]
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"], Back]:
        """Losses and verdicts of the rows, given the map's output, and the way back to it."""

    def judge(self, output: Float[Tensor, "b n d_out"]) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Mean loss of each row (with gradient) and whether all its tokens are the most probable ones."""
        if torch.is_grad_enabled() and output.requires_grad:
            losses, right = _Judge.apply(output, self)
            return losses, right
        with torch.no_grad():
            losses, right, _ = self.measure(output)
        return losses, right


class _Judge(torch.autograd.Function):
    """The losses with their gradient written by hand, as one step of whatever graph lies below the map's output."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, lean: LeanRows) -> tuple[Tensor, Tensor]:
        losses, right, ctx.gradient = lean.measure(output)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient(gradients[0]), None


def written_out(model: LanguageModel, kind: Callable[[Any], P], module: nn.Module, *read: nn.Module) -> P:
    """`kind(module)`, made once for a model, and again whenever a weight that it was made of is another one.

    Args:
        read: the modules whose weights it is made of, where that is not all of `module`.
    """
    now = _bits([weight for one in read or (module,) for weight in one.parameters()])
    made = model.written_out.get((kind, module))
    if made is None or made[0] != now:
        made = model.written_out[kind, module] = (now, kind(module))
    return made[1]


def _bits(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where each weight lies, and the sum over its bits as whole numbers.

    Torch's own counter of changes does not see what is written through `.data`, and a weight that was missed would give
    wrong numbers without a word. One reading of the weights is a small part of writing them out.
    """
    sums = [_whole_numbers(weight.detach()).sum() for weight in weights]
    return list(zip((weight.data_ptr() for weight in weights), torch.stack(sums).tolist(), strict=True))


def _whole_numbers(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    # Where the weight begins in its memory counts too: a piece of a larger one may begin anywhere.
    size = (flat.numel() | int(flat.storage_offset())) * flat.element_size()
    return flat.view(next(kind for kind in WIDEST_FIRST if size % kind.itemsize == 0))


def softmax_back(gradient: Tensor, weights: Tensor) -> Tensor:
    """Gradient with respect to what a softmax over the last dimension was taken of."""
    return torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)


class Norm:
    """A layer norm with scale and shift on states [k, d]."""

    def __init__(self, module: Any):
        self.weight, self.bias, self.epsilon = module.weight, module.bias, float(module.eps)
        self.shape = list(module.normalized_shape)

    def __call__(self, states: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k d"], Back]:
        """Normed states; the way back."""
        normed, mean, inverse = torch.native_layer_norm(
            states, self.shape, self.weight, self.bias, self.epsilon
        )

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            found, _, _ = torch.ops.aten.native_layer_norm_backward(
                gradient, states, self.shape, mean, inverse, self.weight, self.bias, [True, False, False]
            )
            return found

        return normed, back
