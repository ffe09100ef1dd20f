"""Bootstrap over records: how sure are we of a mean, or of what follows from several.

Records are resampled *jointly* for all quantities and seeds. A difference of two methods judged on the same records is a
paired difference, and a record that several seeds drew is in a sample for all of them or for none: seeds that share records
are not independent. Nothing here reads files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
DRAWS = 1000
LEVEL = 0.95
_STREAM = 20240308  # every interval starts from the same stream: the same rows give the same figure


class Interval(NamedTuple):
    """A mean over seeds, its bootstrap interval over records, and the spread of the seeds' own values."""

    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    seeds: int
    n: int


def share_limits(share: float, n: int) -> tuple[float, float]:
    """95 % limits of a share seen in n trials (Wilson's score interval): a bootstrap of 40 times "yes" has none."""
    z = 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def mean_draws(values: Floats, draws: int = DRAWS, stream: int = _STREAM) -> Floats:
    """Bootstrap means of one sample, shape [draws].

    Token accuracies take few different values, and drawing how often each of them appears (a multinomial)
    is the same distribution as drawing records one by one, at a fraction of the cost.
    """
    unique, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(stream).multinomial(counts.sum(), counts / counts.sum(), size=draws)
    means: Floats = drawn @ unique / counts.sum()
    return means


def interval_over_seeds(
    per_seed: Mapping[int, pd.Series], draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Mean over seeds with a bootstrap interval over records.

    Args:
        per_seed: values of each seed, indexed by record; a record may be there more than once.
    """
    seeds = sorted(per_seed)
    means = [float(per_seed[seed].mean()) for seed in seeds]
    if len(seeds) == 1:
        drawn = mean_draws(per_seed[seeds[0]].to_numpy(), draws)
    else:
        joined = pd.concat([per_seed[seed] for seed in seeds])
        records, names = pd.factorize(joined.index)
        place = np.repeat(np.arange(len(seeds)), [len(per_seed[seed]) for seed in seeds])
        sums, counts = np.zeros((2, len(names), len(seeds)))
        np.add.at(sums, (records, place), joined.to_numpy(dtype=np.float64))
        np.add.at(counts, (records, place), 1.0)
        drawn = _ratio_draws(sums, counts, draws, _STREAM).mean(axis=1)
    low, high = limits(drawn, level)
    total = sum(len(per_seed[seed]) for seed in seeds)
    return Interval(float(np.mean(means)), low, high, min(means), max(means), len(seeds), total)


def limits(drawn: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of bootstrap draws; not-a-number draws (an empty cell) are left out."""
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def joint_means(cells: pd.DataFrame, draws: int = DRAWS, stream: int = _STREAM) -> tuple[Floats, Floats]:
    """Means of several cells over records, and their joint bootstrap draws.

    Args:
        cells: records x cells; NaN where a record is not in a cell. All cells share the resampled records.

    Returns:
        means [cells] and draws [draws, cells].
    """
    values = cells.to_numpy(dtype=np.float64)
    present = np.isfinite(values)
    filled, members = np.where(present, values, 0.0), present.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = filled.sum(axis=0) / members.sum(axis=0)
    return means, _ratio_draws(filled, members, draws, stream)


def joint_means_of_seeds(
    cells: Mapping[int, pd.DataFrame], draws: int = DRAWS, stream: int = _STREAM
) -> dict[int, tuple[Floats, Floats]]:
    """`joint_means` of every seed, with the same resampled records in all of them.

    Args:
        cells: of each seed a table as for `joint_means`; its index says which record a row is, each once.
    """
    seeds = sorted(cells)
    means, drawn = joint_means(pd.concat([cells[seed] for seed in seeds], axis=1), draws, stream)
    ends = np.cumsum([cells[seed].shape[1] for seed in seeds])[:-1]
    return dict(
        zip(seeds, zip(np.split(means, ends), np.split(drawn, ends, axis=1), strict=True), strict=True)
    )


def _ratio_draws(sums: Floats, counts: Floats, draws: int, stream: int) -> Floats:
    """Sum over count of resampled rows, [draws, columns]; sums, counts: [records, columns]. NaN where nothing was drawn."""
    generator = np.random.default_rng(stream)
    n, blocks = len(sums), []
    for start in range(0, draws, 200):  # in blocks: at the papers' sizes all draws at once would not fit
        size = min(200, draws - start)
        chosen = generator.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            blocks.append((weights @ sums) / (weights @ counts))
    return np.concatenate(blocks)


def statistic_draws(
    values: Floats, statistic: Callable[[Floats], float], draws: int = DRAWS, stream: int = _STREAM
) -> tuple[float, Floats]:
    """Any statistic of whole records (rows of `values`): its value and its bootstrap draws [draws]."""
    generator = np.random.default_rng(stream)
    n = len(values)
    drawn = np.array([statistic(values[generator.integers(n, size=n)]) for _ in range(draws)])
    return float(statistic(values)), drawn
