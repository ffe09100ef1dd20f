"""GPT-2 above one linear map of a block's MLP, written out: see models/lean.py.

In the last block only the columns that hold a target of some row are asked for; the earlier ones are there as keys and values
only. Rows are padded on the right, so that under the causal mask no real token ever sees padding.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import gelu, linear
from transformers.activations import GELUTanh, NewGELUActivation

from palimpsest.models.lean import Back, LeanRows, Norm, Shape, Wanted, no_type_check, softmax_back
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs
from palimpsest.models.partial import causal_mask


class Window:
    """The columns that are asked for: [first, last) of each row's `shape.tokens`."""

    def __init__(self, shape: Shape, first: int, last: int):
        self.whole, self.first, self.last = shape, first, last
        self.shape = Shape(shape.rows, last - first, shape.heads)

    def cut(self, states: Float[Tensor, "k w"]) -> Float[Tensor, "k2 w"]:
        """States of all columns -> of the window."""
        if self.shape == self.whole:
            return states
        apart = states.view(self.whole.rows, self.whole.tokens, -1)[:, self.first : self.last]
        return apart.reshape(len(states) // self.whole.tokens * self.shape.tokens, -1)

    def spread(self, gradient: Float[Tensor, "k2 w"]) -> Float[Tensor, "k w"]:
        """The other way, with zeros beside the window."""
        if self.shape == self.whole:
            return gradient
        spread = gradient.new_zeros(self.whole.rows, self.whole.tokens, gradient.shape[-1])
        spread[:, self.first : self.last] = gradient.view(self.whole.rows, self.shape.tokens, -1)
        return spread.view(-1, gradient.shape[-1])


class Gpt2Attention:
    """Self-attention with its norm and residual connection."""

    def __init__(self, block: Any):
        own = block.attn
        self.norm, self.heads, self.scale = Norm(block.ln_1), own.num_heads, own.scaling
        self.read, self.read_bias = own.c_attn.weight, own.c_attn.bias
        self.write, self.write_bias = own.c_proj.weight, own.c_proj.bias

    def __call__(
        self, states: Float[Tensor, "k d"], window: Window, mask: Float[Tensor, "1 n n"]
    ) -> tuple[Float[Tensor, "k2 d"], Back]:
        """States of the window's columns after the sublayer; `mask` is additive."""
        normed, norm_back = self.norm(states)
        whole, asked = window.whole, window.shape
        b, n, h = whole.rows, whole.tokens, whole.heads
        read = torch.addmm(self.read_bias, normed, self.read).view(b, n, 3, h, -1)
        q, k, v = read.permute(2, 0, 3, 1, 4).reshape(3, b * h, n, -1).unbind()
        narrow = asked != whole
        q = q[:, window.first : window.last] if narrow else q
        seen = mask[:, window.first : window.last].expand(b * h, -1, -1)
        weights = torch.softmax(torch.baddbmm(seen, q, k.transpose(1, 2), alpha=self.scale), -1)
        mixed = asked.join(torch.bmm(weights, v))
        output = torch.addmm(window.cut(states), mixed, self.write).add_(self.write_bias)

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            to_mixed = asked.split(gradient @ self.write.T)
            scores = softmax_back(torch.bmm(to_mixed, v.transpose(1, 2)), weights) * self.scale
            to_q, to_k = torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q)
            to_v = torch.bmm(weights.transpose(1, 2), to_mixed)
            if narrow:
                to_q = torch.nn.functional.pad(to_q, (0, 0, window.first, n - window.last))
            parts = torch.stack((to_q, to_k, to_v)).view(3, b, h, n, -1).permute(1, 3, 0, 2, 4)
            through = norm_back(parts.reshape(b * n, -1) @ self.read.T)
            return through.add_(window.spread(gradient))

        return output, back


