"""Clock, memory and machine: what every piece of the benchmarks notes beside its result."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Taken:
    """What a block took. On a CPU `seconds` are CPU seconds (other programs lengthen wall time), on a GPU wall seconds."""

    seconds: float = 0.0
    wall: float = 0.0
    peak_bytes: int | None = None

    def plain(self, units: float = 1.0) -> dict[str, Any]:
        """For JSON; seconds for each of so many units."""
        return {"seconds": self.seconds / units, "wall": self.wall / units, "peak_bytes": self.peak_bytes}


@contextlib.contextmanager
def taking(device: str) -> Iterator[Taken]:
    """Time and peak memory of a block: resident memory of this process on a CPU, allocated memory on a GPU."""
    import torch

    taken, cuda = Taken(), device.startswith("cuda")
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield taken
    finally:
        if cuda:
            torch.cuda.synchronize()
        taken.wall = time.perf_counter() - wall
        taken.seconds = taken.wall if cuda else time.process_time() - cpu
        taken.peak_bytes = torch.cuda.max_memory_allocated() if cuda else _peak()


def clock(device: str) -> float:
    """Now, in the seconds that `taking` counts; for parts of a block that is being taken."""
    import torch

    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def product_rate(device: str, dtype: str = "float32", size: int = 1024, repeats: int = 8) -> float:
    """Operations per second of the machine's matrix product, the best of some, with the threads that are set.

    Counted in the same seconds as the pieces: on a CPU a rate for each second of a core.
    """
    import torch

    kind = getattr(torch, dtype)
    size = size if device == "cpu" else 4 * size
    left = torch.randn(size, size, device=device).to(kind)
    right, best = left.clone(), float("inf")
    for _ in range(repeats):
        with taking(device) as taken:
            left @ right
        best = min(best, taken.seconds)
    return 2.0 * size**3 / best


def operations(work: Callable[[], Any]) -> float:
    """Operations of the matrix products in a piece of work, by torch's formulas.

    Not with its FlopCounterMode, whose account of modules breaks `torch.autograd.grad` for a leaf.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    total = 0

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal total
            found = function(*args, **(kwargs or {}))
            formula = flop_registry.get(function._overloadpacket)
            total += formula(*args, **(kwargs or {}), out_val=found) if formula else 0
            return found

    with Counter():
        work()
    return float(total)


def machine(device: str, threads: int) -> dict[str, Any]:
    """What a time belongs to; no name of a computer."""
    import torch

    return {
        "device": device,
        "processor": _gpu() if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for a JSON file with the result")
    return parser


def use_threads(threads: int) -> None:
    """Before anything is measured."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)


def hand_out(result: dict[str, Any], name: str, threads: int, out: Path | None) -> None:
    """Print a result with the machine it belongs to, and keep it where asked."""
    text = json.dumps({**result, "machine": machine("cpu", threads)}, indent=2) + "\n"
    sys.stdout.write(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(text, encoding="utf-8")


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
