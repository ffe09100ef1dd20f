"""What of T5 lies above one linear map of its encoder, written out: the same numbers as the network's own modules.

An edit of a small model takes hundreds of passes over one short row. There, nearly all time goes into calling modules and
recording a graph, not into arithmetic. Here the matrices that read the same states are joined, the scales of norms are
multiplied into them, what the answer's tokens alone decide is computed once, and the gradient with respect to the map's
output is written by hand beside each step, so that nothing is recorded. The map itself is called as a module: its hooks
run and its weight may change. No other weight above it may change while a `LeanT5` is in use, and no hook of a module above
it runs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformers.activations import GELUTanh

from palimpsest.models.families import part
from palimpsest.models.lean_decoder import Decoder
from palimpsest.models.lean_layers import Attention, Back, FeedForward, Shape, root_scale, scaled, scaled_back
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import additive

SITES = {"wo": "out", "wi": "in", "wi_0": "in"}  # linear maps above which it is known how to go on


def site_of(model: LanguageModel, layer: int, module: Any) -> str | None:
    """ "out" or "in", the side of the MLP on which the map lies; None where the plain way must be taken."""
    if model.family.name != "t5" or not model.lean or model.dtype not in (torch.float32, torch.float64):
        return None
    network: Any = model.network
    stacks = (network.encoder, network.decoder)
    acts = {type(block.layer[-1].DenseReluDense.act) for stack in stacks for block in stack.block}
    if not acts <= {GELUTanh, torch.nn.ReLU}:
        return None
    dense: Any = part(model.block(layer), "layer.1.DenseReluDense")
    return next((side for name, side in SITES.items() if getattr(dense, name, None) is module), None)


@dataclass(frozen=True)
class Answers:
    """What the answers' tokens alone decide: nothing of it depends on the encoder."""

    shape: Shape
    first: Tensor  # states after the first block's self-attention
    bias: Tensor
    at: Tensor | None  # which of the states are read out; None = all, in order
    wanted: Tensor
    row: Tensor
    share: Tensor  # of each token in its row's loss


