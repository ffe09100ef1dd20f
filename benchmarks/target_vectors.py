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
