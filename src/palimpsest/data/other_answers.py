"""Answers that an example may be edited to: those of its relation, sorted once for all records and not for each.

A relation of real questions has as many answers as records, so that what is done for each record must not look at each answer.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Collection, Iterable

SHUFFLED = 1024  # so many answers at most are put into a random order as a whole


class OtherAnswers:
    """The answers of one relation.

    Args:
        said: answers, and of whom. One that names its subject is taken over with the name of whoever is asked about.
    """

    def __init__(self, said: Iterable[tuple[str, str | None]]):
        fixed: set[str] = set()
        self._named: set[tuple[str, ...]] = set()  # answers split at the name of their subject
        self._as_said: set[str] = set()  # the same, whole
        for text, whose in said:
            parts = tuple(text.split(whose)) if whose else (text,)
            if len(parts) == 1:
                fixed.add(text)
            else:
                self._named.add(parts)
                self._as_said.add(text)
        self._fixed = sorted(fixed)

    def draw(
        self, subject: str | None, without: Collection[str], number: int, source: random.Random
    ) -> list[str]:
        """Up to `number` different answers, drawn from the sorted ones.

        Up to `SHUFFLED` of them all are put into an order and the first taken: so it was done for any number, and examples stay
        as they were. A relation with more, as no scale on made-up or packaged data has, draws as many as it needs.

        Args:
            subject: of the record that is asked about; None leaves the answers as they were said.
            without: never drawn.
        """
        special = {subject.join(parts) for parts in self._named} if subject else self._as_said
        extra = sorted(text for text in special.difference(without) if self._place(text) is None)
        gone = sorted({place for text in without if (place := self._place(text)) is not None})
        # Where the extra ones stand among those that are left.
        stand = []
        for before, text in enumerate(extra):
            place = bisect_left(self._fixed, text)
            stand.append(place - bisect_left(gone, place) + before)
        count = len(self._fixed) - len(gone) + len(extra)
        drawn = source.sample(range(count), count if count <= SHUFFLED else min(number, count))

        def at(place: int) -> str:
            before = bisect_left(stand, place)
            if before < len(stand) and stand[before] == place:
                return extra[before]
            place -= before
            for one in gone:
                place += place >= one
            return self._fixed[place]

        return [at(place) for place in drawn[:number]]

    def _place(self, text: str) -> int | None:
        """Where an answer stands among those that are the same for everyone."""
        place = bisect_left(self._fixed, text)
        return place if place < len(self._fixed) and self._fixed[place] == text else None
