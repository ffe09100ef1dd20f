"""GRACE's look-up against one forward pass, side by side in one process.

    python benchmarks/codebook_lookup.py --keys 10000 --threads 1 --out results/benchmarks

The pass: 20 tokens through a GPT-2-small-shaped model (12 blocks, width 768, 50,257 words), random weights, with all
logits. The look-up: one state of width 768 among the keys, exact; beside it the plain way (all differences). Keys have
a common part, as states of real models do, which makes the shortlist's task harder. The whole pass with and without
the adapter is timed too. Results of both ways are compared before any number is printed; times are medians of
alternating repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from measure import command_line, hand_out, use_threads

WIDTH, TOKENS = 768, 20


def medians(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, so that a busy machine is busy for all of them."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 2):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            found[name].append(time.perf_counter() - start)
    return {name: median(seconds[2:]) for name, seconds in found.items()}


def measure(keys: int, threads: int, repeats: int) -> dict:
    """Seconds of a pass, of a look-up, and of a pass with the adapter."""
    import torch
    from shapes import random_model

    from palimpsest.editors import make_editor

    torch.set_num_threads(threads)
    model = random_model("gpt2-small")
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(keys, WIDTH, generator=generator) + 2 * torch.randn(WIDTH, generator=generator)
    query = table[keys // 2 : keys // 2 + 1] + 0.01 * torch.randn(1, WIDTH, generator=generator)
    editor = make_editor("grace", model, {"layer": 8, "site": "mlp_in", "radius": 1.0})
    entries = [{"label": [i], "text": "", "start": 1.0, "edits": [str(i)]} for i in range(keys)]
    values = torch.rand(keys, 4 * WIDTH, generator=generator)
    tensors = {"keys": table, "values": values, "radii": torch.ones(keys), "queries": table}
    editor.codebook.load(tensors, {"entries": entries, "actions": {}})
    ids = torch.randint(0, 1000, (1, TOKENS), generator=generator)
    found = editor.codebook.look_up(query)
    plain = (table.double() - query.double()).norm(dim=1).min(dim=0)
    if int(found.entry) != int(plain.indices) or float(found.distance) != float(plain.values):
        raise SystemExit("the look-up does not find the nearest key")

    @torch.no_grad()
    def run_model() -> object:
        return model.network(ids).logits

    def with_adapter() -> object:
        editor.adapter.attach()
        try:
            return run_model()
        finally:
            editor.adapter.detach()

    seconds = medians(
        {
            "pass": run_model,
            "look_up": lambda: editor.codebook.look_up(query),
            "pass_with_adapter": with_adapter,
            "plain_look_up": lambda: (table - query).norm(dim=1).min(dim=0),
        },
        repeats,
    )
    return {
        "what": "codebook look-up",
        "keys": keys,
        "width": WIDTH,
        "tokens": TOKENS,
        "threads": threads,
        "repeats": repeats,
        "seconds": seconds,
        "look_up_share_of_pass": seconds["look_up"] / seconds["pass"],
        "adapter_overhead": seconds["pass_with_adapter"] / seconds["pass"] - 1,
        "plain_share_of_pass": seconds["plain_look_up"] / seconds["pass"],
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--keys", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    use_threads(options.threads)
    result = measure(options.keys, options.threads, options.repeats)
    hand_out(result, "codebook_lookup", options.threads, options.out)


if __name__ == "__main__":
    main()
