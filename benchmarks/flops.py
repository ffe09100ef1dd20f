"""Operations of the work that is timed, from formulas: matrix products only, a multiplication and an addition are two.

Per token (spec comeba_hk 8.1): a block 2 (4 d^2 + 2 d d_k), its attention 4 d for each token that is looked at, the output
head 2 d V. The weights are frozen, so a backward pass costs as much as the forward pass of what it goes through, and
twice as much for attention, whose both factors change. `tests/unit/test_benchmarks.py` holds these to a counter.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """d, d_k, V, number of blocks, and the last edited one (from 0)."""

    width: int
    inner: int
    vocabulary: int
    blocks: int
    layer: int

    @property
    def block(self) -> float:
        """Operations of a block for one token, without attention."""
        return 2.0 * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def head(self) -> float:
        """Operations of the output head for one token."""
        return 2.0 * self.width * self.vocabulary

    @property
    def upper(self) -> int:
        """Blocks above the edited one."""
        return self.blocks - 1 - self.layer

    def attention(self, tokens: float, seen: float) -> float:
        """Of one block, when `tokens` look at `seen` tokens each."""
        return 4.0 * self.width * tokens * seen


def sizes(shape: dict, blocks: int, layer: int) -> Sizes:
    """Of a shape with so many blocks."""
    return Sizes(shape["width"], shape["inner"], shape["vocabulary"], blocks, layer)


def search_plain(size: Sizes, rows: int, length: int, steps: int) -> float:
    """Target vector of one edit: all padded rows through all blocks and the whole head, backwards down to the edited block."""
    tokens = rows * length
    forward = size.blocks * (tokens * size.block + size.attention(tokens, length)) + tokens * size.head
    back = size.upper * (tokens * size.block + 2 * size.attention(tokens, length)) + tokens * size.head
    return steps * forward + (steps - 1) * back


def search_fast(size: Sizes, counts: SearchCounts, steps: int) -> float:
    """Target vectors of all edits that `counts` counts, as the editors search them."""
    once = 0.0
    for blocks, passes in ((size.layer + 1, counts.lower), (size.upper, counts.upper)):
        once += blocks * sum(tokens * size.block + size.attention(tokens, seen) for tokens, seen in passes)
    products = size.upper * counts.tails * size.block + counts.places * size.head
    attention = size.upper * size.attention(counts.tails, counts.seen)
    return once + steps * (products + attention) + (steps - 1) * (products + 2 * attention)


@dataclass(frozen=True)
class SearchCounts:
    """What the fast search runs over, padding included.

    Attributes:
        lower, upper: of the passes that are made once, through the lower and upper blocks: tokens, and keys that each is
            compared with.
        tails, seen: lane slots, and how many keys each is compared with.
        places: logits that are read.
    """

    lower: tuple[tuple[int, int], ...]
    upper: tuple[tuple[int, int], ...]
    tails: int
    seen: int
    places: int


def count_search(model, batch, contexts, layer: int, at_once: int = 64) -> SearchCounts:
    """Counts of the passes that a batch of at most `at_once` edits shares, scaled to the whole batch."""
    import torch

    from palimpsest.editors.shared.lanes import pack, run_once
    from palimpsest.editors.shared.target_sequences import build_sequences

    some = batch[:at_once]
    rows = build_sequences(model, some, contexts)
    source = run_once(model, rows, layer)
    lanes = pack(model, source, torch.arange(len(some), device=model.device))
    scale = len(batch) / len(some)
    shared, groups = source.apart.shared, len(source.apart.tokens.input_ids)
    number, width = source.apart.rest.input_ids.shape
    before = int((rows.subject - source.apart.offset).max())

    def passes(columns: int) -> tuple[tuple[int, int], ...]:
        return (
            (round(scale * groups * shared), shared),
            (round(scale * number * columns), shared + columns),
        )

    return SearchCounts(
        lower=passes(width),
        upper=passes(before),
        tails=round(scale * lanes.positions.numel()),
        seen=lanes.mask.shape[3],
        places=round(scale * (len(rows.read_row) + len(rows.kl))),
    )


def tuning_plain(size: Sizes, tokens: int, length: int, steps: int) -> float:
    """Steps of FT or GRACE on rows of so many tokens: the whole network and head, backwards down to the edited block."""
    forward = size.blocks * (tokens * size.block + size.attention(tokens, length)) + tokens * size.head
    above = size.upper * (tokens * size.block + 2 * size.attention(tokens, length)) + tokens * size.head
    return steps * (forward + above)


def tuning_fast(size: Sizes, tokens: int, length: int, places: int, steps: int) -> float:
    """The same with everything below the edited map run once, and only the logits that are read."""
    once = size.layer * (tokens * size.block + size.attention(tokens, length))
    above = size.upper * (2 * tokens * size.block + 3 * size.attention(tokens, length))
    return once + steps * (above + 2 * places * size.head)


def solve(width: int, batch: int, solver: str) -> float:
    """Of one layer and batch, in float64 (Woodbury: on a factor that is there)."""
    if solver == "lu":
        return 2 / 3 * width**3 + 2.0 * width**2 * batch * 2
    if solver == "cholesky":
        return width**3 / 3 + 2.0 * width**2 * batch * 2
    return 4.0 * width**2 * batch + 4.0 * width * batch**2  # two triangular solves, and the guard


def covariance_plain(size: Sizes, layers: tuple[int, ...], tokens: int, length: int) -> float:
    """One pass for each layer, up to that layer, and whole products."""
    each = [
        (layer + 1) * (tokens * size.block + size.attention(tokens, length)) + 2.0 * tokens * size.inner**2
        for layer in layers
    ]
    return sum(each)


def covariance_fast(
    size: Sizes, layers: tuple[int, ...], tokens: int, length: int, block: int = 512
) -> float:
    """One pass for all layers that ends in the last, and the lower blocks of the products."""
    parts = -(-size.inner // block)
    half = (parts + 1) / (2 * parts)
    once = (max(layers) + 1) * (tokens * size.block + size.attention(tokens, length))
    return once + half * len(layers) * 2.0 * tokens * size.inner**2
