"""docs/benchmarks.md, its plots and a CSV file, from what bench.py measured.

python benchmarks/report.py --results results/benchmarks/speed --out docs
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import BATCHES, OUT, STREAMS, pieces
from report_rows import (
    MISSING,
    Results,
    covariance_rows,
    edit_rows,
    growth_rows,
    number,
    parts_rows,
    probe_rows,
    solve_rows,
    table,
    target_rows,
)

INTRODUCTION = """Made by `make bench` (`python benchmarks/bench.py --help`); do not edit. Random weights; each piece
measures both forms in one process. *Plain*: the library's own
modules and activations; one edit at a time; target vectors with all padded rows through all blocks and all
logits, no early stop; every batch solved by a new factor; FT, GRACE and the others with the whole network at every step;
covariance with a pass for each layer that ends there, as the released code has it. *Fast*: the editors as they are, also without
early stop. On a CPU seconds are CPU seconds.

XL- and GPT-J-shaped models have full width but few blocks, steps and edits on a CPU; *whole model* is what the formulas of
`benchmarks/flops.py` make of it (20 steps, all blocks): extrapolated, not measured, and only where the fast form spends its time
on products. FT's fast form also keeps its weights in float32 and checks the edited model, which the plain one does not."""
AFTER_EDITS = """GFLOP and share: per edit, of the target search (writers) or the optimisation (GRACE, FT) by formula, of the
others' edits as counted; SERAC, retrieval and LU store an edit after at most one pass: they have one form;
*with early stop*: seconds of the editor as papers and presets have it, where a row leaves the search when its loss is below .05
(how soon depends on the weights). `rome_rounds`: ROME taken back after every edit, so that searches can be made together;
the rate is that of a matrix product of 1,024 in the same process. Difference: of z, or of the last loss, relative."""
STREAMED = ("memit", "comeba_hk", "grace")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """File name without ending -> what it holds."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def counts(sizes: Sequence[int]) -> list[str]:
    """1,000 as people write it."""
    return [f"{size:,}" for size in sizes]


def machines(results: Results) -> list[str]:
    """Processors, threads and the range of loads."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for one in results.values():
        if "processor" in one:
            found.setdefault((one["processor"], one["cores"], one["threads"], one["torch"]), []).append(
                one["load"]
            )
    return [
        f"* {processor}, {cores} cores, {threads} thread{'s' if threads > 1 else ''}, torch {torch}; load of the machine "
        f"while measuring {min(loads):g} to {max(loads):g}"
        for (processor, cores, threads, torch), loads in found.items()
    ]


