"""Vectors of a growing memory: one for each different text, however many edits have it (spec Q17).

A text that is embedded twice, in batches that are padded differently, gets two vectors that differ by rounding. Of two edits of
one prompt the older one would then be nearer in some passes and the newer one in others. So entries of one text share a vector
and are scored once: their scores are equal to the bit, and the newest of them speaks (`routed_editor.newest_best`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FIRST_ROOM = 64  # rows that a table of keys starts with


class SharedRows:
    """Which row each entry of a memory has: entries of one text have the same one; rows are in the order of their texts."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, int] = {}
        self._of: list[int] = []
        self._index: Tensor | None = None  # `_of` as a tensor, until it changes

    def unmet(self, texts: Sequence[Hashable]) -> list[int]:
        """Places, among the given texts, of those that have no row yet: of equal ones the first."""
        found: dict[Hashable, int] = {}
        for place, text in enumerate(texts):
            if text not in self._rows:
                found.setdefault(text, place)
        return list(found.values())

    def append(self, texts: Sequence[Hashable]) -> None:
        """Add an entry for each text."""
        self._of += [self._rows.setdefault(text, len(self._rows)) for text in texts]
        self._index = None

    def keep(self, places: Sequence[int]) -> list[int]:
        """Only these entries, in this order; the rows that they still have, in their new order."""
        own = [self._of[place] for place in places]
        rows = list(dict.fromkeys(own))
        number = {row: new for new, row in enumerate(rows)}
        self._rows = {text: number[row] for text, row in self._rows.items() if row in number}
        self._of = [number[row] for row in own]
        self._index = None
        return rows

    def spread(self, scores: Float[Tensor, "b u"]) -> Float[Tensor, "b n"]:
        """Scores of the n entries from those of the u rows."""
        if self._index is None:
            self._index = torch.tensor(self._of, dtype=torch.long, device=scores.device)
        return scores[:, self._index]


class Keys:
    """The vectors: a table of u rows [u, c] for n entries, appended in place."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device):
        self._room = torch.empty(0, width, dtype=dtype, device=device)
        self._used = 0
        self._shared = SharedRows()

    @property
    def rows(self) -> Float[Tensor, "u c"]:
        """All of them: a view."""
        return self._room[: self._used]

    def append(self, texts: Sequence[Hashable], embed: Callable[[list[int]], Float[Tensor, "m c"]]) -> None:
        """Add an entry for each text.

        Args:
            texts: what is embedded, as anything that is equal where the vectors should be (such as tokens).
            embed: gives vectors [m, c] of the texts at these places; called once, for texts that have none. Nothing has
                changed where it raises.
        """
        unmet = self._shared.unmet(texts)
        if unmet:
            self._add(embed(unmet))
        self._shared.append(texts)

    def _add(self, rows: Float[Tensor, "m c"]) -> None:
        needed = self._used + len(rows)
        if needed > len(self._room):
            grown = self._room.new_empty(max(needed, 2 * len(self._room), FIRST_ROOM), self._room.shape[1])
            grown[: self._used] = self.rows
            self._room = grown
        self._room[self._used : needed] = rows.to(self._room)
        self._used = needed

    def keep(self, places: Sequence[int]) -> None:
        """Only these entries, in this order."""
        kept = self.rows[self._shared.keep(places)].clone()
        self._used = 0
        self._add(kept)

    def spread(self, scores: Float[Tensor, "b u"]) -> Float[Tensor, "b n"]:
        """Scores of the n entries from those of the u rows."""
        return self._shared.spread(scores)
