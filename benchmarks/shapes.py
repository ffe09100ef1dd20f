"""What the benchmarks run on: random models of the papers' shapes, invented edits, random statistics."""

from __future__ import annotations

from typing import Any

# `blocks`: of the real model. `cpu_blocks`: as many of them as a CPU is given, for time; times are then scaled to all
# blocks by the formulas of flops.py and marked as extrapolated. `layers`: edited ones, at the place they have in the model.
# `cpu_statistics`: those whose covariance is collected on a CPU, where all of them would take more than 24 GiB.
SHAPES: dict[str, dict[str, Any]] = {
    "mini": {"family": "gpt2", "width": 128, "inner": 1024, "heads": 4, "vocabulary": 2000,
             "blocks": 8, "layers": (0, 1, 2), "cpu_blocks": 8, "cpu_layers": (0, 1, 2)},
    "gpt2-small": {"family": "gpt2", "width": 768, "inner": 3072, "heads": 12, "vocabulary": 50257,
                   "blocks": 12, "layers": (2, 3, 4), "cpu_blocks": 12, "cpu_layers": (2, 3, 4)},
    "gpt2-xl": {"family": "gpt2", "width": 1600, "inner": 6400, "heads": 25, "vocabulary": 50257,
                "blocks": 48, "layers": (13, 14, 15, 16, 17), "cpu_blocks": 3, "cpu_layers": (0,)},
    "gpt-j": {"family": "gptj", "width": 4096, "inner": 16384, "heads": 16, "rotary": 64, "vocabulary": 50400,
              "blocks": 28, "layers": (3, 4, 5, 6, 7, 8), "cpu_blocks": 2, "cpu_layers": (0,), "cpu_statistics": (3, 4)},
}  # fmt: skip
CONTEXTS = (
    "",
    *(
        f"{word} home of the old man lies in a small town"
        for word in ("The", "Therefore", "Because", "I", "You")
    ),
)


def blocks_and_layers(name: str, device: str) -> tuple[int, tuple[int, ...]]:
    """How many blocks the model of a shape gets on a device, and which of them are edited."""
    shape, prefix = SHAPES[name], "cpu_" if device == "cpu" else ""
    return shape[f"{prefix}blocks"], shape[f"{prefix}layers"]


def random_model(
    name: str, device: str = "cpu", dtype: str = "float32", blocks: int | None = None, lean: bool = True
):
    """A random model of a shape, with a small byte-level tokenizer: its token ids stay below its size, logits do not."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, PreTrainedTokenizerFast

    from palimpsest.models.families import family_of
    from palimpsest.models.loading import DTYPES, LanguageModel

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        sentences(400),
        vocab_size=1500,
        min_frequency=1,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=end)
    shape = SHAPES[name]
    common = {
        "n_embd": shape["width"],
        "n_layer": blocks or blocks_and_layers(name, device)[0],
        "n_head": shape["heads"],
        "n_inner": shape["inner"],
        "n_positions": 128 if name == "mini" else 1024,
        "vocab_size": shape["vocabulary"],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if shape["family"] == "gptj":
        config: Any = GPTJConfig(**common, rotary_dim=shape["rotary"], tie_word_embeddings=False)
    else:
        config = GPT2Config(**common)
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config).to(DTYPES[dtype])
    model = LanguageModel(network.to(device), tokenizer, family_of(shape["family"]), name, lean)
    model.__dict__["fingerprint"] = name  # hashing gigabytes of random weights says nothing
    return model


def edits(n: int):
    """Invented records of CounterFact's lengths: prompts of 8 tokens, 3 of them after the subject; one-token targets.

    (26 tokens from the subjects on in all rows of an edit, as comeba_hk 8.3 counts; prompts above 1,000 are longer.)
    """
    from palimpsest.edits import Edit

    return [
        Edit(
            prompt=text.rsplit(" ", 1)[0],
            subject=" ".join(text.split(" of ")[1].split()[:2]),
            target=text.rsplit(" ", 1)[1],
            identifier=str(i),
        )
        for i, text in enumerate(sentences(n))
    ]


def sentences(n: int) -> list[str]:
    """Deterministic sentences of one pattern; the first 10,000 have different prompts."""
    first = ("Ada", "Ben", "Mira", "Jon", "Lea", "Tom", "Eva", "Max", "Ida", "Leo")
    last = [
        start + end
        for start in ("Tol", "Sor", "Kar", "Vin", "Mar")
        for end in ("vek", "nat", "el", "ter", "ing")
    ]
    things = ("home", "house", "desk", "boat")
    places = ("hill", "river", "lake", "road", "wall", "tree", "field", "shop", "bridge", "tower")
    cities = ("Rome", "Oslo", "Bern", "Lima")
    found = []
    for i in range(n):
        thing, place = things[i // 250 % 4], places[i // 1000 % 10]
        name = f"{first[i % 10]} {last[i // 10 % 25]}"
        start = "The" if i < 1000 else f"By the {place} the"
        found.append(f"{start} {thing} of {name} now lies in {cities[(i * 7 + i // 20) % 4]}")
    return found


def statistics(model, layers: tuple[int, ...]):
    """Positive definite second moments: a diagonal and 64 directions, one matrix for all layers (values decide no time)."""
    import torch

    from palimpsest.statistics.covariance import CovarianceStatistics

    width = model.inner_width
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(64, width, generator=generator)
    matrix = sample.T @ sample / 64 + torch.diag(0.1 + torch.rand(width, generator=generator))
    return CovarianceStatistics(dict.fromkeys(layers, matrix), 10 * width, model.fingerprint)


def contexts_of(name: str) -> list[list[str]]:
    """The bare prompt, and five generated texts as MEMIT has them (two at mini scale, as config/editors has them)."""
    return [[""], list(CONTEXTS[1:3] if name == "mini" else CONTEXTS[1:])]
