"""How much memory is free, how much a pass takes, and how many edits may therefore share one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from palimpsest.models.loading import LanguageModel

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory may be planned for a pass: estimates are rough, others need some too
T = TypeVar("T")
_said: set[tuple[str, int]] = set()  # what was logged: a stream makes the same choice at every batch


def free_memory(device: torch.device | str, root: Path = Path("/")) -> int | None:
    """Free bytes of a device; None where nobody knows.

    On a CPU what the kernel calls available, and no more than what is left under a container's or a
    scheduler's limit.

    Args:
        root: where /proc and /sys lie (tests have their own).
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if device.type != "cpu":
        return None
    known = [size for size in (_available(root), _left_of_limit(root)) if size is not None]
    return min(known) if known else None


def peak_on_gpu(device: torch.device | str) -> int | None:
    """Most bytes that torch's tensors took on a GPU at one time, so far in this process; None on other devices.

    What CUDA and torch's allocator hold beside it, about half a GB and more, is not counted.
    """
    device = torch.device(device)
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _left_of_limit(root: Path) -> int | None:
    """Of the least limit that holds for this process (control groups, version 2 and 1); cached files count as free.

    A container has its limit at the top, a scheduler's job or a service below, where /proc/self/cgroup says: each group on the
    way up may have one.
    """
    version2, version1 = _groups(root)
    names2 = ("memory.max", "memory.current", "inactive_file")
    names1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found = [
        _left_of_group(root / mounted / group, *names)
        for mounted, paths, names in (
            ("sys/fs/cgroup", version2, names2),
            ("sys/fs/cgroup/memory", version1, names1),
        )
        for path in paths
        for group in (path, *path.parents)
    ]
    return min((left for left in found if left is not None), default=None)


def _groups(root: Path) -> tuple[list[Path], list[Path]]:
    """Where this process stands among the groups of version 2 and of version 1, relative to where they are mounted."""
    top = Path()
    version2, version1 = [top], [top]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return version2, version1
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if ".." not in path.split("/"):  # it lies outside of what this process is shown
            if not controllers:
                version2.append(Path(path.strip("/")))
            elif "memory" in controllers.split(","):
                version1.append(Path(path.strip("/")))
    return version2, version1


def _left_of_group(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text(encoding="utf-8"))  # "max": no number, no limit
        now = int((folder / used).read_text(encoding="utf-8"))
        rows = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        files = next((int(row.split()[1]) for row in rows if row.startswith(f"{cached} ")), 0)
        return max(0, most - now + files)
    except (OSError, ValueError):
        return None


def that_fit(count: int, needed: int, device: torch.device | str, what: str) -> int:
    """How many of `count` items may share a pass, when all of them together need about `needed` bytes.

    It is halved until a share of the free memory is enough, so that small changes of what is free change nothing: how
    items share passes decides the last digits of results. What was chosen is logged, once for each number.
    """
    free, chosen = free_memory(device), count
    if free is None:
        return count
    while chosen > 1 and needed * chosen / count > SHARE * free:
        chosen = -(-chosen // 2)
    size, left = (f"{bytes_ / 2**30:.2f} GiB" for bytes_ in (needed * chosen / count, free))
    level = logging.WARNING if chosen < count else logging.INFO
    level = logging.DEBUG if (what, chosen) in _said else level
    number = f"{chosen} instead of {count}" if chosen < count else str(chosen)
    log.log(level, "%s: %s share a pass (about %s of %s free)", what, number, size, left)
    _said.add((what, chosen))
    return chosen


def block_bytes(model: LanguageModel, rows: int, tokens: int) -> int:
    """About how many bytes a pass of `rows` sequences of so many `tokens` takes at its largest, without gradient.

    No block's states outlive the next block. Of each token: the MLP's inner states (before and after the activation, and one
    on the way), about 8 d around them (states, norms, queries, keys, values, what a hook layer adds), and for each head scores
    and weights over all tokens.
    """
    heads = int(model.network.config.num_attention_heads)
    each = 3 * model.inner_width + 8 * model.width + 2 * heads * tokens
    return rows * tokens * each * model.dtype.itemsize


def tokens_that_fit(model: LanguageModel, tokens: int, what: str) -> int:
    """How many padded tokens may share a pass without gradient, of `tokens` that were asked for (see `that_fit`).

    Reckoned with rows as long as the model reads, and logits, with what is made of them, at one place in eight.
    """
    longest = min(model.context, tokens)
    numbers = -(-tokens // 8) * 2 * int(model.network.config.vocab_size)
    needed = block_bytes(model, -(-tokens // longest), longest) + 4 * numbers
    return that_fit(tokens, needed, model.device, what)


def in_parts(
    count: int, needed: int, device: torch.device | str, what: str, run: Callable[[slice], T]
) -> list[T]:
    """What `run` gives for `count` items: for all at once where they fit, else part after part.

    Args:
        needed: about how many bytes all of them together need (`that_fit`).
        run: for some of the items; it leaves no trace when it runs out of memory, and gets half as many then.

    Raises:
        torch.OutOfMemoryError: one item alone does not fit.
    """
    start, size, found = 0, that_fit(count, needed, device, what), list[T]()
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            found.append(run(part))
        except torch.OutOfMemoryError:
            if part.stop - start == 1:
                raise
            size = -(-(part.stop - start) // 2)
            log.warning("%s: out of memory, now %d share a pass", what, size)
            continue
        start = part.stop
    return found
