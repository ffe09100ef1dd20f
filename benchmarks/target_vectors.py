"""Target vectors: plain form against fast form, side by side in one process (decision 20).

    python benchmarks/target_vectors.py --shape gpt2-small --edits 100 --plain-edits 5 --threads 2 --out results/benchmarks

The plain form searches one edit at a time: 7 padded sequences through all blocks with full logits at each of a fixed
number of steps, no early stop. The fast form searches the whole batch, also without early stop. Same threads, same
precision, random weights. Both results are compared before any ratio is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

SHAPES = {
    "mini": {
        "n_embd": 128,
        "n_layer": 8,
        "n_head": 4,
        "n_inner": 1536,
        "n_positions": 128,
        "vocab_size": 2000,
    },
    "gpt2-small": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
}
LAYER = {"mini": 2, "gpt2-small": 4}


def random_model(shape: str):
    """A random GPT-2 of a shape, with a small byte-level tokenizer (token ids stay below its size, logits do not)."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from palimpsest.models.families import family_of
    from palimpsest.models.loading import LanguageModel

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        sentences(400),
        vocab_size=1500,
        min_frequency=1,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(**SHAPES[shape]))
    return LanguageModel(network, tokenizer, family_of("gpt2"), shape)


def edits(n: int):
    """Invented records of CounterFact's lengths: 8-token prompts, 3 tokens after the subject, one-token targets."""
    from palimpsest.edits import Edit

    return [
        Edit(
            prompt=text.rsplit(" ", 1)[0],
            subject=" ".join(text.split()[3:5]),
            target=text.rsplit(" ", 1)[1],
            identifier=str(i),
        )
        for i, text in enumerate(sentences(n))
    ]


def sentences(n: int) -> list[str]:
    """Deterministic sentences of one pattern."""
    first, last, cities = (
        ("Ada", "Ben", "Mira", "Jon", "Lea"),
        ("Tolvek", "Sorn", "Karel", "Vint"),
        ("Rome", "Oslo", "Bern", "Lima"),
    )
    return [
        f"The home of {first[i % 5]} {last[i // 5 % 4]} lies in {cities[(i * 7 + i // 20) % 4]}"
        for i in range(n)
    ]


def measure(shape: str, count: int, plain_count: int, threads: int, steps: int) -> dict:
    """Seconds per edit of both forms, and how far the results lie apart."""
    import torch

    from palimpsest.editors.shared.target_vectors import Search, search_target_vectors
    from palimpsest.editors.shared.target_vectors_plain import search_target_vectors_plain

    torch.set_num_threads(threads)
    model, batch = random_model(shape), edits(count)
    contexts = [
        "",
        *[
            f"{word} home of the old man lies in a small town"
            for word in ("The", "Therefore", "Because", "I", "You")
        ],
    ]
    search = Search(layer=LAYER[shape], steps=steps, learning_rate=0.5, early_stop=False)
    search_target_vectors(model, batch[:2], contexts, replace(search, steps=2))  # warm up
    start = time.perf_counter()
    plain = search_target_vectors_plain(model, batch[:plain_count], contexts, search)
    plain_seconds = (time.perf_counter() - start) / plain_count
    start = time.perf_counter()
    fast = search_target_vectors(model, batch, contexts, search)
    fast_seconds = (time.perf_counter() - start) / count
    difference = float((fast.z[:plain_count] - plain.z).abs().max() / plain.z.abs().max())
    return {
        "what": "target vectors",
        "shape": shape,
        "edits": count,
        "plain_edits": plain_count,
        "steps": steps,
        "threads": threads,
        "plain_seconds_per_edit": plain_seconds,
        "fast_seconds_per_edit": fast_seconds,
        "ratio": plain_seconds / fast_seconds,
        "largest_relative_difference": difference,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gpt2-small")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--plain-edits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="folder for a JSON file with the result")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    result = measure(options.shape, options.edits, options.plain_edits, options.threads, options.steps)
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"target_vectors-{options.shape}.json").write_text(
            json.dumps(result, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
