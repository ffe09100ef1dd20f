"""The one table of model families. Adding a family is adding a row; no editor knows any of these names.

Paths are dotted attribute names. `mlp_out` is the matrix that writes the MLP's output into the residual stream
(the associative memory of ROME, MEMIT and COMEBA-HK); whether it lies in memory as (in, out) or (out, in) is read
from its module type in `matrix_view`, never guessed from its shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from palimpsest.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder-only family lie.

    Attributes:
        name: the `model_type` of its transformers configuration.
        blocks: list of blocks, from the network.
        mlp_out: second MLP matrix, from a block.
        final_norm, head: last norm and output head, from the network.
        token_embedding: from the network.
        position_embedding: learned absolute positions, or None.
        rotary: module that turns positions into (cos, sin) for all blocks, or None when blocks do it themselves.
        past_argument: name under which a block takes kept keys and values.
    """

    name: str
    blocks: str
    mlp_out: str
    final_norm: str
    head: str
    token_embedding: str
    position_embedding: str | None
    rotary: str | None
    past_argument: str


FAMILIES = {
    row.name: row
    for row in (
        Family(
            name="gpt2",
            blocks="transformer.h",
            mlp_out="mlp.c_proj",
            final_norm="transformer.ln_f",
            head="lm_head",
            token_embedding="transformer.wte",
            position_embedding="transformer.wpe",
            rotary=None,
            past_argument="past_key_values",
        ),
        Family(
            name="gptj",
            blocks="transformer.h",
            mlp_out="mlp.fc_out",
            final_norm="transformer.ln_f",
            head="lm_head",
            token_embedding="transformer.wte",
            position_embedding=None,
            rotary=None,
            past_argument="layer_past",
        ),
        Family(
            name="llama",
            blocks="model.layers",
            mlp_out="mlp.down_proj",
            final_norm="model.norm",
            head="lm_head",
            token_embedding="model.embed_tokens",
            position_embedding=None,
            rotary="model.rotary_emb",
            past_argument="past_key_values",
        ),
    )
}


def family_of(model_type: str) -> Family:
    """The row of a transformers `model_type`; raises ModelError for families the table does not have."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"model family {model_type!r} is not known (known: {', '.join(sorted(FAMILIES))}). "
            "Add one row to FAMILIES in palimpsest/models/families.py"
        )
    return FAMILIES[model_type]


def part(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; raises ModelError when the network is not of the family it was said to be."""
    try:
        return attrgetter(path)(root)
    except AttributeError as error:
        raise ModelError(
            f"{type(root).__name__} has no part {path!r}: it is not of the family it was taken for. "
            "Leave `family` out to let it be read from the model's config"
        ) from error


def matrix_view(module: nn.Module) -> Tensor:
    """The weight as W [out, in], whatever the memory layout: a view, so writing to it writes to the model."""
    if isinstance(module, Conv1D):
        return module.weight.data.T
    if isinstance(module, nn.Linear):
        return module.weight.data
    raise ModelError(
        f"{type(module).__name__} is no linear map (expected Linear or Conv1D); choose another layer"
    )


def as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """Turn W [out, in] into the layout of the module's own parameter."""
    return matrix.T if isinstance(module, Conv1D) else matrix


def apply_matrix(matrix: Tensor, inputs: Tensor) -> Tensor:
    """W [out, in] applied to inputs [..., in]."""
    return torch.nn.functional.linear(inputs, matrix)
