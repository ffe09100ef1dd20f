"""Many short tails in few equally long lanes, so that next to no padding is computed.

The search of target vectors runs the upper blocks again and again on the tokens from each subject on: tails of 1 to some 10
tokens. Padded to the longest, a third of them would be padding. Here several tails share a lane, each seeing only itself
and its own kept prefix (a block-diagonal mask), at its own positions: the same numbers, fewer of them. What precedes the
subjects is mostly the same contexts in all edits' rows, and run once for all (`beginnings.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.editors.shared.beginnings import Beginnings, States, take_apart
from palimpsest.editors.shared.packing import Row, pack_rows
from palimpsest.editors.shared.target_sequences import TargetSequences
from palimpsest.models.hooks import first_hooked
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import (
    KeyValueCache,
    Noted,
    additive,
    causal_mask,
    row_positions,
    run_blocks,
)


@dataclass(frozen=True)
class LaneSource:
    """What lanes are packed from: rows after the edited block, and the upper blocks' keys and values before the subjects.

    Attributes:
        apart: the rows' beginnings and rests; hidden: the rests' states after the edited block.
        beginnings, rests: keys and values of the upper blocks, of the beginnings and of the rests' tokens before the subjects.
        first: the lowest upper block.
    """

    rows: TargetSequences
    apart: Beginnings
    hidden: Float[Tensor, "R n d"]
    beginnings: Noted
    rests: Noted
    first: int

    def at(self, rows: Int[Tensor, " m"], columns: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """States after the edited block at places of the rows, none of them in a beginning."""
        return self.hidden[rows, columns - self.apart.offset[rows]]


@dataclass(frozen=True)
class Lanes:
    """The tails of some edits (numbered 0..a-1), packed.

    Attributes:
        tail: outputs of the edited block from the subjects' last tokens on; positions, mask: for `run_blocks`.
        prefix: kept keys and values; empty when nothing precedes any subject.
        at: (lane, slot, edit) of every row's subject, where delta is added.
        read: (lane, slot, edit) of every place where a target token is predicted; read_token, read_weight: which, and
            with what weight in the loss.
        kl: (lane, slot) of the subject in every edit's KL row.
    """

    tail: Float[Tensor, "lanes slots d"]
    positions: Int[Tensor, "lanes slots"]
    mask: Float[Tensor, "lanes 1 slots keys"]
    prefix: KeyValueCache
    first: int
    at: tuple[Tensor, Tensor, Tensor]
    read: tuple[Tensor, Tensor, Tensor]
    read_token: Int[Tensor, " m"]
    read_weight: Float[Tensor, " m"]
    kl: tuple[Tensor, Tensor]


@torch.no_grad()
def run_once(model: LanguageModel, rows: TargetSequences, layer: int) -> LaneSource:
    """Run the lower blocks on all tokens, and the upper ones on what precedes the subjects.

    From the first block with a hook, which may read whole rows, the lower blocks are given whole rows.
    """
    tokens, below = rows.tokens, min(first_hooked(model), layer + 1)
    apart = take_apart(tokens, rows.context, rows.subject)
    reached = apart.embed(model)
    if below:
        beginnings, kept = apart.run_beginnings(model, reached.beginnings, 0, below - 1)
        reached = States(beginnings, apart.run_rest(model, reached.rest, 0, below - 1, kept))
    if below <= layer:
        mask, states = causal_mask(tokens.attention_mask, model.dtype), apart.join(reached)
        with model.padding_of(tokens.attention_mask):
            states = run_blocks(model, states, below, layer, mask, row_positions(tokens))
        apart = take_apart(tokens, rows.context, rows.subject, states)
        reached = apart.split(states)
    begun: Noted = {}
    rests: Noted = {}
    if layer + 1 < model.n_blocks:
        last, before = model.n_blocks - 1, int((rows.subject - apart.offset).max())
        _, begun = apart.run_beginnings(model, reached.beginnings, layer + 1, last)
        if before:
            apart.run_rest(model, reached.rest[:, :before], layer + 1, last, begun, noted=rests)
    return LaneSource(rows, apart, reached.rest, begun, rests, layer + 1)


@torch.no_grad()
def pack(model: LanguageModel, source: LaneSource, edits: Int[Tensor, " a"]) -> Lanes:
    """Lanes of the given edits, which are numbered anew in the given order."""
    rows, device = source.rows, source.hidden.device
    number = torch.full((rows.n_edits,), -1, device=device)
    number[edits] = torch.arange(len(edits), device=device)
    keep = torch.nonzero(number[rows.edit] >= 0)[:, 0]
    apart, tails = source.apart, (rows.tokens.lengths - rows.subject)[keep]
    own, group = (rows.subject - apart.offset)[keep], apart.group[keep]
    lengths = apart.tokens.lengths
    wanted = [Row(*row) for row in zip(tails.tolist(), own.tolist(), group.tolist(), strict=True)]
    packing = pack_rows(model, wanted, lengths.tolist())
    places = torch.full((3, len(rows.edit)), -1, dtype=torch.long)  # rows that are not packed keep -1
    places[:, keep.cpu()] = torch.tensor(packing.rows).T
    lane, slot, prefix_slot = places.to(device)

    lanes, slots = len(packing.filled), packing.slots
    row, step = _unroll(keep, tails)
    where = (lane[row], slot[row] + step)
    owner = torch.full((lanes, slots), -1, device=device).index_put(where, row)
    owners_group = torch.full((lanes, slots), -1, device=device).index_put(where, apart.group[row])
    tail = source.hidden.new_zeros(lanes, slots, source.hidden.shape[2]).index_put(
        where, source.at(row, rows.subject[row] + step)
    )
    positions = torch.zeros((lanes, slots), dtype=torch.long, device=device).index_put(
        where, rows.subject[row] + step
    )
    prefix, of_row, of_group = _prefix(
        source,
        (keep, own, lane[keep], prefix_slot[keep]),
        torch.tensor(packing.beginnings, device=device),
        (lanes, max(packing.prefixes)),
    )
    order = torch.arange(slots, device=device)
    # a lane's empty slots look at themselves, so that no row of the softmax is empty
    itself = (owner[:, None, :] == owner[:, :, None]) & (order[None, :] <= order[:, None])[None]
    kept = (of_row[:, None, :] == owner[:, :, None]) | (of_group[:, None, :] == owners_group[:, :, None])
    allowed = torch.cat([kept, itself], dim=2)

    chosen = number[rows.edit[rows.read_row]] >= 0
    read_row, column = rows.read_row[chosen], rows.read_column[chosen]
    kl = rows.kl[edits]
    return Lanes(
        tail=tail,
        positions=positions,
        mask=additive(allowed[:, None], model.dtype),
        prefix=prefix,
        first=source.first,
        at=(lane[keep], slot[keep], number[rows.edit[keep]]),
        read=(lane[read_row], slot[read_row] + column - rows.subject[read_row], number[rows.edit[read_row]]),
        read_token=rows.read_token[chosen],
        read_weight=rows.read_weight[chosen],
        kl=(lane[kl], slot[kl]),
    )


def _unroll(rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Each row repeated `length` times, and 0..length-1 beside it."""
    row = rows.repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return row, torch.arange(len(row), device=rows.device) - starts.repeat_interleave(lengths)


