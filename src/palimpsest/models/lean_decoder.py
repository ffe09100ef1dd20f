"""T5's decoder written out: what it reads of the encoder, and greedy answers token by token (see models/lean_t5.py)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from palimpsest.models.families import part
from palimpsest.models.greedy import Decoding
from palimpsest.models.lean import Shape
from palimpsest.models.lean_layers import CrossAttention, T5Attention, T5FeedForward, root_scale, scaled
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import additive, causal_mask


class Decoder:
    """The weights of T5's decoder and head, joined. Of the whole network, but made of `stack` and head only (`written_out`)."""

    def __init__(self, network: Any):
        stack = network.get_decoder()
        self.stack, self.embed = stack, stack.embed_tokens
        self.attention = [T5Attention(block.layer[0]) for block in stack.block]
        self.cross = [CrossAttention(block.layer[1]) for block in stack.block]
        self.feed = [T5FeedForward(block.layer[2]) for block in stack.block]
        looks = [block.layer[1].EncDecAttention for block in stack.block]
        # what all blocks read of the encoder
        self.look = torch.cat([weight for own in looks for weight in (own.k.weight, own.v.weight)])
        self.heads = self.attention[0].heads
        scale, self.extra = root_scale(stack.final_layer_norm)
        if network.config.scale_decoder_outputs:
            scale = scale * len(scale) ** -0.5
        self.head = network.lm_head.weight * scale
        self._bias = self.head.new_empty(1, self.heads, 0, 0)

    def bias(self, tokens: int) -> Float[Tensor, "1 h m m"]:
        """Position bias and causal mask of the first tokens."""
        if tokens > self._bias.shape[-1]:
            attention: Any = part(self.stack.block[0], "layer.0.SelfAttention")
            size = max(tokens, 2 * self._bias.shape[-1], 16)
            ones = torch.ones(1, size, dtype=torch.long, device=self.head.device)
            self._bias = attention.compute_bias(size, size) + causal_mask(ones, self.head.dtype)
        return self._bias[:, :, :tokens, :tokens]

    def looked_at(self, states: Float[Tensor, "k d"], shape: Shape) -> Float[Tensor, "blocks 2 bh n c"]:
        """Keys and values that each block reads of the encoder's states."""
        read = linear(states, self.look).view(shape.rows, shape.tokens, len(self.cross), 2, self.heads, -1)
        apart = read.permute(2, 3, 0, 4, 1, 5)
        return apart.reshape(len(self.cross), 2, shape.rows * self.heads, shape.tokens, -1)

    def looked_at_back(self, gradient: Tensor, shape: Shape) -> Float[Tensor, "k d"]:
        """Gradient with respect to the encoder's states."""
        apart = gradient.view(len(self.cross), 2, shape.rows, self.heads, shape.tokens, -1)
        return apart.permute(2, 4, 0, 1, 3, 5).reshape(shape.rows * shape.tokens, -1) @ self.look


class LeanAnswers(Decoding):
    """Answers of rows whose encoder states are known: `greedy.AnswerDecoder` without the network's modules."""

    def __init__(
        self,
        model: LanguageModel,
        decoder: Decoder,
        states: Float[Tensor, "k d"],
        padding: Int[Tensor, "b n"],
    ):
        self.model, self.decoder = model, decoder
        b, n = padding.shape
        shape = Shape(b, n, decoder.heads)
        looked = decoder.looked_at(states, shape)
        self.looked = looked.view(len(decoder.cross), 2, b, decoder.heads, n, -1)
        self.mask = additive(padding[:, None, None].bool(), states.dtype)
        self.own: list[Tensor] = []  # keys and values of the tokens so far, of each block: [2, b, h, m, c]
        self.tokens = 0

    def room(self) -> list[int]:
        """As many tokens as the model reads."""
        return [self.model.context] * len(self.mask)

    def keep(self, places: Int[Tensor, " k"]) -> None:
        """Go on with some of the rows."""
        self.looked, self.mask = self.looked[:, :, places], self.mask[places]
        self.own = [kept[:, places] for kept in self.own]

    def first(self) -> Float[Tensor, "b v"]:
        """Logits after the start token."""
        start = int(self.model.network.config.decoder_start_token_id)
        return self.after(torch.full((len(self.mask),), start, device=self.mask.device))

    def after(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """One pass of the decoder over one token a row."""
        decoder, b, h = self.decoder, len(tokens), self.decoder.heads
        states, going = decoder.embed(tokens), self.tokens > 0
        self.tokens += 1
        bias = decoder.bias(self.tokens)[:, :, -1:]
        for number, (own, cross, feed) in enumerate(
            zip(decoder.attention, decoder.cross, decoder.feed, strict=True)
        ):
            normed, _ = scaled(states, own.extra)
            read = linear(normed, own.read).view(b, 3, h, 1, -1).transpose(0, 1)
            if going:
                self.own[number] = torch.cat([self.own[number], read[1:]], dim=3)
            else:
                self.own.append(read[1:])
            keys, values = self.own[number]
            seen = scaled_dot_product_attention(read[0], keys, values, attn_mask=bias, scale=1.0)
            states = torch.addmm(states, seen.reshape(b, -1), own.write_to)
            normed, _ = scaled(states, cross.extra)
            asked = linear(normed, cross.ask).view(b, h, 1, -1)
            keys, values = self.looked[number]
            seen = scaled_dot_product_attention(asked, keys, values, attn_mask=self.mask, scale=1.0)
            states = torch.addmm(states, seen.reshape(b, -1), cross.write_to)
            states, _ = feed(states)
        normed, _ = scaled(states, decoder.extra)
        return linear(normed, decoder.head)
