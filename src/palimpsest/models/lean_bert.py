"""BERT above one linear map of a block's MLP, written out: see models/lean.py.

The pooler reads the first token only, so in the last block only this column is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import gelu, linear
from transformers.activations import GELUActivation

from palimpsest.models.families import part
from palimpsest.models.lean import (
    Back,
    LeanRows,
    Norm,
    Shape,
    Wanted,
    no_type_check,
    softmax_back,
    written_out,
)
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs
from palimpsest.models.partial import additive


class BertAttention:
    """Self-attention, its residual connection and the norm behind it."""

    def __init__(self, attention: Any):
        own, out = attention.self, attention.output
        self.heads, self.scale = own.num_attention_heads, own.scaling
        maps = (own.query, own.key, own.value)
        self.read, self.read_bias = (
            torch.cat([one.weight for one in maps]),
            torch.cat([one.bias for one in maps]),
        )
        self.write, self.write_bias, self.norm = out.dense.weight, out.dense.bias, Norm(out.LayerNorm)

    def __call__(
        self, states: Float[Tensor, "k d"], shape: Shape, mask: Float[Tensor, "bh 1 n"], first: bool
    ) -> tuple[Float[Tensor, "k2 d"], Back]:
        """States of all columns, or of each row's first one only; `mask` is additive."""
        b, n, h = shape.rows, shape.tokens, shape.heads
        asked = Shape(b, 1, h) if first else shape
        read = linear(states, self.read, self.read_bias).view(b, n, 3, h, -1)
        q, k, v = read.permute(2, 0, 3, 1, 4).reshape(3, b * h, n, -1).unbind()
        q = q[:, :1] if first else q
        weights = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=self.scale), -1)
        mixed = asked.join(torch.bmm(weights, v))
        kept = states.view(b, n, -1)[:, 0] if first else states
        output, norm_back = self.norm(linear(mixed, self.write, self.write_bias) + kept)

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            gradient = norm_back(gradient)
            to_mixed = asked.split(gradient @ self.write)
            scores = softmax_back(torch.bmm(to_mixed, v.transpose(1, 2)), weights) * self.scale
            to_q, to_k = torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q)
            to_v = torch.bmm(weights.transpose(1, 2), to_mixed)
            if first:
                to_q = torch.nn.functional.pad(to_q, (0, 0, 0, n - 1))
            parts = torch.stack((to_q, to_k, to_v)).view(3, b, h, n, -1).permute(1, 3, 0, 2, 4)
            through = parts.reshape(b * n, -1) @ self.read
            if first:
                through.view(b, n, -1)[:, 0] += gradient
                return through
            return through.add_(gradient)

        return output, back


