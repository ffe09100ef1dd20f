"""All speed comparisons, piece by piece: plain form against fast form, side by side in one process each (`make bench`).

    python benchmarks/bench.py                      every piece that has no result yet, then the report
    python benchmarks/bench.py --only 'edit-mini-*' some pieces (shell patterns, several allowed)
    python benchmarks/bench.py --list               names, and which are done
    python benchmarks/bench.py --device cuda        the same on a GPU: whole models, results beside those of the CPU

Each piece runs in a process of its own, on one CPU core, and writes one JSON file when it is done: an interrupted run goes on
where it was. Most take a minute or two, the batches of 100 edits at GPT-2-small shape twelve. `--again` measures anew. XL- and
GPT-J-shaped models get few blocks and steps on a CPU; what the whole model would take is then computed by the formulas of
flops.py and marked as extrapolated.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "benchmarks" / "speed"
SHAPES_ON_CPU = ("mini", "gpt2-small", "gpt2-xl", "gpt-j")
# (edits, of them plain, steps) of a writer; XL and GPT-J shapes with few blocks and steps (shapes.py)
WRITER = {"mini": (100, 5, 20), "gpt2-small": (100, 2, 20), "gpt2-xl": (8, 1, 4), "gpt-j": (4, 1, 3)}
ROME = {"mini": (20, 5, 20), "gpt2-small": (6, 2, 20), "gpt2-xl": (2, 1, 4), "gpt-j": (1, 1, 3)}
GRACE = {"mini": (32, 5, 100), "gpt2-small": (16, 1, 30), "gpt2-xl": (8, 1, 4), "gpt-j": (4, 1, 3)}
FT = {"mini": (20, 20, 25), "gpt2-small": (4, 4, 10), "gpt2-xl": (4, 4, 3), "gpt-j": (2, 2, 2)}
ON_GPU = {
    "memit": (100, 2, 20),
    "comeba_hk": (100, 2, 20),
    "rome": (20, 2, 20),
    "rome_rounds": (64, 2, 20),
    "grace": (32, 2, 100),
    "ft": (20, 20, 25),
}
OTHER_EDITORS = ("defer", "memory", "mend", "serac", "retrieval", "lu", "ft_ewc", "ft_retrain")
OTHERS = {"mini": (20, 50), "gpt2-small": (4, 10), "gpt2-xl": (2, 3), "gpt-j": (2, 2)}  # (edits, steps)
TOKENS = {"mini": 40_000, "gpt2-small": 6_000, "gpt2-xl": 4_096, "gpt-j": 1_024}
PROBES = {"mini": (1000, 100), "gpt2-small": (100, 20), "gpt2-xl": (100, 10), "gpt-j": (40, 4)}
SOLVES = (
    (1024, 10, True),
    (1024, 100, True),
    (3072, 10, True),
    (3072, 100, True),
    (6400, 10, True),
    (16384, 10, False),
)
BATCHES, STREAMS = (1, 3, 10, 30, 100, 300, 1000), (10, 100, 1000, 10_000)


def pieces(device: str) -> dict[str, tuple[str, list[Any]]]:
    """Name -> (function, arguments) of every piece."""
    found: dict[str, tuple[str, list[Any]]] = {}
    for shape in SHAPES_ON_CPU:
        sizes = {
            **dict.fromkeys(("memit", "comeba_hk", "rome_rounds"), WRITER[shape]),
            "rome": ROME[shape],
            "grace": GRACE[shape],
            "ft": FT[shape],
        }
        for name, size in (sizes if device == "cpu" else ON_GPU).items():
            kind = "tuner" if name in ("grace", "ft") else "writer"
            found[f"edit-{shape}-{name}"] = (kind, [name, shape, *size])
        for name in OTHER_EDITORS:
            found[f"edit-{shape}-{name}"] = ("other", [name, shape, *OTHERS[shape]])
        found[f"covariance-{shape}"] = ("covariance", [shape, TOKENS[shape] * (1 if device == "cpu" else 20)])
        found[f"probes-{shape}"] = ("probes", [shape, *PROBES[shape]])
    for width, batch, lu in SOLVES:
        found[f"solve-{width}-{batch}"] = ("solving", [width, batch, lu])
    for name in ("memit", "comeba_hk"):
        for count in BATCHES:
            found[f"batch-{name}-{count}"] = ("batch_growth", [name, count])
    for name in ("memit", "comeba_hk", "grace"):
        for made in STREAMS:
            found[f"stream-{name}-{made}"] = ("stream_growth", [name, made])
    if device == "cpu":
        found["looks-along-a-stream"] = ("grace_stream", ["mini-t5", 100, 50, 100])
        found["lookup"] = ("script", ["codebook_lookup.py", "--repeats", "10"])
        for shape in ("mini-t5", "mini-gpt2", "t5-small"):
            few = ["--questions", "60", "--plain-questions", "10"] if shape == "t5-small" else []
            found[f"looks-{shape}"] = ("script", ["lifelong_evaluation.py", "--shape", shape, *few])
    return found


def measure(name: str, device: str, dtype: str, threads: int, edits: int | None) -> dict[str, Any]:
    """One piece, in this process."""
    import torch

    torch.set_num_threads(threads)
    from edit_pieces import tuner, writer
    from measure import machine
    from other_editors import other
    from other_pieces import batch_growth, covariance, probes, solving, stream_growth
    from stream_piece import grace_stream

    functions = {
        function.__name__: function
        for function in (
            *(writer, tuner, other, batch_growth, stream_growth, covariance, solving, probes),
            grace_stream,
        )
    }
    function, arguments = pieces("cpu" if device == "cpu" else "cuda")[name]
    if edits and function in ("writer", "tuner", "other"):
        arguments = [*arguments[:2], edits, *arguments[3:]]
    about = {"piece": name, "kind": function, "arguments": arguments, "dtype": dtype}
    if function == "solving":
        width, batch, lu = arguments
        found = solving(width, batch, device, lu)
    else:
        found = functions[function](*arguments, device, dtype)
    return about | machine(device, threads) | {"measured": found}


def script(name: str, device: str, threads: int) -> dict[str, Any]:
    """A comparison that is a program of its own."""
    file, *arguments = pieces(device)[name][1]
    command = [sys.executable, str(HERE / file), *arguments, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"piece": name, "kind": "script", "device": device, "measured": json.loads(done.stdout)}


def path_of(out: Path, name: str, device: str) -> Path:
    """Where a piece's result lies."""
    return out / f"{name}{'' if device == 'cpu' else '-gpu'}.json"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="pieces by name, * and ? allowed"
    )
    parser.add_argument("--list", action="store_true", help="show the pieces and stop")
    parser.add_argument("--again", action="store_true", help="measure pieces that have a result, too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the models")
    parser.add_argument("--threads", type=int, default=1, help="of the matrix products")
    parser.add_argument("--edits", type=int, help="of a piece that edits a batch, instead of its own number")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the results (default {OUT})")
    parser.add_argument("--no-report", action="store_true", help="leave docs/benchmarks.md as it is")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # one piece, in this process
    options = parser.parse_args()
    if options.here:
        kind = pieces(options.device)[options.here][0]
        if kind == "script":
            result = script(options.here, options.device, options.threads)
        else:
            result = measure(options.here, options.device, options.dtype, options.threads, options.edits)
        file = path_of(options.out, options.here, options.device)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".partial")
        beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        beside.replace(file)
        return
    chosen = [
        n for n in pieces(options.device) if any(fnmatch.fnmatch(n, pattern) for pattern in options.only)
    ]
    if not chosen:
        parser.error(f"no piece is called {' or '.join(options.only)}; --list shows them")
    failed = []
    for number, name in enumerate(chosen, start=1):
        done = path_of(options.out, name, options.device).is_file() and not options.again
        if options.list or done:
            print(f"{name}{'  (done)' if done else ''}", flush=True)
            continue
        print(f"{number}/{len(chosen)} {name}", flush=True)
        command = [
            sys.executable,
            str(HERE / "bench.py"),
            "--here",
            name,
            "--out",
            str(options.out.resolve()),
        ]
        command += ["--device", options.device, "--dtype", options.dtype, "--threads", str(options.threads)]
        command += ["--edits", str(options.edits)] if options.edits else []
        places = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        if subprocess.run(command, env={**os.environ, **places}).returncode:
            failed.append(name)
    if not options.list and not options.no_report:
        subprocess.run([sys.executable, str(HERE / "report.py"), "--results", str(options.out)], check=True)
    if failed:
        raise SystemExit(f"not measured, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
