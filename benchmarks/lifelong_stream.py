"""A lifelong stream of generated questions on the mini T5: the network's own modules against the lean way, in one process.

    python benchmarks/lifelong_stream.py --model DIR --data DIR --editor grace --edits 1000 --plain-edits 20

DIR: what `palimpsest pretrain` and `palimpsest dataset` wrote (config/mini.yaml names the settings; after a run:
results/models/mini-t5, results/datasets/mini-lifelong_qa). Both forms go through the protocol `lifelong`: ask, edit where
the answer is wrong, ask again, and a look every 50 items at upstream, hold-out and all edits. Plain stands on the same
protocol with `LanguageModel.lean` off and every pair asked at every look. It is run on fewer items, at the head of the
stream, where its rows must be those of the fast form up to rounding: main scores of the first look are compared. Times are
CPU seconds of this process; other programs on the machine still lengthen them, so only ratios of one run can be compared.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from measure import command_line, hand_out, use_threads

SETTINGS: dict[str, dict[str, Any]] = {
    "grace": {"radius": None, "radius_ratio": 0.3},
    "defer": {},
    "memory": {},
    "ft": {"loss": "own", "stop": "argmax", "steps": 100, "learning_rate": 1e-2, "epsilon": None},
    "ft_ewc": {},
    "ft_retrain": {},
}


def run(options: argparse.Namespace, lean: bool, items: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(CPU seconds by part, rows of the tables)."""
    from palimpsest.editors import make_editor
    from palimpsest.edits import read_edits
    from palimpsest.models.batching import Batching
    from palimpsest.models.loading import load_model
    from palimpsest.protocols import lifelong
    from palimpsest.protocols.checkpoints import seed_everything
    from palimpsest.protocols.lifelong_inputs import lifelong_stream

    model = load_model(options.model)
    model.lean = lean
    edits = read_edits(options.data / "edits.jsonl")[:items]
    seed_everything(0)
    editor = make_editor(options.editor, model, {"layer": options.layer, **SETTINGS[options.editor]}, seed=0)
    stream = lifelong_stream(
        editor,
        edits,
        options.data,
        task="qa",
        batching=Batching(),
        said_tokens=20,
        room=1 << 30,
        run="benchmark",
        seed=0,
        snapshot_every=50,
    )
    if not lean:
        stream.asking.deciding = None
    seconds = {"edit": 0.0, "look": 0.0}
    restore = {name: getattr(lifelong, name) for name in ("edit_batch", "_look")}

    def timed(part: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments)
            finally:
                seconds[part] += time.process_time() - start

        return call

    lifelong.edit_batch, lifelong._look = (
        timed("edit", restore["edit_batch"]),
        timed("look", restore["_look"]),
    )
    start = time.process_time()
    try:
        progress = lifelong.run(stream)
    finally:
        lifelong.edit_batch, lifelong._look = restore["edit_batch"], restore["_look"]
        editor.remove()
    total, made = time.process_time() - start, len(progress.made)
    found = {
        "items": items,
        "edits": made,
        "total_seconds": total,
        "seconds_per_edit": seconds["edit"] / max(made, 1),
        "seconds_per_look": seconds["look"] / len(progress.looks),
        "looks": len(progress.looks),
        "asking_seconds_per_item": (total - seconds["edit"] - seconds["look"]) / items,
    }
    return found, progress.metrics


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a T5 in hub format")
    parser.add_argument("--data", type=Path, required=True, help="folder of a lifelong data set of questions")
    parser.add_argument("--editor", choices=sorted(SETTINGS), default="grace")
    parser.add_argument("--layer", type=int, default=2, help="block of the edited map, from 0")
    parser.add_argument("--edits", type=int, default=1000, help="items of the stream for the fast form")
    parser.add_argument("--plain-edits", type=int, default=20, help="and for the plain one; 0 leaves it out")
    options = parser.parse_args()
    use_threads(options.threads)
    logging.getLogger("palimpsest").setLevel(logging.ERROR)
    result: dict[str, Any] = {"what": "lifelong stream, CPU seconds", "editor": options.editor}
    result["fast"], rows = run(options, True, options.edits)
    if options.plain_edits:
        result["plain"], plain = run(options, False, options.plain_edits)
        result["fast_on_the_same_items"], _ = run(options, True, options.plain_edits)
        unedited = [
            [(row["split"], row["metric"], round(row["value"], 6)) for row in table if row["step"] == 0]
            for table in (rows, plain)
        ]
        same = [row for row in unedited[0] if row[0] in ("upstream", "accurate")]
        if any(row not in unedited[1] for row in same):
            raise SystemExit("the two forms differ before the first edit")
        both = (result["plain"], result["fast_on_the_same_items"])
        result["ratio"] = {
            name: both[0][name] / both[1][name]
            for name in ("seconds_per_edit", "seconds_per_look", "asking_seconds_per_item", "total_seconds")
        }
    hand_out(result, f"lifelong_stream-{options.editor}", options.threads, options.out)


if __name__ == "__main__":
    main()
