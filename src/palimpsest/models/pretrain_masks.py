"""Attention masks for pre-training that make a model keep its facts at a subject's last token.

They act in training only; the saved model is an ordinary one. Without them a small model reads all the tokens of a
name from where the answer is asked for, recalls everything, and cannot be edited at the subject.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.models.families import family_of, part

ATTENTION = {"gpt2": "attn", "gptj": "attn", "llama": "self_attn"}


def bottleneck_mask(hidden: Tensor, closed: bool = False) -> Tensor:
    """Additive attention mask [b, 1, n, n]: causal, and no token looks back at a hidden one (hidden: bool [b, n]).

    The hidden tokens are those of a subject before its last one; among themselves and from the last one they
    stay visible, so all that later tokens learn about the subject passes through its last token (mini_world 5.2).
    With `closed`, later tokens do not see the last one either.
    """
    n = hidden.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    last = torch.zeros_like(hidden)
    last[:, 1:] = hidden[:, :-1] & ~hidden[:, 1:]
    # A subject's tokens see each other: same run of hidden tokens, its last token included.
    inside = hidden | last
    run = torch.cumsum((inside & ~torch.nn.functional.pad(inside[:, :-1], (1, 0))).long(), dim=1) * inside
    same = (run[:, :, None] == run[:, None, :]) & inside[:, :, None]
    shut = inside if closed else hidden
    allowed = causal[None] & (~shut[:, None, :] | same)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


@contextlib.contextmanager
def masked_below(network: nn.Module, number: int, mask: Tensor) -> Iterator[None]:
    """While this lasts, attention in the first `number` blocks uses `mask` [b, 1, n, n], not the network's own."""

    def exchange(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    row = family_of(network.config.model_type)  # type: ignore[union-attr, arg-type]
    blocks = list(part(network, row.blocks).children())[:number]
    handles = [
        block.get_submodule(ATTENTION[row.name]).register_forward_pre_hook(exchange, with_kwargs=True)
        for block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