def text(results: Results) -> str:
    """The page."""
    lines = [
        "# Benchmarks",
        "",
        INTRODUCTION,
        "",
        *(machines(results) or [f"* {MISSING}"]),
        "",
        "## Targets",
        "",
        *table(["", "wanted", "measured", ""], target_rows(results), whole=True),
        "## Edits",
        "",
        *table(
            [
                "shape, editor", "edits (plain / fast)", "plain, s per edit", "fast, s per edit", "times",
                "with early stop (mean steps)", "whole model, plain / fast", "peak MiB, plain / fast",
                "GFLOP, plain / fast", "of the product rate", "largest difference", "GPU",
            ],
            edit_rows(results),
        ),
        AFTER_EDITS,
        "",
        *table(
            ["seconds per edit", "blocks", "search, plain", "search, fast", "write, plain", "write, fast", "factor of C0, once"],
            parts_rows(results),
        ),
        "## Growth",
        "",
        "![Seconds per edit by batch size and by edits made before](benchmarks/growth.png)",
        "",
        "Seconds per edit of one batch, mini shape:",
        "",
        *table(["edits in the batch", *counts(BATCHES)], growth_rows(results, "batch", BATCHES, ("memit", "comeba_hk"))),
        "Seconds of an edit after so many (states filled with random keys), mini shape:",
        "",
        *table(["edits before", *counts(STREAMS)], growth_rows(results, "stream", STREAMS, STREAMED)),
        "## Statistics",
        "",
        *table(
            ["shape", "layers", "plain, tokens/s", "fast, tokens/s", "times", "FLOPs allow", "of the rate", "difference", "GPU"],
            covariance_rows(results),
        ),
        "## Solves",
        "",
        "Milliseconds of one layer and batch, float64. LU is the released form; the factor of C0 is made once for all.",
        "",
        *table(
            ["", "LU", "Cholesky", "Woodbury", "factor of C0", "Cholesky / Woodbury", "difference", "GPU, Woodbury"],
            solve_rows(results),
        ),
        "## Probes",
        "",
        *table(
            ["shape", "blocks", "one by one, per s", "batched, per s", "times", "same answers", "GPU, per s"],
            probe_rows(results),
        ),
        *scripts(results),
    ]  # fmt: skip
    missing = [name for name in pieces("cpu") if name not in results]
    if missing:
        lines += [
            f"{len(missing)} of {len(pieces('cpu'))} pieces have no result yet: `make bench` goes on with them.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def scripts(results: Results) -> list[str]:
    """Look-up of GRACE, and looks of the lifelong protocol."""
    rows = []
    if "lookup" in results:
        m = results["lookup"]["measured"]
        share = f"{100 * m['look_up_share_of_pass']:.1f} % of a pass over {m['tokens']} tokens"
        rows.append([f"look-up among {m['keys']:,} keys of width {m['width']}", share])
    for name in (key for key in results if key.startswith("looks-mini") or key == "looks-t5-small"):
        m = results[name]["measured"]
        rows.append([f"{m['shape']}: retention, one by one / batched", f"{number(m['ratio'])} times"])
    return table(["GRACE", ""], rows) if rows else []


def plot(results: Results, path: Path) -> None:
    """Both growths; a point that was not measured is not drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"memit": "#0072B2", "comeba_hk": "#D55E00", "grace": "#882255"}
    figure, axes = pyplot.subplots(1, 2, figsize=(7.2, 2.6), sharey=True, layout="constrained")
    for axis, kind, sizes, label in (
        (axes[0], "batch", BATCHES, "edits in the batch"),
        (axes[1], "stream", STREAMS, "edits made before"),
    ):
        for editor, colour in colours.items():
            found = [(size, results.get(f"{kind}-{editor}-{size}")) for size in sizes]
            points = [(size, one["measured"]["fast"]["seconds"]) for size, one in found if one]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", ms=3.5, color=colour, label=editor)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(color="#e6e6e6", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds per edit")
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def flat(results: Results) -> list[dict[str, Any]]:
    """One row for each piece and number."""
    rows = []
    for name, one in results.items():
        about = {key: one.get(key) for key in ("device", "processor", "threads", "load", "torch")}
        stack = [("", one["measured"])]
        while stack:
            prefix, value = stack.pop()
            if isinstance(value, dict):
                stack += [(f"{prefix}{'.' if prefix else ''}{key}", inner) for key, inner in value.items()]
            elif isinstance(value, int | float):
                rows.append({"piece": name, **about, "what": prefix, "value": value})
    return sorted(rows, key=lambda row: (row["piece"], row["what"]))


def write(folder: Path, out: Path) -> Path:
    """The page, its plot and the CSV file."""
    results = read(folder)
    plot(results, out / "benchmarks" / "growth.png")
    rows = flat(results)
    with (out / "benchmarks" / "speed.csv").open("w", encoding="utf-8", newline="") as file:
        names = ["piece", "device", "processor", "threads", "load", "torch", "what", "value"]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = out / "benchmarks.md"
    page.write_text(text(results), encoding="utf-8")
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=OUT, help=f"folder of bench.py's files (default {OUT})"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT.parents[2] / "docs", help="folder of the page (default docs)"
    )
    options = parser.parse_args()
    print(write(options.results, options.out))


if __name__ == "__main__":
    main()
