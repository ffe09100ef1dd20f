"""T5's sublayers written out, each with the gradient of its input beside it: see models/lean_t5.py.

States are [rows x tokens, d]. A sublayer returns its output and a function from the gradient of the output to that of its
input. Scales of norms are multiplied into the matrices that read what is normed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, linear, relu
from transformers.activations import GELUTanh

from palimpsest.models.lean import Back, Shape, no_type_check, softmax_back


def scaled(states: Float[Tensor, "k d"], extra: float) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k 1"]]:
    """States divided by their length, and its inverse; `extra` is d x epsilon of T5's norm.

    T5 divides by the root mean square; `root_scale` gives the matrices that follow the factor sqrt(d). As there, the length
    is taken in float32.
    """
    wide = states.to(torch.float32)
    inverse = torch.linalg.vecdot(wide, wide).add_(extra).rsqrt_().unsqueeze_(-1)
    return states * inverse, inverse


def scaled_back(
    gradient: Tensor, normed: Tensor, inverse: Tensor, onto: Tensor | None = None
) -> Float[Tensor, "k d"]:
    """Gradient with respect to the states of `scaled`, added to `onto`."""
    along = torch.linalg.vecdot(gradient, normed).unsqueeze_(-1)
    inner = torch.addcmul(gradient, normed, along, value=-1)
    return inner * inverse if onto is None else torch.addcmul(onto, inner, inverse)


def root_scale(norm: Any) -> tuple[Float[Tensor, " d"], float]:
    """(what `scaled` states are still to be multiplied by, `extra`) of one of T5's norms."""
    width = len(norm.weight)
    return norm.weight * width**0.5, width * float(norm.variance_epsilon)


class T5Attention:
    """Self-attention with its norm and residual connection."""

    def __init__(self, sublayer: Any):
        norm, own = sublayer.layer_norm, sublayer.SelfAttention
        scale, self.extra = root_scale(norm)
        self.heads, self.write, self.write_to = own.n_heads, own.o.weight, own.o.weight.T
        self.read = torch.cat([own.q.weight, own.k.weight, own.v.weight]) * scale

    def __call__(self, states: Tensor, shape: Shape, bias: Tensor) -> tuple[Tensor, Back]:
        """Bias [b x heads, n, n]: positions and masks."""
        normed, inverse = scaled(states, self.extra)
        b, n, h = shape.rows, shape.tokens, shape.heads
        read = linear(normed, self.read).view(b, n, 3, h, -1).permute(2, 0, 3, 1, 4).reshape(3, b * h, n, -1)
        q, k, v = read.unbind()
        weights = torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2)), -1)
        output = torch.addmm(states, shape.join(torch.bmm(weights, v)), self.write_to)

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            mixed = shape.split(gradient @ self.write)
            scores = softmax_back(torch.bmm(mixed, v.transpose(1, 2)), weights)
            parts = (
                torch.bmm(scores, k),
                torch.bmm(scores.transpose(1, 2), q),
                torch.bmm(weights.transpose(1, 2), mixed),
            )
            apart = torch.stack(parts).view(3, b, h, n, -1).permute(1, 3, 0, 2, 4)
            return scaled_back(apart.reshape(b * n, -1) @ self.read, normed, inverse, gradient)

        return output, back


class CrossAttention:
    """The decoder's look at the encoder, with its norm and residual connection."""

    def __init__(self, sublayer: Any):
        norm, own = sublayer.layer_norm, sublayer.EncDecAttention
        scale, self.extra = root_scale(norm)
        self.heads, self.write, self.write_to = own.n_heads, own.o.weight, own.o.weight.T
        self.ask = own.q.weight * scale

    def __call__(
        self, states: Tensor, shape: Shape, keys: Tensor, values: Tensor, bias: Tensor
    ) -> tuple[Tensor, Callable[[Tensor, bool], tuple[Tensor, Tensor, Tensor]]]:
        """Keys and values [b x heads, n, c], bias [b x heads, 1, n]."""
        normed, inverse = scaled(states, self.extra)
        q = shape.split(linear(normed, self.ask))
        weights = torch.softmax(torch.baddbmm(bias, q, keys.transpose(1, 2)), -1)
        output = torch.addmm(states, shape.join(torch.bmm(weights, values)), self.write_to)

        @no_type_check
        def back(gradient: Tensor, below: bool) -> tuple[Tensor, Tensor, Tensor]:
            """Gradients of states (only if anything `below` them depends on the edit), keys and values."""
            mixed = shape.split(gradient @ self.write)
            scores = softmax_back(torch.bmm(mixed, values.transpose(1, 2)), weights)
            to_keys = torch.bmm(scores.transpose(1, 2), q)
            to_values = torch.bmm(weights.transpose(1, 2), mixed)
            if below:
                asked = shape.join(torch.bmm(scores, keys)) @ self.ask
                gradient = scaled_back(asked, normed, inverse, gradient)
            return gradient, to_keys, to_values

        return output, back


class Activation:
    """The MLP, plain or gated, from its first map's output on: nothing of it is a copy."""

    def __init__(self, sublayer: Any):
        dense = sublayer.DenseReluDense
        self.gated, self.smooth = hasattr(dense, "wi_0"), isinstance(dense.act, GELUTanh)
        self.write, self.write_to = dense.wo.weight, dense.wo.weight.T

    def act(self, inner: Tensor) -> Tensor:
        """The activation."""
        return gelu(inner, approximate="tanh") if self.smooth else relu(inner)

    def act_back(self, gradient: Tensor, inner: Tensor) -> Tensor:
        """Gradient with respect to its input."""
        if self.smooth:
            return torch.ops.aten.gelu_backward(gradient, inner, approximate="tanh")
        return gradient * (inner > 0)


class T5FeedForward(Activation):
    """The whole MLP with its norm and residual connection."""

    def __init__(self, sublayer: Any):
        super().__init__(sublayer)
        (scale, self.extra), dense = root_scale(sublayer.layer_norm), sublayer.DenseReluDense
        read = torch.cat([dense.wi_0.weight, dense.wi_1.weight]) if self.gated else dense.wi.weight
        self.read = read * scale

    def __call__(self, states: Tensor) -> tuple[Tensor, Back]:
        """States after the MLP."""
        normed, inverse = scaled(states, self.extra)
        inner, beside = linear(normed, self.read), None
        if self.gated:
            inner, beside = inner.chunk(2, dim=-1)
        active = self.act(inner)
        output = torch.addmm(states, active if beside is None else active * beside, self.write_to)

        @no_type_check
        def back(gradient: Tensor) -> Tensor:
            through = gradient @ self.write
            if beside is None:
                read = self.act_back(through, inner)
            else:
                read = torch.cat([self.act_back(through * beside, inner), through * active], dim=-1)
            return scaled_back(read @ self.read, normed, inverse, gradient)

        return output, back
