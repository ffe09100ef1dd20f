"""Many short tails in few equally long lanes, so that next to no padding is computed.

The search of target vectors runs the upper blocks again and again on the tokens from each subject on: tails of 1 to some 10
tokens. Padded to the longest, a third of them would be padding. Here several tails share a lane, each seeing only itself
and its own kept prefix (a block-diagonal mask), at its own positions: the same numbers, fewer of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.editors.shared.target_sequences import TargetSequences
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import (
    Prefix,
    Recorder,
    additive,
    causal_mask,
    embed,
    row_positions,
    run_blocks,
)


@dataclass(frozen=True)
class Source:
    """What lanes are packed from: all rows after the edited block, and the upper blocks' keys and values before the subjects."""

    rows: TargetSequences
    hidden: Float[Tensor, "R n d"]
    kept: dict[int, tuple[Tensor, Tensor]]
    first: int


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
    prefix: Prefix
    first: int
    at: tuple[Tensor, Tensor, Tensor]
    read: tuple[Tensor, Tensor, Tensor]
    read_token: Int[Tensor, " m"]
    read_weight: Float[Tensor, " m"]
    kl: tuple[Tensor, Tensor]


@torch.no_grad()
def run_once(model: LanguageModel, rows: TargetSequences, layer: int) -> Source:
    """Run the lower blocks on all tokens, and the upper ones on what precedes the subjects."""
    tokens = rows.tokens
    positions = row_positions(tokens)
    mask = causal_mask(tokens.attention_mask, model.dtype)
    with model.padding_of(tokens.attention_mask):
        hidden = run_blocks(model, embed(model, tokens), 0, layer, mask, positions)
    before = int(rows.subject.max())
    recorder = Recorder()
    if before and layer + 1 < model.n_blocks:
        earlier, square = hidden[:, :before], mask[:, :, :before, :before]
        run_blocks(model, earlier, layer + 1, model.n_blocks - 1, square, positions[:, :before], recorder)
    return Source(rows, hidden, recorder.kept, layer + 1)


@torch.no_grad()
def pack(model: LanguageModel, source: Source, edits: Int[Tensor, " a"]) -> Lanes:
    """Lanes of the given edits, which are numbered anew in the given order."""
    rows, device = source.rows, source.hidden.device
    number = torch.full((rows.n_edits,), -1, device=device)
    number[edits] = torch.arange(len(edits), device=device)
    keep = torch.nonzero(number[rows.edit] >= 0)[:, 0]
    tails, prefixes = (rows.tokens.lengths - rows.subject)[keep], rows.subject[keep]
    lane, slot, prefix_slot = _places(tails.tolist(), prefixes.tolist(), len(rows.edit), keep, device)

    lanes, slots = int(lane.max()) + 1, int(tails.max())
    row, step = _unroll(keep, tails)
    where = (lane[row], slot[row] + step)
    owner = torch.full((lanes, slots), -1, device=device).index_put(where, row)
    tail = source.hidden.new_zeros(lanes, slots, source.hidden.shape[2]).index_put(
        where, source.hidden[row, rows.subject[row] + step]
    )
    positions = torch.zeros((lanes, slots), dtype=torch.long, device=device).index_put(
        where, rows.subject[row] + step
    )
    prefix, prefix_owner = _prefix(source, keep, prefixes, lane, prefix_slot, lanes)
    order = torch.arange(slots, device=device)
    # a lane's empty slots look at themselves, so that no row of the softmax is empty
    own = (owner[:, None, :] == owner[:, :, None]) & (order[None, :] <= order[:, None])[None]
    allowed = torch.cat([prefix_owner[:, None, :] == owner[:, :, None], own], dim=2)

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


def _places(
    tails: list[int], prefixes: list[int], n_rows: int, keep: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Best fit, longest first: (lane, first slot, first prefix slot) of each row; -1 for rows that are not packed."""
    capacity = max(tails)
    room: dict[int, list[int]] = defaultdict(list)  # free slots -> lanes
    free: list[int] = []
    prefix_used: list[int] = []
    places = torch.full((3, n_rows), -1, dtype=torch.long)
    names = keep.tolist()
    for i in sorted(range(len(tails)), key=lambda i: -tails[i]):
        fitting = next((size for size in range(tails[i], capacity + 1) if room[size]), None)
        if fitting is None:
            lane = len(free)
            free.append(capacity)
            prefix_used.append(0)
        else:
            lane = room[fitting].pop()
        places[:, names[i]] = torch.tensor([lane, capacity - free[lane], prefix_used[lane]])
        free[lane] -= tails[i]
        prefix_used[lane] += prefixes[i]
        room[free[lane]].append(lane)
    lane_of, slot_of, prefix_of = places.to(device)
    return lane_of, slot_of, prefix_of


def _unroll(rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Each row repeated `length` times, and 0..length-1 beside it."""
    row = rows.repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return row, torch.arange(len(row), device=rows.device) - starts.repeat_interleave(lengths)


def _prefix(
    source: Source, keep: Tensor, lengths: Tensor, lane: Tensor, first_slot: Tensor, lanes: int
) -> tuple[Prefix, Tensor]:
    """Kept keys and values in lanes [lanes, heads, p, width], and the row each prefix slot belongs to [lanes, p] (-2: none)."""
    row, position = _unroll(keep, lengths)
    if not source.kept or not len(row):
        return Prefix({}), torch.full((lanes, 0), -2, device=keep.device)
    slot = first_slot[row] + position
    width = int(slot.max()) + 1
    owner = torch.full((lanes, width), -2, device=keep.device).index_put((lane[row], slot), row)

    def packed(kept: Tensor) -> Tensor:
        moved = kept.new_zeros(lanes, width, kept.shape[1], kept.shape[3])
        moved[lane[row], slot] = kept[row, :, position]
        return moved.transpose(1, 2)

    return Prefix(
        {layer: (packed(keys), packed(values)) for layer, (keys, values) in source.kept.items()}
    ), owner