class LeanT5:
    """Rows that stand at one linear map of an encoder block, and all that comes after it.

    Attributes:
        asked: input [b, n, d_in] of the map, which no edit of it changes.
    """

    def __init__(
        self, model: LanguageModel, layer: int, side: str, hidden: Float[Tensor, "b n d"], padding: Tensor
    ):
        """Run the block up to the map once; `side` is that of `site_of`."""
        block: Any = model.block(layer)
        self.model, self.side = model, side
        self.attention = [Attention(block.layer[0]) for block in model.blocks[layer + 1 :]]  # type: ignore[index]
        self.feed = [FeedForward(block.layer[1]) for block in model.blocks[layer + 1 :]]  # type: ignore[index]
        self.own = FeedForward(block.layer[1])
        self.norm, self.extra = root_scale(model.final_norm)
        self.decoder = Decoder(model)
        self.beside: Tensor | None = None
        self._mask(padding)
        middle = block.layer[0](hidden, attention_mask=self.padded, position_bias=self.positions)[0]
        normed, dense = block.layer[1].layer_norm(middle), block.layer[1].DenseReluDense
        if self.own.gated:
            self.beside = dense.wi_1(normed)
        if side == "out":
            active = dense.act((dense.wi_0 if self.own.gated else dense.wi)(normed))
            normed = active if self.beside is None else active * self.beside
        self.asked, self.middle = normed, middle
        self._answers: Answers | None = None

    def _mask(self, padding: Int[Tensor, "b n"]) -> None:
        b, n = padding.shape
        attention: Any = part(self.model.blocks[0], "layer.0.SelfAttention")
        heads = attention.n_heads
        self.shape = Shape(b, n, heads)
        self.padded = additive(padding[:, None, None].bool(), self.model.dtype)
        self.positions = attention.compute_bias(n, n)
        self.bias = (self.positions + self.padded).expand(b, heads, n, n).reshape(b * heads, n, n)
        wide = self.padded.expand(b, self.decoder.heads, 1, n)
        self.crossing = wide.reshape(b * self.decoder.heads, 1, n)

    def rows(self, index: Tensor, padding: Int[Tensor, "b n"]) -> LeanT5:
        """Some of the rows, with the padding that they need; nothing is run again."""
        other, n = copy.copy(self), padding.shape[1]
        other._answers = None
        other.asked, other.middle = self.asked[index, :n], self.middle[index, :n]
        if self.beside is not None:
            other.beside = self.beside[index, :n]
        other._mask(padding)
        return other

    # the encoder ---------------------------------------------------------------------------------------------------

    def encode(self, output: Float[Tensor, "b n d_out"]) -> tuple[Float[Tensor, "k d"], Back]:
        """The encoder's final states, given the map's output."""
        flat, backs = output.reshape(-1, output.shape[-1]), list[Back]()
        middle = self.middle.reshape(-1, self.middle.shape[-1])
        beside = None if self.beside is None else self.beside.reshape(len(flat), -1)
        if self.side == "out":
            states = middle + flat
        else:
            active = self.own.act(flat)
            states = torch.addmm(middle, active if beside is None else active * beside, self.own.write_to)
        for attention, feed in zip(self.attention, self.feed, strict=True):
            states, back = attention(states, self.shape, self.bias)
            backs.append(back)
            states, back = feed(states)
            backs.append(back)
        normed, inverse = scaled(states, self.extra)

        def back_all(gradient: Tensor) -> Tensor:
            gradient = scaled_back(gradient * self.norm, normed, inverse)
            for back in reversed(backs):
                gradient = back(gradient)
            if self.side == "in":
                gradient = gradient @ self.own.write
                gradient = self.own.act_back(gradient if beside is None else gradient * beside, flat)
            return gradient.view(output.shape)

        return normed * self.norm, back_all

    @property
    def has_answers(self) -> bool:
        """Whether `answers` was called."""
        return self._answers is not None

    # the loss ------------------------------------------------------------------------------------------------------

    def answers(self, ids: Int[Tensor, "b m"], targets: Int[Tensor, "b m"], none: int) -> None:
        """Say once which answers are asked for."""
        decoder, (b, m) = self.decoder, ids.shape
        shape = Shape(b, m, decoder.heads)
        bias = decoder.bias(m).expand(b, -1, -1, -1).reshape(b * decoder.heads, m, m)
        embedded = decoder.embed(ids).view(b * m, -1)
        first, _ = decoder.attention[0](embedded, shape, bias)
        places = (targets != none).view(-1).nonzero()[:, 0]
        row = torch.div(places, m, rounding_mode="floor")
        share = 1.0 / torch.bincount(row, minlength=b).to(self.model.dtype)[row]
        at = None if len(places) == b * m else places
        self._answers = Answers(shape, first, bias, at, targets.reshape(-1)[places], row, share)

    def judge(self, output: Float[Tensor, "b n d_out"]) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Mean loss of each row (with gradient) and whether all its tokens are the most probable ones."""
        if torch.is_grad_enabled() and output.requires_grad:
            losses, right = _Judge.apply(output, self)
            return losses, right
        with torch.no_grad():
            losses, right, _ = self._judge(output)
        return losses, right

    def _judge(self, output: Tensor) -> tuple[Tensor, Tensor, Back]:
        assert self._answers is not None, "call `answers` first"
        given, decoder = self._answers, self.decoder
        encoded, encoder_back = self.encode(output)
        looked = decoder.looked_at(encoded, self.shape)
        read = [(keys, values) for keys, values in (block.unbind() for block in looked.unbind())]
        states, backs = given.first, list[tuple[Back | None, Any, Back]]()
        for number, (cross, feed) in enumerate(zip(decoder.cross, decoder.feed, strict=True)):
            own_back: Back | None = None
            if number:
                states, own_back = decoder.attention[number](states, given.shape, given.bias)
            states, cross_back = cross(states, given.shape, *read[number], self.crossing)
            states, feed_back = feed(states)
            backs.append((own_back, cross_back, feed_back))
        if given.at is not None:
            states = states[given.at]
        normed, inverse = scaled(states, decoder.extra)
        logits = linear(normed, decoder.head)
        log_p = torch.log_softmax(logits, -1)
        each = log_p.gather(1, given.wanted[:, None])[:, 0] * given.share
        losses = each.new_zeros(given.shape.rows).index_add_(0, given.row, each, alpha=-1)
        wrong = torch.zeros_like(losses).index_add_(
            0, given.row, (logits.argmax(-1) != given.wanted).to(losses.dtype)
        )

        def back(gradient: Float[Tensor, " b"]) -> Tensor:
            weight = (gradient[given.row] * given.share)[:, None]
            change = log_p.exp().scatter_add_(1, given.wanted[:, None], -torch.ones_like(weight)).mul_(weight)
            moved = scaled_back(change @ decoder.head, normed, inverse)
            if given.at is not None:
                moved = moved.new_zeros(given.first.shape).index_copy_(0, given.at, moved)
            to_looked: list[Tensor] = []
            for number in reversed(range(len(backs))):
                own_back, cross_back, feed_back = backs[number]
                moved, to_keys, to_values = cross_back(feed_back(moved), number > 0)
                to_looked = [to_keys, to_values, *to_looked]
                if own_back is not None:
                    moved = own_back(moved)
            return encoder_back(decoder.looked_at_back(torch.stack(to_looked), self.shape))

        return losses, wrong == 0, back


class _Judge(torch.autograd.Function):
    """The losses with their gradient written by hand, as one step of whatever graph lies below the map's output."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, lean: LeanT5) -> tuple[Tensor, Tensor]:
        losses, right, ctx.gradient = lean._judge(output)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient(gradients[0]), None
