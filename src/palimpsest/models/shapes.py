"""Randomly initialised networks of a family and shape, by their transformers configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from palimpsest.errors import ModelError, SettingsError
from palimpsest.plain import check_whole

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
LARGEST = 10**7  # of any of its whole numbers
# Keys that only one family has: blocks of the decoder (None: as many as the encoder's), gated feed-forward; classes
# (their names, or how many of them).
OWN: dict[str, dict[str, Any]] = {
    "t5": {"decoder_blocks": None, "gated": True},
    "bert": {"labels": 4},
}


def shape_keys(family: Any) -> dict[str, Any]:
    """Names and defaults of all keys that a model spec of a family may have."""
    return SHAPE | (OWN.get(family, {}) if isinstance(family, str) else {})


def shape_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The shape keys of a model spec, with defaults; refuses impossible ones by name."""
    keys = shape_keys(spec.get("family", SHAPE["family"]))
    shape = {name: spec.get(name, default) for name, default in keys.items()}
    if "decoder_blocks" in shape:
        shape["decoder_blocks"] = shape["decoder_blocks"] or shape["blocks"]
    if "labels" in shape:
        shape["labels"] = class_names(shape["labels"])
    if not isinstance(shape["family"], str):
        raise SettingsError(f"model setting 'family' is {shape['family']!r:.60}; expected a text")
    for name in ("width", "blocks", "heads", "context", "decoder_blocks", "rotary"):
        if name in shape and (name != "rotary" or shape["family"] == "gptj"):
            check_whole(shape[name], f"model setting '{name}'", 1, LARGEST)
    shape["inner"] = shape["inner"] or 4 * shape["width"]
    check_whole(shape["inner"], "model setting 'inner'", 1, LARGEST)
    _check_number(shape, "dropout", 1.0)
    _check_number(shape, "initial_range", math.inf)
    if not isinstance(shape.get("gated", True), bool):
        raise SettingsError(f"model setting 'gated' is {shape['gated']!r:.60}; expected true or false")
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


def _check_number(shape: Mapping[str, Any], name: str, below: float) -> None:
    value = shape[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise SettingsError(
            f"model setting '{name}' is {value!r:.60}; expected a number of at least 0 and below {below}"
        )


def class_names(labels: object) -> list[str]:
    """Names of classes: those given, or "class 0", "class 1", ...; SettingsError where they are none."""
    number = labels if isinstance(labels, int) and labels <= LARGEST else 0
    names = labels if isinstance(labels, list | tuple) else [f"class {i}" for i in range(number)]
    words = [str(name) for name in names]
    if len(words) < 2 or len(set(words)) < len(words):
        raise SettingsError(
            f"model setting 'labels' is {labels!r:.60}; expected at least two different names, or their number"
        )
    return words


def random_network(shape: Mapping[str, Any], tokenizer, seed: int):
    """A network of the family's kind in float32, initialised from `seed`."""
    import torch
    import transformers

    from palimpsest.models.families import family_of
    from palimpsest.models.loading import AUTO

    torch.manual_seed(seed)
    config = configuration(shape, tokenizer)
    network = getattr(transformers, AUTO[family_of(shape["family"]).kind]).from_config(config).float()
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

    if shape["family"] == "t5":
        return _t5(shape, tokenizer)
    if shape["family"] == "bert":
        return _bert(shape, tokenizer)
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
    raise ModelError(
        f"model family {shape['family']!r} cannot be made here (known: gpt2, gptj, llama, t5, bert)"
    )


def _t5(shape: Mapping[str, Any], tokenizer):
    """T5 scales its random weights by their widths itself, so `initial_range` is not used."""
    from transformers import T5Config

    beyond_the_fields = {
        "n_positions": shape["context"],
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=shape["width"],
        d_kv=shape["width"] // shape["heads"],
        d_ff=shape["inner"],
        num_layers=shape["blocks"],
        num_decoder_layers=shape["decoder_blocks"],
        num_heads=shape["heads"],
        dropout_rate=shape["dropout"],
        feed_forward_proj="gated-gelu" if shape["gated"] else "relu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **beyond_the_fields,
    )


def _bert(shape: Mapping[str, Any], tokenizer):
    """The exact GELU, as BERT has it."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape["width"],
        num_hidden_layers=shape["blocks"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["inner"],
        max_position_embeddings=shape["context"],
        hidden_dropout_prob=shape["dropout"],
        attention_probs_dropout_prob=shape["dropout"],
        initializer_range=shape["initial_range"],
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(shape["labels"])),
        label2id={name: number for number, name in enumerate(shape["labels"])},
        problem_type="single_label_classification",
    )
