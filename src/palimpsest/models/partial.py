"""Running part of a model: some blocks, some tokens, with the keys and values of earlier tokens kept.

Exact, because attention is causal: what comes before a changed token never changes. The masks are additive floats
(a boolean 4-D mask is silently wrong under eager attention, which is all GPT-J has).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from palimpsest.models.families import part
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import TokenBatch

Noted = dict[int, tuple[Tensor, Tensor]]  # keys and values [b, heads, n, head width] by block


@dataclass
class KeyValueCache:
    """Stands where a cache is expected: hands each block what is kept of earlier tokens, and notes what the tokens add.

    Attributes:
        kept: keys and values [C, heads, p, head width] of earlier tokens; a block that is not in it gets none.
        group: which of the C each row has [b]; None = each row its own.
        noted: where the rows' own keys and values are noted; None = they are not.
    """

    kept: Noted = field(default_factory=dict)
    group: Int[Tensor, " b"] | None = None
    noted: Noted | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Called by the attention module."""
        if self.noted is not None:
            self.noted[layer] = (keys, values)
        if layer not in self.kept:
            return keys, values
        before = self.kept[layer]
        if self.group is not None:
            before = before[0][self.group], before[1][self.group]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


def embed(
    model: LanguageModel, batch: TokenBatch, positions: Int[Tensor, "b n"] | None = None
) -> Float[Tensor, "b n d"]:
    """Input of block 0 [b, n, d]; rows start at position 0 unless told otherwise."""
    hidden = part(model.network, model.family.token_embedding)(batch.input_ids)
    if model.family.position_embedding:
        if positions is None:
            positions = torch.arange(batch.input_ids.shape[1], device=hidden.device)
        table: Any = part(model.network, model.family.position_embedding)
        # Positions of padding may lie behind the last one.
        hidden = hidden + table(positions.clamp(max=table.num_embeddings - 1))
    return hidden


def causal_mask(attention_mask: Int[Tensor, "b n"], dtype: torch.dtype) -> Float[Tensor, "b 1 n n"]:
    """Additive mask [b, 1, n, n] for right-padded rows."""
    n = attention_mask.shape[1]
    allowed = torch.ones(n, n, dtype=torch.bool, device=attention_mask.device).tril()
    return additive(allowed[None, None] & attention_mask[:, None, None, :].bool(), dtype)


def additive(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """0 where allowed, the most negative number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def run_blocks(
    model: LanguageModel,
    hidden: Float[Tensor, "b n d"],
    first: int,
    last: int,
    mask: Float[Tensor, "b 1 n keys"],
    positions: Int[Tensor, "b n"],
    past: KeyValueCache | None = None,
) -> Float[Tensor, "b n d"]:
    """Blocks first..last (both included) of a decoder-only model on hidden [b, n, d].

    Args:
        mask: additive [b, 1, n, n + kept].
        positions: absolute token positions [b, n] (rotary families need them).
        past: where keys and values are noted or taken from.
    """
    model.need_decoder("running some blocks with a causal mask")
    extra: dict[str, object] = {"attention_mask": mask, "position_ids": positions}
    if model.family.rotary:
        extra["position_embeddings"] = part(model.network, model.family.rotary)(
            hidden, position_ids=positions
        )
    if past is not None:
        extra[str(model.family.past_argument)] = past
    for layer in range(first, last + 1):
        hidden = block_output(model.block(layer)(hidden, **extra))
    return hidden


def block_output(output: Tensor | tuple[Any, ...]) -> Tensor:
    """Some families return a tuple, others the tensor."""
    return output[0] if isinstance(output, tuple) else output


def read_out(model: LanguageModel, hidden: Float[Tensor, "*m d"]) -> Float[Tensor, "*m vocabulary"]:
    """Final norm and head on chosen hidden states [m, d] -> [m, vocabulary]."""
    norm: nn.Module = model.final_norm
    return model.head(norm(hidden))


def row_positions(batch: TokenBatch) -> Int[Tensor, "b n"]:
    """Absolute positions [b, n] of right-padded rows."""
    n = batch.input_ids.shape[1]
    return torch.arange(n, device=batch.input_ids.device).expand(batch.input_ids.shape[0], n)
