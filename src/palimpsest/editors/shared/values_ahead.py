"""Values of edits that come next, trained together before their turn.

A value is trained with itself in the place of the linear map's output on every row, whatever the codebook holds: its training
depends on nothing but the edit and on where it starts. So the edits that a stream will probably make next are trained as rows of
one batch. When an edit's turn comes, its value is taken if it started where the edit now starts, number for number; otherwise
(an edit in between has changed that) the edit is trained as if nothing had been prepared. Equal to rounding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.adam import Adam
from palimpsest.editors.shared.gated_adapter import GatedAdapter
from palimpsest.edits import Edit
from palimpsest.models.upper import Upper

log = logging.getLogger(__name__)
# Longest row of a group, in lengths of its shortest; tokens below which length costs little.
SPREAD, SHORT = 1.25, 24


@dataclass(frozen=True)
class TrainedValue:
    """One value [d_out], where it started [d_out], and its losses [steps]."""

    start: Float[Tensor, " d"]
    value: Float[Tensor, " d"]
    losses: Float[Tensor, " s"]


def own_start(seed: int, name: str, width: int) -> Float[Tensor, " d"]:
    """Uniform in [0, 1): an edit's own numbers, whatever was edited before it. Made again, it starts at the same place."""
    own = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.rand(width, generator=torch.Generator().manual_seed(int.from_bytes(own, "big") >> 1))


def train_together(
    adapter: GatedAdapter, upper: Upper, starts: Float[Tensor, "b d"], steps: int, learning_rate: float
) -> list[TrainedValue | None]:
    """A fixed number of steps of a fresh Adam for each row; None for a row whose loss was ever not finite, at the end too.

    Args:
        upper: the rows, with their targets, standing at the adapter's block.
        starts: where the value of each row starts.
    """
    values, losses = starts.clone().requires_grad_(True), list[Tensor]()
    optimiser = Adam([values], learning_rate)
    adapter.attach()
    try:
        for _ in range(steps):
            adapter.fixed = values
            now = upper.row_losses()
            losses.append(now.detach())
            optimiser.step(torch.autograd.grad(now.sum(), [values]))
        with torch.no_grad():
            last = upper.row_losses()
    except torch.OutOfMemoryError:  # each is then trained when its turn comes, alone
        log.warning("values of %d edits do not fit into memory together", len(starts))
        return [None] * len(starts)
    finally:
        adapter.fixed = None
    every, found = torch.stack(losses, dim=1), values.detach()
    finite = torch.isfinite(every).all(dim=1) & torch.isfinite(last)
    return [
        TrainedValue(start, value, mine) if fine else None
        for start, value, mine, fine in zip(starts, found, every, finite.tolist(), strict=True)
    ]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in groups of about the same length: what padding costs must not eat what sharing a pass gains."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if groups and lengths[row] <= max(SHORT, SPREAD * lengths[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class ValuesAhead:
    """Those that wait for their turn."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], TrainedValue] = {}

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()

    def put(self, edit: Edit, trained: TrainedValue) -> None:
        """Let one wait."""
        self._waiting[edit.prompt, edit.target] = trained

    def take(self, edit: Edit, start: Float[Tensor, " d"]) -> TrainedValue | None:
        """That of an edit, if there is one and it started where the edit starts now; it waits no longer either way."""
        found = self._waiting.pop((edit.prompt, edit.target), None)
        return found if found is not None and torch.equal(found.start, start) else None

    def tensors(self) -> dict[str, Tensor]:
        """For a state: copies."""
        waiting = list(self._waiting.values())
        names = ("start", "value", "losses") if waiting else ()
        return {f"ahead.{name}": torch.stack([getattr(one, name) for one in waiting]) for name in names}

    def plain(self) -> list[list[str]]:
        """Which edits they belong to, in the order of `tensors`."""
        return [list(edit) for edit in self._waiting]

    def load(self, tensors: dict[str, Tensor], plain: Sequence[Sequence[str]], like: Tensor) -> None:
        """Take over what `tensors` and `plain` gave, on the device of `like`."""
        rows: list[Any] = []
        if plain:
            rows = list(
                zip(*(tensors[f"ahead.{n}"].to(like) for n in ("start", "value", "losses")), strict=True)
            )
        self._waiting = {
            (prompt, target): TrainedValue(*row) for (prompt, target), row in zip(plain, rows, strict=True)
        }
