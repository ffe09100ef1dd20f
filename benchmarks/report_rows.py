"""Rows of the tables in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import SHAPES_ON_CPU, STREAMS, pieces
from shapes import SHAPES

Results = Mapping[str, Mapping[str, Any]]
MISSING = "not measured"
EDITORS = (
    "memit",
    "comeba_hk",
    "rome",
    "rome_rounds",
    "grace",
    "ft",
    "defer",
    "memory",
    "mend",
    "serac",
    "retrieval",
    "lu",
    "ft_ewc",
    "ft_retrain",
)
PRODUCTS = 0.5  # share of the product rate from which on time may be scaled by operations
FLAT = 1.2  # an edit after 10,000 may take so many times as long as one after 10, and its cost still counts as flat
# Of the plan for this release: (piece, what, how many times)
TARGETS = (
    ("edit-gpt2-small-memit", "MEMIT, GPT-2-small shape, CPU", 20.0),
    ("edit-gpt2-small-comeba_hk", "COMEBA-HK, GPT-2-small shape, CPU", 20.0),
    ("edit-gpt2-small-rome", "ROME in sequence, GPT-2-small shape, CPU", 5.0),
    ("edit-gpt2-small-rome_rounds", "ROME in single rounds, GPT-2-small shape, CPU", 10.0),
    ("looks-along-a-stream", "GRACE along a stream, a look every 50 of 100 questions, mini T5, CPU", 10.0),
    ("edit-gpt2-xl-memit-gpu", "MEMIT, GPT2-XL shape, GPU", 20.0),
    ("edit-gpt2-xl-comeba_hk-gpu", "COMEBA-HK, GPT2-XL shape, GPU", 20.0),
    ("covariance-gpt2-small", "covariance of three layers, GPT-2-small shape, CPU", 4.0),
    ("covariance-gpt2-xl", "covariance of five layers, GPT2-XL shape, CPU", 4.0),
)


def number(value: Any, digits: int = 3) -> str:
    """So many significant digits, no exponents for everyday sizes."""
    if value is None:
        return "–"
    value = float(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:.{digits}g}"
        return f"{float(text):,.0f}" if abs(value) >= 10**digits else text
    return f"{value:.1e}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], whole: bool = False) -> list[str]:
    """Markdown; all but the first column to the right. Rows and columns without any result are left out unless `whole`."""
    if not whole:
        rows = [row for row in rows if any(cell != MISSING for cell in row[1:])]
        used = [n for n in range(len(head)) if n == 0 or any(row[n] not in (MISSING, "–") for row in rows)]
        head, rows = [head[n] for n in used], [[row[n] for n in used] for row in rows]
    if not rows:
        return [f"{MISSING.capitalize()}.", ""]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def whole_model(measured: Mapping[str, Any]) -> Mapping[str, float] | None:
    """What the formulas make of the whole model, where at least half of the fast form's time is what they count."""
    return measured.get("extrapolated") if (measured.get("share_fast") or 0.0) >= PRODUCTS else None


def ratio(measured: Mapping[str, Any]) -> float | None:
    """How many times faster, of the whole model where it was extrapolated."""
    both = whole_model(measured) or {
        form: measured[form]["seconds"] for form in ("plain", "fast") if form in measured
    }
    return both["plain"] / both["fast"] if len(both) == 2 else None


def gpu_cell(results: Results, name: str, show: Callable[[Mapping[str, Any]], str]) -> str:
    """What was measured on a GPU, or that it was not."""
    found = results.get(f"{name}-gpu")
    return MISSING if found is None else show(found["measured"])


def edit_rows(results: Results) -> list[list[str]]:
    """One row for each shape and editor."""
    rows = []
    for shape in SHAPES_ON_CPU:
        for editor in EDITORS:
            name = f"edit-{shape}-{editor}"
            if name not in pieces("cpu"):
                continue
            label = f"{shape}, {editor}"
            gpu = gpu_cell(results, name, lambda m: f"{number(m['fast']['seconds'])} s, {number(ratio(m))} x")
            if name not in results:
                rows.append([label, *[MISSING] * 10, gpu])
                continue
            measured = results[name]["measured"]
            plain, fast, work = measured.get("plain"), measured["fast"], measured.get("flops", {})
            more, stop = whole_model(measured), measured.get("stopping")
            shares = [measured.get(f"share_{form}") for form in ("plain", "fast")]
            rows.append(
                [
                    label,
                    f"{measured.get('plain_edits', '–')} / {measured['edits']}",
                    number(plain["seconds"]) if plain else "–",
                    number(fast["seconds"]),
                    f"**{number(ratio(measured))}**" if plain else "–",
                    f"{number(stop['seconds'])} ({number(stop['mean_steps'])})" if stop else "–",
                    f"{number(more['plain'])} / {number(more['fast'])}" if more else "–",
                    " / ".join(
                        number((part or {}).get("peak_bytes") and part["peak_bytes"] / 2**20)
                        for part in (plain, fast)
                    ),
                    " / ".join(number(value and value / 1e9) for value in _work(work)),
                    " / ".join("–" if share is None else f"{100 * share:.0f} %" for share in shares),
                    number(measured.get("difference_of_z", measured.get("difference_of_losses")), 2),
                    gpu,
                ]
            )
    return rows


