"""How rows of different lengths share passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Batching:
    """How rows share a pass.

    Attributes:
        tokens: padded tokens of a pass, at most (one row may be longer).
        equal_length: only rows of the same length share a pass. Needed when a method lets padding tokens
            change its answers, as the official code of COMEBA-HK does (spec quirk 3).
    """

    tokens: int = BATCH_TOKENS
    equal_length: bool = False

    def groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers of each pass, short rows first; every row is in exactly one group."""
        group: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda number: lengths[number]):
            # Rows come in ascending order, so the newest row is the longest of its group.
            full = (len(group) + 1) * lengths[row] > self.tokens
            if group and (full or (self.equal_length and lengths[row] != lengths[group[0]])):
                yield group
                group = []
            group.append(row)
        if group:
            yield group