def _prefix(
    source: LaneSource,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    beginnings: Int[Tensor, "k 3"],
    size: tuple[int, int],
) -> tuple[KeyValueCache, Tensor, Tensor]:
    """Kept keys and values in lanes [lanes, heads, p, width], and whose they are.

    Args:
        rows: packed rows: their numbers, tokens of their own before the subject, lanes, first prefix slots.
        beginnings: of those that lie in lanes: lane, group, first prefix slot.
        size: lanes, and prefix slots of each.

    Returns:
        the prefix; the row and the group that each prefix slot belongs to [lanes, p]; -2: none.
    """
    names, own, lane, first = rows
    nobody = torch.full(size, -2, device=names.device)
    kept = source.rests or source.beginnings
    if not kept or not size[1]:
        return KeyValueCache({}), nobody[:, :0], nobody[:, :0]
    number, position = _unroll(torch.arange(len(names), device=names.device), own)
    rests_at, rest = (lane[number], first[number] + position), (names[number], position)
    of_row = nobody.index_put(rests_at, names[number])
    place, step = _unroll(
        torch.arange(len(beginnings), device=names.device), source.apart.tokens.lengths[beginnings[:, 1]]
    )
    lane_of, group, start = beginnings[place].unbind(dim=1)
    begun_at, begun = (lane_of, start + step), (group, step)
    of_group = nobody.index_put(begun_at, group)

    def packed(layer: int, which: int) -> Tensor:
        like = kept[layer][which]
        moved = like.new_zeros(*size, like.shape[1], like.shape[3])
        if len(number):
            moved[rests_at] = source.rests[layer][which][rest[0], :, rest[1]]
        if len(place):
            moved[begun_at] = source.beginnings[layer][which][begun[0], :, begun[1]]
        return moved.transpose(1, 2)

    return KeyValueCache({layer: (packed(layer, 0), packed(layer, 1)) for layer in kept}), of_row, of_group
