"""Asking for retention: one question at a time by the whole model against batches on kept states, in one process.

    python benchmarks/lifelong_evaluation.py --shape mini-t5 --questions 300 --plain-questions 60 --threads 1

The plain form runs the whole model for each question alone, as GRACE's released loop does. The fast form is what a look of
the lifelong protocol does (metrics/retention.py): padded batches, everything below the edited block run once at the
first look. Random weights with GRACE attached and a few edits made; both give the same scores, which is checked before any
ratio is printed. Plain is timed on fewer questions and scaled.
"""

from __future__ import annotations

import time

from measure import command_line, hand_out, use_threads

SHAPES = {
    "mini-t5": {"family": "t5", "width": 64, "blocks": 2, "heads": 4, "inner": 256, "context": 64},
    "mini-bert": {"family": "bert", "width": 64, "blocks": 2, "heads": 4, "inner": 256, "context": 128},
    "mini-gpt2": {"family": "gpt2", "width": 128, "blocks": 8, "heads": 4, "inner": 512, "context": 128},
    "t5-small": {"family": "t5", "width": 512, "blocks": 8, "heads": 8, "inner": 1024, "context": 128},
}
LAYER = {"mini-t5": 1, "mini-bert": 0, "mini-gpt2": 5, "t5-small": 4}
TASK = {"t5": "qa", "bert": "classification", "gpt2": "generation"}
ANSWERS = {"qa": ("in Rome", "in Oslo"), "classification": ("class 0", "class 1"),
           "generation": ("She was born in Rome and lives there.", "He wrote three books on lakes.")}  # fmt: skip


def questions(n: int, task: str) -> list[tuple[str, str]]:
    """Invented questions of six to fourteen words."""
    first, last = ("Ada", "Ben", "Mira", "Jon", "Lea"), ("Tolvek", "Sorn", "Karel", "Vint")
    return [
        (
            f"Where does {first[i % 5]} {last[i // 5 % 4]} the {i // 20}th live{', and since when' * (i % 3)}?",
            ANSWERS[task][i % 2],
        )
        for i in range(n)
    ]


def measure(name: str, count: int, plain_count: int, edits: int) -> dict:
    """Seconds per question of both forms."""
    import torch

    from palimpsest.editors import make_editor
    from palimpsest.edits import Edit
    from palimpsest.metrics.retention import Asking, Pool
    from palimpsest.models.batching import Batching
    from palimpsest.models.families import family_of
    from palimpsest.models.loading import LanguageModel
    from palimpsest.models.shapes import random_network, shape_of
    from palimpsest.models.tokenizer import train_tokenizer

    shape = shape_of(SHAPES[name])
    row, task = family_of(shape["family"]), TASK[shape["family"]]
    pairs = questions(count, task)
    tokenizer = train_tokenizer([" ".join(pair) for pair in pairs], 600, shape["context"], row.kind)
    model = LanguageModel(random_network(shape, tokenizer, 0), tokenizer, row, name)
    editor = make_editor("grace", model, {"layer": LAYER[name], "radius": 0.5, "steps": 5})
    for prompt, answer in pairs[:edits]:
        editor.edit([Edit(prompt=prompt, target=answer)])
    alone = Pool(Asking(model, task, batching=Batching(tokens=1)), pairs[:plain_count])
    alone.ask([0])  # warm up
    start = time.perf_counter()
    plain = alone.ask()
    plain_seconds = (time.perf_counter() - start) / plain_count
    pool = Pool(Asking(model, task, editor.lowest_block(), site=editor.edited_site()), pairs)
    start = time.perf_counter()
    pool.ask()
    first_seconds = (time.perf_counter() - start) / count
    start = time.perf_counter()
    fast = pool.ask()
    fast_seconds = (time.perf_counter() - start) / count
    difference = max(
        abs((a.values[score] or 0) - (b.values[score] or 0)) / max(1.0, abs(a.values[score] or 0))
        for a, b in zip(plain, fast, strict=False)
        for score in a.values
    )
    if difference > 1e-3:
        raise SystemExit(f"the two forms differ by {difference}")
    return {
        "what": "retention, seconds per question",
        "shape": name,
        "questions": count,
        "plain_questions": plain_count,
        "threads": torch.get_num_threads(),
        "plain_seconds": plain_seconds,
        "first_look_seconds": first_seconds,
        "later_look_seconds": fast_seconds,
        "ratio": plain_seconds / fast_seconds,
        "ratio_first_look": plain_seconds / first_seconds,
        "largest_relative_difference": difference,
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mini-t5")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--plain-questions", type=int, default=60)
    parser.add_argument("--edits", type=int, default=20)
    options = parser.parse_args()
    use_threads(options.threads)
    result = measure(options.shape, options.questions, options.plain_questions, options.edits)
    hand_out(result, f"lifelong_evaluation-{options.shape}", options.threads, options.out)


if __name__ == "__main__":
    main()
