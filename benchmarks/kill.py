"""Kill a command at random moments, start it again, and compare what it leaves with the unbroken run.

    python benchmarks/kill.py --moments 50

Kinds: a consecutive run (COMEBA-HK, with an edit that fails), single rounds (ROME, which prepares rounds together),
simultaneous edits (SERAC's look-up baseline LU), a lifelong run (GRACE), a search of target vectors, statistics, Fisher
information, training of a learned editor (MEND), pre-training; all on tiny models made here. Every command is a process of its
own, forked from this one, which has the libraries loaded and computes nothing. It gets a real signal: SIGKILL, or with --signal
TERM (or INT) one that it can answer by a checkpoint, a message and status 143 (130); several take turns. Moments are seeded and
spread evenly over the unbroken command's time. Compared is all that is no time of day: tables, histories, weights, sums, loss
curves. Ends with status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMON = {"dataset": "toy", "model": "tiny", "snapshot_every": 4}
OPTIONS = {"conflicts": "keep", "checkpoint_every_batch": True}
KEY_VALUE = {"layers": [0, 1], "steps": 12, "context_lengths": [[4, 2]]}
CONSECUTIVE = {
    **COMMON, "run": "kill-consecutive", "protocol": "consecutive", "editor": "comeba_hk", "settings": KEY_VALUE, "edits": 20,
    "batch_size": 2, "options": {**OPTIONS, "inspect": True},
}  # fmt: skip
SINGLE = {
    **COMMON, "run": "kill-single", "protocol": "single_round", "editor": "rome", "settings": {**KEY_VALUE, "layers": [1]},
    "snapshot_every": None, "edits": 20, "batch_size": 1, "options": OPTIONS,
}  # fmt: skip
SIMULTANEOUS = {
    **COMMON, "run": "kill-simultaneous", "protocol": "simultaneous", "editor": "lu", "settings": {}, "edits": 20,
    "batch_size": 1, "options": {**OPTIONS, "batch_sizes": [1, 4]},
}  # fmt: skip
TARGETS = {
    "model": "tiny", "dataset": "toy", "edits": 20, "options": OPTIONS, "settings": {**KEY_VALUE, "layers": [1]},
}  # fmt: skip
LIFELONG = {
    **COMMON, "run": "kill-lifelong", "protocol": "lifelong", "editor": "grace", "settings": {"layer": 1, "steps": 60},
    "edits": 20, "batch_size": 1, "options": {**OPTIONS, "edit_always": True, "task": "qa"},
}  # fmt: skip
STATISTICS = {"layers": [0, 1, 2, 3], "tokens": 60_000, "batch_tokens": 1024, "checkpoint_batches": 1}
FISHER = {"kind": "fisher", "layers": [0, 1, 2, 3], "limit": None, "batch_tokens": 128}
TRAINING = {
    "editor": "mend",
    "settings": {
        "layers": [2, 3], "rank": 8, "alpha0": 3e-3, "lr": 1e-3, "lr_lr": 1e-2, "c_edit": 1.0, "steps": 120, "k_train": 2,
        "accumulate": 2, "validate_every": 20, "validate_on": 4, "log_every": 10, "checkpoint_every": 6, "patience": None,
    },
}  # fmt: skip
PRETRAINING = {
    "family": "gpt2", "width": 16, "blocks": 2, "heads": 2, "inner": 32, "context": 48, "steps": 160, "batch": 4, "length": 32,
    "warmup": 2, "vocabulary": 900, "log_every": 4, "checkpoint_seconds": 0.0, "dropout": 0.1,
}  # fmt: skip
SOURCE = {
    "counterfact": 12, "zsre": 12, "probes": 4, "unrelated": 4, "relations": 2, "answers": 3, "first_names": 6,
    "facts_per_subject": 1, "text_lines": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One command: its arguments but for --out, and what is compared of what it leaves."""

    arguments: Callable[[Path], list[str]]
    left: Callable[[Path], dict[str, Any]]
    resumable: tuple[str, ...]  # files that say that there is something to go on from


@dataclass
class Outcome:
    """How a process ended: its exit status (negative: killed by that signal) and its seconds."""

    status: int
    seconds: float


