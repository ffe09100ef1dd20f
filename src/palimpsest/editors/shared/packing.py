"""Where short tails and what precedes them lie in lanes: best fit, with the length of the lanes chosen by what a pass costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from palimpsest.models.loading import LanguageModel

LENGTHS = (1, 1.34, 1.67, 2, 2.67, 4)  # of lanes that are tried, as multiples of the longest tail


@dataclass(frozen=True)
class Row:
    """One row to be packed: tokens of its tail, kept tokens of its own before it, and which beginning it shares."""

    tail: int
    own: int
    group: int


@dataclass
class Packing:
    """Lanes of so many slots, each with its own prefix slots, where kept tokens lie.

    Attributes:
        rows: (lane, first slot, first prefix slot of the row's own tokens) of each row.
        beginnings: (lane, group, first prefix slot) of each beginning that lies in a lane, once for all its rows there.
        filled: slots taken in each lane; prefixes: prefix slots taken.
    """

    slots: int
    rows: list[tuple[int, int, int]]
    beginnings: list[tuple[int, int, int]] = field(default_factory=list)
    filled: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Slots of all lanes together."""
        return len(self.filled) * self.slots

    @property
    def seen(self) -> int:
        """Keys that each slot is compared with."""
        return self.slots + max(self.prefixes)


def pack_rows(model: LanguageModel, rows: Sequence[Row], lengths: Sequence[int]) -> Packing:
    """The cheapest of some lengths of lanes: short ones hold padding, long ones compare tails that do not see each other.

    Args:
        lengths: tokens of each beginning.
    """
    longest, d = max(row.tail for row in rows), model.width
    products = 8 * d * d + 4 * d * model.inner_width  # of a block, for one token
    tried = [
        best_fit(rows, lengths, slots) for slots in sorted({round(longest * times) for times in LENGTHS})
    ]
    return min(tried, key=lambda one: one.size * (products + 6 * d * one.seen))


def best_fit(rows: Sequence[Row], lengths: Sequence[int], slots: int) -> Packing:
    """Longest tails first, each into the lane with the least room that is enough; of equal ones, the latest lane."""
    packing = Packing(slots, [(0, 0, 0)] * len(rows))
    room: dict[int, list[int]] = defaultdict(list)  # free slots -> lanes
    held: list[set[int]] = []
    # Rows of one group follow each other: they fill the same lanes, where their beginning lies once.
    for i in sorted(range(len(rows)), key=lambda i: (-rows[i].tail, rows[i].group)):
        row = rows[i]
        fitting = next((free for free in range(row.tail, slots + 1) if room[free]), None)
        if fitting is None:
            lane = len(held)
            packing.filled.append(0)
            packing.prefixes.append(0)
            held.append(set())
        else:
            lane = room[fitting].pop()
        if row.group not in held[lane]:
            held[lane].add(row.group)
            packing.beginnings.append((lane, row.group, packing.prefixes[lane]))
            packing.prefixes[lane] += lengths[row.group]
        packing.rows[i] = (lane, packing.filled[lane], packing.prefixes[lane])
        packing.filled[lane] += row.tail
        packing.prefixes[lane] += row.own
        room[slots - packing.filled[lane]].append(lane)
    return packing
