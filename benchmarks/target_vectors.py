"""Target vectors: plain form against fast form, side by side in one process.

    python benchmarks/target_vectors.py --shape gpt2-small --edits 100 --plain-edits 5 --threads 2 --out results/benchmarks

The plain form searches one edit at a time: 7 padded sequences through all blocks with full logits at each of a fixed
number of steps, no early stop. The fast form searches the whole batch, also without early stop. Same threads, same
precision, random weights. Both results are compared before any ratio is printed.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from measure import command_line, hand_out, use_threads
from shapes import CONTEXTS, SHAPES, blocks_and_layers, edits, random_model


def measure(shape: str, count: int, plain_count: int, threads: int, steps: int) -> dict:
    """Seconds per edit of both forms, and how far the results lie apart."""
    import torch

    from palimpsest.editors.shared.target_vectors import Search, search_target_vectors
    from palimpsest.editors.shared.target_vectors_plain import search_target_vectors_plain

    torch.set_num_threads(threads)
    model, batch = random_model(shape), edits(count)
    contexts = list(CONTEXTS)
    layer = blocks_and_layers(shape, "cpu")[1][-1]
    search = Search(layer=layer, steps=steps, learning_rate=0.5, early_stop=False)
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
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gpt2-small")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--plain-edits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.set_defaults(threads=os.cpu_count() or 1)
    options = parser.parse_args()
    use_threads(options.threads)
    result = measure(options.shape, options.edits, options.plain_edits, options.threads, options.steps)
    hand_out(result, f"target_vectors-{options.shape}", options.threads, options.out)


if __name__ == "__main__":
    main()
