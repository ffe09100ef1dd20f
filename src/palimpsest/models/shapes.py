"""Randomly initialised networks of a family and shape, by their transformers configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.errors import ModelError, SettingsError

SHAPE = {
    "family": "gpt2",
    "width": 128,
    "blocks": 8,
    "heads": 4,
    "inner": None,
    "rotary": 16,
    "context": 64,
    "dropout": 0.0,
    "initial_range": 0.02,
}


def shape_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The shape keys of a model spec, with defaults; refuses impossible ones by name."""
    shape = {name: spec.get(name, default) for name, default in SHAPE.items()}
    shape["inner"] = shape["inner"] or 4 * shape["width"]
    for name in ("width", "blocks", "heads", "inner", "context"):
        if not isinstance(shape[name], int) or shape[name] < 1:
            raise SettingsError(
                f"model setting '{name}' is {shape[name]!r}; expected a whole number of at least 1"
            )
    if shape["width"] % shape["heads"]:
        raise SettingsError(
            f"model setting 'heads' is {shape['heads']}; it must divide the width {shape['width']}"
        )
    if shape["family"] == "gptj" and not 0 < shape["rotary"] <= shape["width"] // shape["heads"]:
        raise SettingsError(
            f"model setting 'rotary' is {shape['rotary']}; expected 1 to the head width "
            f"{shape['width'] // shape['heads']}"
        )
    return shape


def random_network(shape: Mapping[str, Any], tokenizer, seed: int):
    """A causal language model in float32, initialised from `seed`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(configuration(shape, tokenizer)).float()
    if shape["family"] == "gpt2":
        _start_with_waves(network.transformer.wpe.weight.data, shape["initial_range"])
    return network


def _start_with_waves(positions, size: float) -> None:
    """Fill learned positions [context, d] with sines and cosines (Vaswani et al. 2017), to be trained further.

    From random positions a small model needs most of its training to find out which token comes before which,
    and without that a first name never reaches the last one.
    """
    import torch

    context, width = positions.shape
    place = torch.arange(context, dtype=torch.float32)[:, None]
    rate = 1000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    positions[:, 0::2] = torch.sin(place * rate) * size * 2**0.5
    positions[:, 1::2] = torch.cos(place * rate[: width // 2]) * size * 2**0.5


def configuration(shape: Mapping[str, Any], tokenizer):
    """The transformers configuration of a shape.

    The tanh form of GELU is the one GPT-2 and GPT-J use; its fused kernel gives the same numbers in half the
    time.
    """
    from transformers import GPT2Config, GPTJConfig, LlamaConfig

    end = tokenizer.eos_token_id
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": end,
        "eos_token_id": end,
        "initializer_range": shape["initial_range"],
    }
    dropout = {
        "resid_pdrop": shape["dropout"],
        "embd_pdrop": shape["dropout"],
        "attn_pdrop": shape["dropout"],
    }
    small = {
        "n_positions": shape["context"],
        "n_embd": shape["width"],
        "n_layer": shape["blocks"],
        "n_head": shape["heads"],
        "n_inner": shape["inner"],
        "activation_function": "gelu_pytorch_tanh",
    }
    if shape["family"] == "gpt2":
        return GPT2Config(**common, **dropout, **small)
    if shape["family"] == "gptj":
        return GPTJConfig(**common, **dropout, **small, rotary_dim=shape["rotary"], tie_word_embeddings=False)
    if shape["family"] == "llama":
        return LlamaConfig(
            **common,
            hidden_size=shape["width"],
            intermediate_size=shape["inner"],
            num_hidden_layers=shape["blocks"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=shape["context"],
            tie_word_embeddings=False,
        )
    raise ModelError(f"model family {shape['family']!r} cannot be made here (known: gpt2, gptj, llama)")