def main() -> int:
    """Read the command line, do all moments of all kinds, print one line each; 1 when something differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="of each kind (default 50)")
    parser.add_argument(
        "--kinds", nargs="*", choices=sorted(KINDS), default=sorted(KINDS), help="default: all"
    )
    parser.add_argument(
        "--signal", nargs="+", choices=("KILL", "TERM", "INT"), default=["KILL"], help="default KILL"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--out", type=Path, default=None, help="file for the numbers, as JSON")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from palimpsest.warm import LIBRARIES

    for name in (
        *LIBRARIES,
        "palimpsest.learning.train",
        "palimpsest.models.pretrain",
        "palimpsest.runs.run",
        "palimpsest.runs.searches",
    ):
        import_module(name)  # loaded here once, so that a process starts at once
    torch.set_num_threads(1)
    sys.modules["palimpsest.runs.searches"].EDITS_AT_ONCE = 2  # type: ignore[attr-defined]  # as many parts as large searches have
    report = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-kill-") as folder:
        world = Path(folder) / "world"
        made = forked(lambda: make_world(world), Path(folder) / "world.log")
        if made.status:
            print((Path(folder) / "world.log").read_text())
            return 1
        for name in options.kinds:
            report.append(trial(name, options, world, Path(folder) / name))
            print(words(report[-1]), flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(entry["different"] for entry in report))


def trial(name: str, options: argparse.Namespace, world: Path, folder: Path) -> dict[str, Any]:
    """All moments of one kind."""
    kind, signals = KINDS[name], [getattr(signal, f"SIG{each}") for each in options.signal]
    whole = folder / "whole"
    unbroken = command(kind, world, whole)
    if unbroken.status:
        raise SystemExit(f"{name}: the unbroken command failed:\n{log_of(whole)}")
    wanted, source = kind.left(whole), random.Random(f"{options.seed} {name}")
    entry: dict[str, Any] = {"kind": name, "signal": " ".join(options.signal), "moments": options.moments}
    entry |= {"seconds": unbroken.seconds, "stopped": 0, "went_on": 0, "different": []}
    for place in range(options.moments):
        moment = (place + source.random()) / options.moments * unbroken.seconds
        out, number = folder / "broken", signals[place % len(signals)]
        first = command(kind, world, out, moment, number)
        stopped = first.status != 0
        entry["stopped"] += stopped
        problem = ""
        # Before the command listens, or where it cannot, the system ends it: for a shell that is 128 + signal too.
        if stopped and first.status not in (-number, 128 + number):
            problem = f"ended with status {first.status}:\n{log_of(out)}"
        went_on = stopped and any(True for pattern in kind.resumable for _ in out.glob(pattern))
        entry["went_on"] += went_on
        again = command(kind, world, out)
        if again.status:
            problem += f"the second start failed with status {again.status}:\n{log_of(out)}"
        elif (found := kind.left(out)) != wanted:
            problem += f"differs in {[key for key in wanted if found.get(key) != wanted[key]]}"
        left_over = [
            path.name for path in out.rglob("*") if path.name.startswith(".") or path.match("checkpoint*")
        ]
        if left_over:
            problem += f"left behind: {left_over}"
        if problem:
            entry["different"].append({"moment": moment, "problem": problem})
        shutil.rmtree(out)
    return entry


def words(entry: dict[str, Any]) -> str:
    """One line, and what went wrong."""
    lines = [
        f"{entry['kind']:<12} {entry['signal']} at {entry['moments']} moments of {entry['seconds']:.2f} s: "
        f"{entry['stopped']} stopped, {entry['went_on']} of them with something to go on from, "
        f"{entry['moments'] - len(entry['different'])} equal to the unbroken one"
    ]
    return "\n".join(lines + [f"  at {bad['moment']:.3f} s: {bad['problem']}" for bad in entry["different"]])


# processes -----------------------------------------------------------------------------------------------------------


def command(kind: Kind, world: Path, out: Path, after: float | None = None, number: int = 9) -> Outcome:
    """One command in a process of its own; `after` so many seconds it gets the signal."""

    def job() -> int:
        from palimpsest.cli import main as command_line

        return command_line([*kind.arguments(world), "--out", str(out)])

    return forked(job, out.parent / f"{out.name}.log", after, number)


def forked(job: Callable[[], int | None], log: Path, after: float | None = None, number: int = 9) -> Outcome:
    """Fork, do the job with its output in `log`, send the signal in time, and wait."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(place, 1)
            os.dup2(place, 2)
            logging.getLogger().handlers.clear()
            status = job() or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if after is not None:
        time.sleep(max(0.0, after - (time.perf_counter() - start)))
        os.kill(process, number)  # not yet waited for: the number is still its own
    _, ended = os.waitpid(process, 0)
    return Outcome(os.waitstatus_to_exitcode(ended), time.perf_counter() - start)


def log_of(out: Path) -> str:
    """The end of what a command said."""
    return (out.parent / f"{out.name}.log").read_text(errors="replace")[-3000:]


# what is run, and what it leaves -------------------------------------------------------------------------------------