def _work(work: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Operations of the part that is optimised, plain and fast."""
    plain, fast = work.get("plain_search", work.get("plain")), work.get("fast_search", work.get("fast"))
    return plain, fast


def parts_rows(results: Results) -> list[list[str]]:
    """Where a writer's time goes."""
    rows = []
    for name, found in results.items():
        measured = found["measured"]
        if found.get("kind") == "writer":
            keys = ("plain_search", "fast_search", "plain_write", "fast_write", "factor_of_c0")
            note = f"{measured['blocks']} of {SHAPES[found['arguments'][1]]['blocks']}"
            rows.append([name.removeprefix("edit-"), note, *(number(measured[key]) for key in keys)])
    return rows


def measured_rows(
    results: Results,
    labels: Mapping[str, str],
    columns: int,
    cells: Callable[[str, Mapping[str, Any]], list[str]],
    on_gpu: Callable[[Mapping[str, Any]], str],
) -> list[list[str]]:
    """One row for each piece (name -> label): so many `cells` of label and what was measured, and a last one for a GPU."""
    return [
        [
            label,
            *(cells(label, results[name]["measured"]) if name in results else [MISSING] * columns),
            gpu_cell(results, name, on_gpu),
        ]
        for name, label in labels.items()
    ]


def covariance_rows(results: Results) -> list[list[str]]:
    """Tokens per second."""
    labels = {f"covariance-{shape}": shape for shape in SHAPES_ON_CPU}

    def cells(_: str, m: Mapping[str, Any]) -> list[str]:
        return [
            f"{m['layers']} of {m['blocks']} blocks",
            number(m["plain_tokens_per_second"]),
            number(m["fast_tokens_per_second"]),
            f"**{number(ratio(m))}**",
            number(m["flops"]["plain"] / m["flops"]["fast"]),
            f"{100 * m['share_plain']:.0f} % / {100 * m['share_fast']:.0f} %",
            number(m["difference"], 2),
        ]

    return measured_rows(
        results, labels, 7, cells, lambda m: f"{number(m['fast_tokens_per_second'])}, {number(ratio(m))} x"
    )


def solve_rows(results: Results) -> list[list[str]]:
    """Milliseconds of one layer and batch."""
    names = [name for name in pieces("cpu") if name.startswith("solve-")]
    labels = {name: "d_k = {1}, {2} keys".format(*name.split("-")) for name in names}

    def cells(_: str, m: Mapping[str, Any]) -> list[str]:
        seconds = m["seconds"]
        return [
            *(
                number(1e3 * seconds[key]) if key in seconds else "–"
                for key in ("lu", "cholesky", "woodbury", "factor_of_c0")
            ),
            number(seconds["cholesky"] / seconds["woodbury"]),
            number(m["differences"]["woodbury"], 2),
        ]

    return measured_rows(results, labels, 6, cells, lambda m: number(1e3 * m["seconds"]["woodbury"]))


def probe_rows(results: Results) -> list[list[str]]:
    """Probes per second."""
    labels = {f"probes-{shape}": shape for shape in SHAPES_ON_CPU}

    def cells(shape: str, m: Mapping[str, Any]) -> list[str]:
        return [
            f"{m['blocks']} of {SHAPES[shape]['blocks']}",
            number(m["plain_per_second"]),
            number(m["fast_per_second"]),
            f"**{number(m['fast_per_second'] / m['plain_per_second'])}**",
            "yes" if m["same_answers"] else "NO",
        ]

    return measured_rows(results, labels, 5, cells, lambda m: number(m["fast_per_second"]))


def growth_rows(results: Results, kind: str, sizes: Sequence[int], editors: Sequence[str]) -> list[list[str]]:
    """Seconds per edit, one column for each size."""
    rows = []
    for editor in editors:
        found = [results.get(f"{kind}-{editor}-{size}") for size in sizes]
        cells = [MISSING if one is None else number(one["measured"]["fast"]["seconds"]) for one in found]
        rows.append([editor, *cells])
    return rows


def target_rows(results: Results) -> list[list[str]]:
    """What was wanted, and what was reached."""
    rows = []
    for name, what, wanted in TARGETS:
        found = results.get(name)
        reached = None if found is None else ratio(found["measured"])
        verdict = MISSING if reached is None else "reached" if reached >= wanted else "**missed**"
        rows.append([what, f"{wanted:g} x", MISSING if reached is None else f"{number(reached)} x", verdict])
    shares = [
        results[f"edit-gpt2-small-{editor}"]["measured"]["share_fast"]
        for editor in ("memit", "comeba_hk")
        if f"edit-gpt2-small-{editor}" in results
    ]
    reached = f"{100 * min(shares):.0f} %" if shares else MISSING
    verdict = MISSING if not shares else "reached" if min(shares) >= 0.4 else "**missed**"
    rows.append(
        [
            "share of the matrix-product rate in target searches, GPT-2-small shape, CPU",
            "40 %",
            reached,
            verdict,
        ]
    )
    for editor in ("memit", "comeba_hk", "grace"):
        found = [results.get(f"stream-{editor}-{size}") for size in (STREAMS[0], STREAMS[-1])]
        if all(found):
            first, last = (one["measured"]["fast"]["seconds"] for one in found if one)
            verdict = "reached" if last <= FLAT * first else "**missed**"
            rows.append(
                [
                    f"{editor}: an edit after 10,000 against one after 10",
                    f"at most {FLAT:g} x",
                    f"{number(last / first)} x",
                    verdict,
                ]
            )
        else:
            rows.append(
                [
                    f"{editor}: an edit after 10,000 against one after 10",
                    f"at most {FLAT:g} x",
                    MISSING,
                    MISSING,
                ]
            )
    return rows
