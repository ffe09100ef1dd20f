"""The one table of model families. Adding a family is adding a row; no editor knows any of these names.

Paths are dotted attribute names; where forms of a family differ, several stand beside each other with " | " between
them and the one that exists is taken (T5 has a plain and a gated feed-forward). `mlp_out` is the matrix that writes
the MLP's output into the residual stream (the associative memory of ROME, MEMIT and COMEBA-HK); whether it lies in
memory as (in, out) or (out, in) is read from its module type in `matrix_view`, never guessed from its shape.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from palimpsest.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where the parts of a family lie.

    Attributes:
        name: the `model_type` of its transformers configuration.
        kind: "decoder" (causal language model), "encoder_decoder" (sequence to sequence) or "encoder" (sequence
            classifier).
        blocks: list of blocks, from the network; of an encoder-decoder the ENCODER's, which is what is edited.
        mlp_in, mlp_out: first and second MLP matrix, from a block. Of a gated MLP the first is the one whose output
            goes through the activation.
        head: output head, from the network (of a classifier: the one that gives the classes).
        token_embedding: from the network; it adds the positions itself where `position_embedding` is None and the
            family has learned ones (BERT).
        final_norm: norm after the last of `blocks`, or None.
        position_embedding: learned absolute positions, or None.
        rotary: module that turns positions into (cos, sin) for all blocks, or None when blocks do it themselves.
        past_argument: name under which a block of a decoder takes kept keys and values, else None.
        pooler: module between the last block and the head of a classifier, else None.
    """

    name: str
    kind: str
    blocks: str
    mlp_in: str
    mlp_out: str
    head: str
    token_embedding: str
    final_norm: str | None = None
    position_embedding: str | None = None
    rotary: str | None = None
    past_argument: str | None = None
    pooler: str | None = None


FAMILIES = {
    row.name: row
    for row in (
        Family(
            name="gpt2",
            kind="decoder",
            blocks="transformer.h",
            mlp_in="mlp.c_fc",
            mlp_out="mlp.c_proj",
            final_norm="transformer.ln_f",
            head="lm_head",
            token_embedding="transformer.wte",
            position_embedding="transformer.wpe",
            past_argument="past_key_values",
        ),
        Family(
            name="gptj",
            kind="decoder",
            blocks="transformer.h",
            mlp_in="mlp.fc_in",
            mlp_out="mlp.fc_out",
            final_norm="transformer.ln_f",
            head="lm_head",
            token_embedding="transformer.wte",
            past_argument="layer_past",
        ),
        Family(
            name="llama",
            kind="decoder",
            blocks="model.layers",
            mlp_in="mlp.gate_proj",
            mlp_out="mlp.down_proj",
            final_norm="model.norm",
            head="lm_head",
            token_embedding="model.embed_tokens",
            rotary="model.rotary_emb",
            past_argument="past_key_values",
        ),
        Family(
            name="t5",
            kind="encoder_decoder",
            blocks="encoder.block",
            mlp_in="layer.1.DenseReluDense.wi_0 | layer.1.DenseReluDense.wi",
            mlp_out="layer.1.DenseReluDense.wo",
            final_norm="encoder.final_layer_norm",
            head="lm_head",
            token_embedding="encoder.embed_tokens",
        ),
        Family(
            name="bert",
            kind="encoder",
            blocks="bert.encoder.layer",
            mlp_in="intermediate.dense",
            mlp_out="output.dense",
            head="classifier",
            token_embedding="bert.embeddings",
            pooler="bert.pooler",
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
    """The submodule at a dotted path, or at the first of several (" | ") that exists.

    Raises ModelError when the network is not of the family it was said to be.
    """
    for one in path.split(" | "):
        with contextlib.suppress(AttributeError):
            return attrgetter(one)(root)
    raise ModelError(
        f"{type(root).__name__} has no part {path!r}: it is not of the family it was taken for. "
        "Leave `family` out to let it be read from the model's config"
    )


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