def make_world(folder: Path) -> None:
    """A tiny model, its statistics, edits of which one cannot be made, learning examples, a source, and a text."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import (
        CITIES,
        PEOPLE,
        TEXTS,
        random_statistics,
        some_edits,
        some_examples,
        tiny_model,
        write_examples,
    )

    from palimpsest.data.world import generate
    from palimpsest.edits import Edit, write_edits

    model = tiny_model("gpt2")
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    random_statistics(model, (0, 1)).save(folder / "statistics")
    more = [
        Edit(f"I say {person} lives in the city of", city, subject=person, identifier=f"more-{person}-{city}")
        for person in PEOPLE
        for city in CITIES[:3]
    ]
    impossible = Edit(
        "The city of all is", CITIES[0], identifier="no-subject"
    )  # fails where a subject is needed
    write_edits(folder / "data" / "edits.jsonl", [*some_edits(6), impossible, *more])
    write_examples(folder / "data" / "learning.jsonl", some_examples())
    (folder / "text.txt").write_text("\n".join(TEXTS))
    source = random.Random(0)
    lines = (" ".join(source.choices(" ".join(TEXTS).split(), k=40)) for _ in range(1500))
    (folder / "corpus.txt").write_text("\n".join(lines))
    asked = [
        json.dumps({"prompt": f"So {line[:60]}", "answer": source.choice(CITIES)}) for line in TEXTS * 15
    ]
    (folder / "pairs.jsonl").write_text("\n".join(asked))
    generate(SOURCE, 1, folder / "source")


def run_of(spec: dict[str, Any]) -> Callable[[Path], list[str]]:
    """Arguments of `palimpsest run`."""

    def arguments(world: Path) -> list[str]:
        named = {"model": "model", "dataset": "data", "text": "text.txt", "statistics": "statistics"}
        files = [part for name, place in named.items() for part in (f"--{name}", str(world / place))]
        files += ["--answers", str(world / "answers")]
        return ["run", "--spec", json.dumps(spec), "--seed", "0", *files]

    return arguments


def statistics_arguments(world: Path) -> list[str]:
    """Arguments of `palimpsest statistics`."""
    files = ["--model", str(world / "model"), "--corpus", str(world / "corpus.txt")]
    return ["statistics", "--spec", json.dumps(STATISTICS), *files]


def fisher_arguments(world: Path) -> list[str]:
    """The same for Fisher information."""
    files = ["--model", str(world / "model"), "--corpus", str(world / "pairs.jsonl")]
    return ["statistics", "--spec", json.dumps(FISHER), *files]


def targets_arguments(world: Path) -> list[str]:
    """Arguments of `palimpsest targets`."""
    files = ["--model", str(world / "model"), "--dataset", str(world / "data")]
    return ["targets", "--spec", json.dumps(TARGETS), "--seed", "0", *files]


def training_arguments(world: Path) -> list[str]:
    """Arguments of `palimpsest train-editor`."""
    files = ["--model", str(world / "model"), "--dataset", str(world / "data")]
    return ["train-editor", "--spec", json.dumps(TRAINING), "--seed", "0", *files]


def pretraining_arguments(world: Path) -> list[str]:
    """Arguments of `palimpsest pretrain`."""
    return ["pretrain", "--spec", json.dumps(PRETRAINING), "--source", str(world / "source")]


def tables(out: Path) -> dict[str, Any]:
    """The three tables, byte for byte, and of `run.json` what holds no time."""
    found: dict[str, Any] = files("metrics.parquet", "records.parquet", "inspection.parquet")(out)
    content = json.loads((out / "run.json").read_text())
    names = ("spec", "edits_applied", "edits_failed", "failure_reasons", "state_bytes", "checks")
    found |= {name: content.get(name) for name in names}
    history = content["history"]
    return found | {name: history.get(name) for name in ("alpha", "edited", "codebook", "examples")}


def files(*names: str) -> Callable[[Path], dict[str, Any]]:
    """Digests of files."""
    return lambda out: {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def sums(name: str) -> Callable[[Path], dict[str, Any]]:
    """The matrices; the order of the fields in the file's header is not always the same."""

    def left(out: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        tensors = load_file(out / f"{name}.safetensors")
        found = {key: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for key, tensor in tensors.items()}
        return found | files(f"{name}.json")(out)

    return left


def targets(out: Path) -> dict[str, Any]:
    """The vectors and, of their description, what holds no time."""
    content = json.loads((out / "targets.json").read_text())
    return files("targets.safetensors")(out) | {k: v for k, v in content.items() if k != "seconds"}


def pretrained(out: Path) -> dict[str, Any]:
    """The model, and its loss curve without the column of seconds."""
    curve = [line.rpartition(",")[0] for line in (out / "training.csv").read_text().splitlines()]
    return files("model.safetensors", "tokenizer.json", "config.json")(out) | {"curve": curve}


CHECKPOINTS = ("checkpoints/step-*.json",)
KINDS = {
    "consecutive": Kind(run_of(CONSECUTIVE), tables, CHECKPOINTS),
    "single": Kind(run_of(SINGLE), tables, CHECKPOINTS),
    "simultaneous": Kind(run_of(SIMULTANEOUS), tables, CHECKPOINTS),
    "lifelong": Kind(run_of(LIFELONG), tables, CHECKPOINTS),
    "targets": Kind(targets_arguments, targets, CHECKPOINTS),
    "statistics": Kind(statistics_arguments, sums("covariance"), ("covariance-partial.safetensors",)),
    "fisher": Kind(fisher_arguments, sums("fisher"), ("fisher-partial.safetensors",)),
    "training": Kind(
        training_arguments,
        files("weights.safetensors", "trained.json", "training.csv"),
        ("checkpoint.safetensors",),
    ),
    "pretraining": Kind(pretraining_arguments, pretrained, ("checkpoint.safetensors",)),
}

if __name__ == "__main__":
    sys.exit(main())
