"""T5 above one linear map of its encoder, written out: see models/lean.py.

The matrices that read the same states are joined, the scales of norms are multiplied into them, and what the answer's tokens
alone decide is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformers.activations import GELUTanh

from palimpsest.models.families import part
from palimpsest.models.lean import Back, LeanRows, Shape, Wanted, no_type_check, written_out
from palimpsest.models.lean_decoder import Decoder
from palimpsest.models.lean_layers import (
    Activation,
    T5Attention,
    T5FeedForward,
    root_scale,
    scaled,
    scaled_back,
)
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs
from palimpsest.models.partial import additive

SITES = {"wo": "out", "wi": "in", "wi_0": "in"}  # linear maps above which it is known how to go on


@dataclass(frozen=True)
class Answers:
    """What the answers' tokens alone decide: nothing of it depends on the encoder."""

    shape: Shape
    first: Tensor  # states after the first block's self-attention
    bias: Tensor
    at: Tensor | None  # which of the states are read out; None = all, in order
    wanted: Wanted


class LeanT5(LeanRows):
    """Rows that stand at one linear map of an encoder block."""

    @staticmethod
    def side(model: LanguageModel, layer: int, module: Any) -> str | None:
        """As LeanRows."""
        network: Any = model.network
        stacks = (network.encoder, network.decoder)
        acts = {type(block.layer[-1].DenseReluDense.act) for stack in stacks for block in stack.block}
        if not acts <= {GELUTanh, torch.nn.ReLU}:
            return None
        dense: Any = part(model.block(layer), "layer.1.DenseReluDense")
        return next((side for name, side in SITES.items() if getattr(dense, name, None) is module), None)

    def __init__(
        self, model: LanguageModel, layer: int, side: str, hidden: Float[Tensor, "b n d"], padding: Tensor
    ):
        """As LeanRows."""
        block: Any = model.block(layer)
        above: list[Any] = list(model.blocks[layer + 1 :])  # type: ignore[arg-type]
        self.model, self.map_side, network = model, side, model.network
        self.attention = [written_out(model, T5Attention, one.layer[0]) for one in above]
        self.feed = [written_out(model, T5FeedForward, one.layer[1]) for one in above]
        self.own = Activation(block.layer[1])
        self.norm, self.extra = root_scale(model.final_norm)
        self.decoder = written_out(model, Decoder, network, network.get_decoder(), network.lm_head)
        self.beside: Tensor | None = None
        self.lay_out(padding)
        middle = block.layer[0](hidden, attention_mask=self.padded, position_bias=self.positions)[0]
        normed, dense = block.layer[1].layer_norm(middle), block.layer[1].DenseReluDense
        beside = dense.wi_1(normed) if self.own.gated else None
        if side == "out":
            active = dense.act((dense.wi_0 if self.own.gated else dense.wi)(normed))
            normed = active if beside is None else active * beside
        else:
            self.beside = beside
        self.asked, self.middle = normed, middle
        self.wanted: Answers | None = None

    @staticmethod
    def kept(model: LanguageModel, layer: int, side: str, rows: int, tokens: int) -> int:
        """As LeanRows."""
        sublayer: Any = part(model.block(layer), "layer.1")
        heads, own = model.network.config.num_heads, Activation(sublayer)
        widths = [model.width, model.inner_width if side == "out" else model.width]  # middle, asked
        widths += [model.inner_width] if side == "in" and own.gated else []  # beside
        masks = rows * tokens * (1 + heads) + (1 + rows) * heads * tokens**2
        return rows * tokens * sum(widths) + masks

    def lay_out(self, padding: Int[Tensor, "b n"]) -> None:
        """As LeanRows."""
        b, n = padding.shape
        attention: Any = part(self.model.blocks[0], "layer.0.SelfAttention")
        heads = attention.n_heads
        self.shape = Shape(b, n, heads)
        self.padded = additive(padding[:, None, None].bool(), self.model.dtype)
        self.positions = attention.compute_bias(n, n)
        self.bias = (self.positions + self.padded).expand(b, heads, n, n).reshape(b * heads, n, n)
        wide = self.padded.expand(b, self.decoder.heads, 1, n)
        self.crossing = wide.reshape(b * self.decoder.heads, 1, n)

    def rows(self, index: Int[Tensor, " k"], padding: Int[Tensor, "k n"]) -> LeanT5:
        """As LeanRows."""
        other = super().rows(index, padding)
        assert isinstance(other, LeanT5)
        if self.beside is not None:
            other.beside = self.beside[index, : padding.shape[1]]
        return other

    # the encoder ---------------------------------------------------------------------------------------------------

    def encode(self, output: Float[Tensor, "b n d_out"]) -> tuple[Float[Tensor, "k d"], Back]:
        """The encoder's final states, given the map's output."""
        flat, backs = output.reshape(-1, output.shape[-1]), list[Back]()
        middle = self.middle.reshape(-1, self.middle.shape[-1])
        beside = None if self.beside is None else self.beside.reshape(len(flat), -1)
        if self.map_side == "out":
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

        @no_type_check
        def back_all(gradient: Tensor) -> Tensor:
            gradient = scaled_back(gradient * self.norm, normed, inverse)
            for back in reversed(backs):
                gradient = back(gradient)
            if self.map_side == "in":
                gradient = gradient @ self.own.write
                gradient = self.own.act_back(gradient if beside is None else gradient * beside, flat)
            return gradient.view(output.shape)

        return normed * self.norm, back_all

    # the loss ------------------------------------------------------------------------------------------------------

    def answers(self, inputs: Inputs) -> None:
        """As LeanRows."""
        decoder, ids = self.decoder, inputs.named["decoder_input_ids"]
        b, m = ids.shape
        shape = Shape(b, m, decoder.heads)
        bias = decoder.bias(m).expand(b, -1, -1, -1).reshape(b * decoder.heads, m, m)
        embedded = decoder.embed(ids).view(b * m, -1)
        first, _ = decoder.attention[0](embedded, shape, bias)
        wanted = Wanted.of(inputs.targets, self.model.dtype)
        at = None if len(wanted.places) == b * m else wanted.places
        self.wanted = Answers(shape, first, bias, at, wanted)

    def measure(
        self, output: Float[Tensor, "b n d_out"]
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"], Back]:
        """As LeanRows."""
        assert self.wanted is not None, "call `answers` first"
        given, decoder = self.wanted, self.decoder
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
        losses, right, logits_back = given.wanted.measure(linear(normed, decoder.head))

        @no_type_check
        def back(gradient: Float[Tensor, " b"]) -> Tensor:
            moved = scaled_back(logits_back(gradient) @ decoder.head, normed, inverse)
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

        return losses, right, back
