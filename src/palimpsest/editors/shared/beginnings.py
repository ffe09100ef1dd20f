"""Rows that begin alike, taken apart: each common beginning is run once, and what follows it in every row on top of that.

An edit's rows are the same few contexts before its prompt, so those of a batch share most of their tokens. Exact: attention is
causal, so a beginning's states, keys and values do not depend on what follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import KeyValueCache, Noted, additive, causal_mask, embed, run_blocks
from palimpsest.models.tokens import TokenBatch

WORTH = 8  # beginnings are shared when that leaves out at least one token in so many


@dataclass(frozen=True)
class States:
    """Hidden states at one place of the model: of the C beginnings [C, p, d] and of the rest of each row [R, n, d]."""

    beginnings: Float[Tensor, "C p d"]
    rest: Float[Tensor, "R n d"]


@dataclass(frozen=True)
class Beginnings:
    """R right-padded rows, apart. Without anything to share p is 0 and the rest is the rows.

    Attributes:
        tokens: the C beginnings, right-padded.
        group: which of them each row starts with [R].
        offset: tokens of it, so that column j of the rest is column j + offset of the row [R].
        rest: what follows in each row, right-padded.
    """

    tokens: TokenBatch
    group: Int[Tensor, " R"]
    offset: Int[Tensor, " R"]
    rest: TokenBatch

    @property
    def shared(self) -> int:
        """p, tokens of the longest beginning."""
        return int(self.tokens.input_ids.shape[1])

    def embed(self, model: LanguageModel) -> States:
        """Input of block 0."""
        return States(embed(model, self.tokens), embed(model, self.rest, self._positions()))

    def split(self, states: Float[Tensor, "R n d"]) -> States:
        """States of whole rows, taken apart."""
        first = _first_rows(self.group, len(self.tokens.input_ids))
        columns = self._positions().clamp(max=states.shape[1] - 1)
        rest = states.gather(1, columns[:, :, None].expand(-1, -1, states.shape[2]))
        return States(states[first, : self.shared], rest)

    def join(self, states: States) -> Float[Tensor, "R n d"]:
        """States of whole rows, put together again."""
        whole = torch.cat([states.beginnings[self.group], states.rest], dim=1)
        width = int((self.offset + self.rest.lengths).max())
        column = torch.arange(width, device=self.offset.device)
        place = torch.where(
            column < self.offset[:, None], column, column + (self.shared - self.offset)[:, None]
        )
        return whole.gather(1, place.clamp(max=whole.shape[1] - 1)[:, :, None].expand(-1, -1, whole.shape[2]))

    def run_beginnings(
        self, model: LanguageModel, states: Float[Tensor, "C p d"], first: int, last: int
    ) -> tuple[Float[Tensor, "C p d"], Noted]:
        """Blocks first..last on the beginnings, and their keys and values by block."""
        if not self.shared:
            return states, {}
        noted: Noted = {}
        mask = causal_mask(self.tokens.attention_mask, model.dtype)
        positions = torch.arange(self.shared, device=states.device).expand(states.shape[:2])
        with model.padding_of(self.tokens.attention_mask):
            return run_blocks(model, states, first, last, mask, positions, KeyValueCache(noted=noted)), noted

    def run_rest(
        self,
        model: LanguageModel,
        states: Float[Tensor, "r n d"],
        first: int,
        last: int,
        kept: Noted,
        rows: slice | Int[Tensor, " r"] = slice(None),
        noted: Noted | None = None,
    ) -> Float[Tensor, "r n d"]:
        """Blocks first..last on the rest of some rows (of which the first columns will do).

        Args:
            kept: keys and values of the beginnings, by block; noted: where the rest's own are noted.
        """
        past = KeyValueCache(kept, self.group[rows], noted)
        n = states.shape[1]
        offset, real = self.offset[rows], self.rest.attention_mask[rows, :n]
        before = torch.arange(self.shared, device=states.device) < offset[:, None]
        causal = torch.ones(n, n, dtype=torch.bool, device=states.device).tril()
        own = causal[None] & real[:, None, :].bool()
        allowed = torch.cat([before[:, None, :].expand(-1, n, -1), own], dim=2)
        with model.padding_of(real):
            return run_blocks(
                model,
                states,
                first,
                last,
                additive(allowed[:, None], model.dtype),
                self._positions()[rows, :n],
                past,
            )

    def _positions(self) -> Int[Tensor, "R n"]:
        n = self.rest.input_ids.shape[1]
        return self.offset[:, None] + torch.arange(n, device=self.offset.device)


def take_apart(
    tokens: TokenBatch,
    group: Int[Tensor, " R"],
    limit: Int[Tensor, " R"],
    states: Float[Tensor, "R n d"] | None = None,
) -> Beginnings:
    """Find what rows of one group begin with alike.

    Args:
        tokens: right-padded rows.
        group: which rows may share a beginning; numbers from 0.
        limit: a beginning ends before this column of each row.
        states: if given, beginnings end before the first token whose states differ between rows of a group by more than
            rounding: where hooks that read whole rows were at work, equal tokens are not enough. Nothing is shared in half
            precision then, whose rounding cannot be told from what a hook does.
    """
    ids, n = tokens.input_ids, tokens.input_ids.shape[1]
    groups = int(group.max()) + 1
    first = _first_rows(group, groups)[group]  # of each row's group
    same = ids == ids[first]
    same &= torch.arange(n, device=ids.device) < limit[:, None]
    if states is not None:
        other, precise = states[first], states.dtype in (torch.float32, torch.float64)
        tolerance = 256 * torch.finfo(states.dtype).eps * other.norm(dim=2)
        same &= ((states - other).norm(dim=2) <= tolerance) & precise
    length = same.long().cumprod(dim=1).sum(dim=1)  # with the first row of the group
    shortest = torch.full((groups,), n, device=ids.device).scatter_reduce(0, group, length, "amin")
    members = torch.bincount(group, minlength=groups)
    saved = int(((members - 1) * shortest).sum())
    if saved * WORTH < int(tokens.attention_mask.sum()):
        shortest = torch.zeros_like(shortest)
    offset, longest = shortest[group], int(shortest.max())
    beginning = ids[_first_rows(group, groups), :longest]
    real = torch.arange(longest, device=ids.device) < shortest[:, None]
    width = int((tokens.lengths - offset).max())
    columns = offset[:, None] + torch.arange(width, device=ids.device)
    inside = columns < n
    rest = TokenBatch(
        ids.gather(1, columns.clamp(max=n - 1)),
        tokens.attention_mask.gather(1, columns.clamp(max=n - 1)) * inside,
    )
    return Beginnings(TokenBatch(beginning, real.long()), group, offset, rest)


def _first_rows(group: Int[Tensor, " R"], groups: int) -> Int[Tensor, " C"]:
    """The first row of each group."""
    rows = torch.arange(len(group), device=group.device)
    return torch.full((groups,), len(group), device=group.device).scatter_reduce(0, group, rows, "amin")