class Gpt2FeedForward:
    """The MLP with its norm and residual connection."""

    def __init__(self, block: Any):
        dense = block.mlp
        self.norm = Norm(block.ln_2)
        self.read, self.read_bias = dense.c_fc.weight, dense.c_fc.bias
        self.write, self.write_bias = dense.c_proj.weight, dense.c_proj.bias

    def __call__(self, states: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k d"], Back]:
        """States after the MLP."""
        normed, norm_back = self.norm(states)
        output, inner_back = self.after(states, torch.addmm(self.read_bias, normed, self.read))

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            return norm_back(inner_back(gradient) @ self.read.T).add_(gradient)

        return output, back

    def after(
        self, states: Float[Tensor, "k d"], inner: Float[Tensor, "k inner"]
    ) -> tuple[Float[Tensor, "k d"], Back]:
        """States after the MLP, given what its first map gives; the way back is to that."""
        active = gelu(inner, approximate="tanh")
        output = torch.addmm(states, active, self.write).add_(self.write_bias)
        return output, lambda gradient: torch.ops.aten.gelu_backward(
            gradient @ self.write.T, inner, approximate="tanh"
        )


class LeanGpt2(LeanRows):
    """Rows that stand at one map of a GPT-2 block's MLP."""

    @staticmethod
    def side(model: LanguageModel, layer: int, module: Any) -> str | None:
        """As LeanRows."""
        network: Any = model.network
        if network.config.add_cross_attention or network.config.reorder_and_upcast_attn:
            return None
        if any(not isinstance(block.mlp.act, GELUTanh | NewGELUActivation) for block in model.blocks):  # type: ignore[union-attr]
            return None
        dense: Any = model.block(layer).mlp
        return "in" if module is dense.c_fc else "out" if module is dense.c_proj else None

    def __init__(
        self, model: LanguageModel, layer: int, side: str, hidden: Float[Tensor, "b n d"], padding: Tensor
    ):
        """As LeanRows."""
        block: Any = model.block(layer)
        above: list[Any] = list(model.blocks[layer + 1 :])  # type: ignore[arg-type]
        self.model, self.map_side = model, side
        self.attention = [Gpt2Attention(one) for one in above]
        self.feed = [Gpt2FeedForward(one) for one in above]
        self.own, self.norm = Gpt2FeedForward(block), Norm(model.final_norm)
        head: Any = model.head
        self.head, self.head_bias = head.weight, head.bias
        own = Gpt2Attention(block)
        self.shape = Shape(len(hidden), hidden.shape[1], own.heads)
        self.lay_out(padding)
        flat = hidden.reshape(-1, hidden.shape[-1])
        middle, _ = own(flat, Window(self.shape, 0, self.shape.tokens), self.mask)
        normed, _ = self.own.norm(middle)
        if side == "out":
            normed = gelu(torch.addmm(self.own.read_bias, normed, self.own.read), approximate="tanh")
        self.asked, self.middle = normed.view(*hidden.shape[:2], -1), middle.view(hidden.shape)
        self.wanted: Wanted | None = None

    @staticmethod
    def kept(model: LanguageModel, layer: int, side: str, rows: int, tokens: int) -> int:
        """As LeanRows."""
        asked = model.inner_width if side == "out" else model.width
        return rows * tokens * (model.width + asked) + tokens**2

    def lay_out(self, padding: Int[Tensor, "b n"]) -> None:
        """As LeanRows."""
        self.shape = Shape(len(padding), padding.shape[1], self.shape.heads)
        self.mask = causal_mask(torch.ones_like(padding[:1]), self.model.dtype)[0]

    def answers(self, inputs: Inputs) -> None:
        """As LeanRows."""
        columns = (inputs.targets >= 0).any(dim=0).nonzero()[:, 0]
        first, last = int(columns[0]), int(columns[-1]) + 1
        self.window = Window(self.shape, first, last)
        self.wanted = Wanted.of(inputs.targets[:, first:last], self.model.dtype)

    def states(self, output: Float[Tensor, "b n d_out"], window: Window) -> tuple[Float[Tensor, "k d"], Back]:
        """What the last block gives in the window's columns, given the map's output; the way back to that."""
        flat, middle = output.reshape(-1, output.shape[-1]), self.middle.reshape(-1, self.middle.shape[-1])
        whole, backs = Window(self.shape, 0, self.shape.tokens), list[Back]()
        if self.map_side == "out":
            states = middle + flat
        else:
            states, own_back = self.own.after(middle, flat)
            backs.append(own_back)
        for number, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True), 1):
            states, back = attention(states, window if number == len(self.feed) else whole, self.mask)
            backs.append(back)
            states, back = feed(states)
            backs.append(back)
        if not self.feed:
            states = window.cut(states)

        @no_type_check
        def back_all(gradient: Tensor) -> Tensor:
            if not self.feed:
                gradient = window.spread(gradient)
            for one in reversed(backs):
                gradient = one(gradient)
            return gradient.view(output.shape)

        return states, back_all

    def measure(
        self, output: Float[Tensor, "b n d_out"]
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"], Back]:
        """As LeanRows."""
        assert self.wanted is not None, "call `answers` first"
        wanted = self.wanted
        states, states_back = self.states(output, self.window)
        every = len(wanted.places) == len(states)
        normed, norm_back = self.norm(states if every else states[wanted.places])
        losses, right, logits_back = wanted.measure(linear(normed, self.head, self.head_bias))

        @no_type_check
        def back(gradient: Float[Tensor, " b"]) -> Tensor:
            moved = norm_back(logits_back(gradient) @ self.head)
            if not every:
                moved = states.new_zeros(states.shape).index_copy_(0, wanted.places, moved)
            return states_back(moved)

        return losses, right, back