class BertFeedForward:
    """The MLP, its residual connection and the norm behind it."""

    def __init__(self, block: Any):
        out = block.output
        self.read, self.read_bias = block.intermediate.dense.weight, block.intermediate.dense.bias
        self.write, self.write_bias, self.norm = out.dense.weight, out.dense.bias, Norm(out.LayerNorm)

    def __call__(self, states: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k d"], Back]:
        """States after the MLP."""
        output, both_back = self.after(states, linear(states, self.read, self.read_bias))

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            to_inner, to_states = both_back(gradient)
            return torch.addmm(to_states, to_inner, self.read)

        return output, back

    def after(self, states: Float[Tensor, "k d"], inner: Float[Tensor, "k inner"]) -> tuple[Tensor, Any]:
        """States after the MLP, given what its first map gives; the way back is to that and to the states."""
        output, written_back = self.add(states, linear(gelu(inner), self.write, self.write_bias))

        @no_type_check
        def back(gradient: Tensor) -> tuple[Tensor, Tensor]:
            gradient = written_back(gradient)
            return torch.ops.aten.gelu_backward(gradient @ self.write, inner), gradient

        return output, back

    def add(self, states: Float[Tensor, "k d"], written: Float[Tensor, "k d"]) -> tuple[Tensor, Back]:
        """The states and what the second map gives, normed; the way back to either, which is the same."""
        return self.norm(states + written)


class LeanBert(LeanRows):
    """Rows that stand at one map of a BERT block's MLP."""

    @staticmethod
    def side(model: LanguageModel, layer: int, module: Any) -> str | None:
        """As LeanRows."""
        blocks: Any = model.blocks
        if model.network.config.is_decoder or any(
            not isinstance(block.intermediate.intermediate_act_fn, GELUActivation | torch.nn.GELU)
            for block in blocks
        ):
            return None
        block: Any = model.block(layer)
        if module is block.intermediate.dense:
            return "in"
        return "out" if module is block.output.dense else None

    def __init__(
        self, model: LanguageModel, layer: int, side: str, hidden: Float[Tensor, "b n d"], padding: Tensor
    ):
        """As LeanRows."""
        block: Any = model.block(layer)
        above: list[Any] = list(model.blocks[layer + 1 :])  # type: ignore[arg-type]
        self.model, self.map_side = model, side
        self.attention = [written_out(model, BertAttention, one.attention) for one in above]
        self.feed = [BertFeedForward(one) for one in above]
        pooler: Any = part(model.network, str(model.family.pooler))
        head: Any = model.head
        self.pool, self.pool_bias = pooler.dense.weight, pooler.dense.bias
        self.head, self.head_bias = head.weight, head.bias
        own, self.own = written_out(model, BertAttention, block.attention), BertFeedForward(block)
        self.shape = Shape(len(hidden), hidden.shape[1], own.heads)
        self.lay_out(padding)
        middle, _ = own(hidden.reshape(-1, hidden.shape[-1]), self.shape, self.mask, False)
        asked = gelu(linear(middle, self.own.read, self.own.read_bias)) if side == "out" else middle
        self.asked, self.middle = asked.view(*hidden.shape[:2], -1), middle.view(hidden.shape)
        self.wanted: Wanted | None = None

    @staticmethod
    def kept(model: LanguageModel, layer: int, side: str, rows: int, tokens: int) -> int:
        """As LeanRows."""
        asked = model.inner_width if side == "out" else 0  # else it is what the MLP is added to
        return rows * tokens * (model.width + asked + model.network.config.num_attention_heads)

    def lay_out(self, padding: Int[Tensor, "b n"]) -> None:
        """As LeanRows."""
        b, n = padding.shape
        self.shape = Shape(b, n, self.shape.heads)
        hidden = additive(padding[:, None, None].bool(), self.model.dtype).expand(b, self.shape.heads, 1, n)
        self.mask = hidden.reshape(b * self.shape.heads, 1, n)

    def answers(self, inputs: Inputs) -> None:
        """As LeanRows."""
        self.wanted = Wanted.of(inputs.targets, self.model.dtype)

    def classes(self, output: Float[Tensor, "b n d_out"]) -> tuple[Float[Tensor, "b classes"], Back]:
        """Logits of the classes, given the map's output; the way back to that."""
        b, n = self.shape.rows, self.shape.tokens
        flat, middle = output.reshape(b * n, -1), self.middle.reshape(b * n, -1)
        backs = list[Back]()
        if self.map_side == "out":
            states, own_back = self.own.add(middle, flat)
            backs.append(own_back)
        else:
            states, both_back = self.own.after(middle, flat)
            backs.append(lambda gradient: both_back(gradient)[0])
        for number, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True), 1):
            states, back = attention(states, self.shape, self.mask, number == len(self.feed))
            backs.append(back)
            states, back = feed(states)
            backs.append(back)
        first = states if self.feed else states.view(b, n, -1)[:, 0]
        pooled = torch.tanh(linear(first, self.pool, self.pool_bias))

        @no_type_check
        def back_all(gradient: Tensor) -> Tensor:
            through = torch.ops.aten.tanh_backward(gradient @ self.head, pooled) @ self.pool
            if not self.feed:
                spread = through.new_zeros(b, n, through.shape[-1])
                spread[:, 0] = through
                through = spread.view(b * n, -1)
            for one in reversed(backs):
                through = one(through)
            return through.view(output.shape)

        return linear(pooled, self.head, self.head_bias), back_all

    def measure(
        self, output: Float[Tensor, "b n d_out"]
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"], Back]:
        """As LeanRows."""
        assert self.wanted is not None, "call `answers` first"
        logits, classes_back = self.classes(output)
        losses, right, logits_back = self.wanted.measure(logits)
        return losses, right, lambda gradient: classes_back(logits_back(gradient))
