"""The nearest of many keys, exactly: a matrix product makes a shortlist, exact distances decide.

|q - k|^2 = |k|^2 - 2 q.k + |q|^2 takes one matrix product, but rounds: on equal points of large norm it errs by .09 and
more. Its rounding error has a bound, so every key that could be the nearest one stays on the shortlist, and the
distances of those few are computed from the differences in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from palimpsest.errors import PalimpsestError, SettingsError

CHUNK = (
    4096  # pairs whose differences are held at a time; few pairs pass the shortlist, unless keys are alike
)


def squared_norms(vectors: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """|k|^2 of each row."""
    return vectors.square().sum(dim=1)


def nearest(
    keys: Float[Tensor, "n d"], squared: Float[Tensor, " n"] | None, queries: Float[Tensor, "b d"]
) -> tuple[Int[Tensor, " b"], Float64[Tensor, " b"]]:
    """Index of the nearest key of each query, and its Euclidean distance; of equally near keys the oldest.

    Args:
        keys: at least one.
        squared: |k|^2, from `squared_norms`; None = no shortlist: the distance of every key is computed.

    Returns:
        (index [b], distance [b]); index -1 and distance infinity for a query that is not finite, which is near nothing.
    """
    if squared is None:
        rows, columns = torch.ones(len(queries), len(keys), device=keys.device).nonzero().unbind(dim=1)
    else:
        rows, columns = _shortlist(keys, squared, queries)
    distance = torch.cat(
        [
            (keys[some].double() - queries[of].double()).norm(dim=1)
            for some, of in zip(columns.split(CHUNK), rows.split(CHUNK), strict=True)
        ]
    )
    best = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=keys.device)
    best = best.scatter_reduce(0, rows, distance, "amin")
    winners = distance == best[rows]
    index = torch.full((len(queries),), len(keys), device=keys.device)
    index = index.scatter_reduce(0, rows[winners], columns[winners], "amin")
    near = best.isfinite()
    return torch.where(near, index, -1), best.where(near, torch.inf)


def _shortlist(
    keys: Float[Tensor, "n d"], squared: Float[Tensor, " n"], queries: Float[Tensor, "b d"]
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """(query, key) pairs, ordered, among which each query's nearest key is."""
    if len(queries) == 1:  # a matrix-vector product, which is what one prompt needs
        scores = torch.addmv(squared, keys, queries[0], alpha=-2)[None]
    else:
        scores = torch.addmm(squared[None], queries, keys.T, alpha=-2)
    # A dot product of d terms errs by at most about d u |q| |k| (Higham 2002, eq. 3.5), twice in a comparison.
    bound = (keys.shape[1] + 4) * _unit_roundoff(keys) * (queries.norm(dim=1) + squared.max().sqrt()) ** 2
    limit = scores.min(dim=1).values + 2 * bound
    pairs = (scores <= limit[:, None]).nonzero()
    return pairs[:, 0], pairs[:, 1]


def _unit_roundoff(keys: Tensor) -> float:
    """Of one multiplication; larger where products of float32 may be rounded to fewer digits on the way."""
    if keys.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return 2.0**-8
    return torch.finfo(keys.dtype).eps / 2


def neighbour_distance(states: Float[Tensor, "n d_in"]) -> float:
    """Median, over at least two states, of the distance to the nearest other one."""
    apart = torch.cdist(states.double(), states.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return float(apart.fill_diagonal_(torch.inf).min(dim=1).values.quantile(0.5))


def measure_neighbours(
    name: str,
    radius: float | None,
    edits: int,
    prompts: Sequence[str],
    states: Callable[[list[str]], Tensor],
    alike: str,
) -> tuple[float, int]:
    """What a radius is a share of: `neighbour_distance` of prompts, asked before the first edit.

    Args:
        name, radius, edits: of the editor: its name, the radius in use and how many edits it holds.
        prompts: may repeat; each counts once.
        states: gives the states [n, d] of n different prompts.
        alike: what to say where all states are the same; {} stands for the number of prompts.

    Returns:
        (the distance, the number of different prompts).

    Raises:
        PalimpsestError: there are edits already.
        SettingsError: fewer than two different prompts, or all of them have one state.
    """
    if edits:
        raise PalimpsestError(
            f"{name} has made edits with radius {radius}; calibrate before the first, or `remove` first"
        )
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        raise SettingsError(
            f"{name}: radius_ratio needs at least two different prompts that are not edited, to measure their distances, "
            f"{len(different)} given. Give the edits locality prompts, or set `radius` in the place of `radius_ratio`"
        )
    apart = neighbour_distance(states(different))
    if apart <= 0:
        raise SettingsError(alike.format(len(different)))
    return apart, len(different)
