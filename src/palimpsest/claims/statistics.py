"""The statistics that judge claims: each turns means over records into a number that must be positive.

Every statistic is computed from *cells*, the mean of one metric over the records of one run at one
snapshot. Within a seed all cells share the resampled records, so methods judged on the same records are
compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """Where a mean comes from: the term (or place in a sweep), metric, data set and number of edits."""

    term: int
    metric: str
    dataset: str
    n_edits: int


@dataclass(frozen=True)
class Layout:
    """The cells in column order, the part of the claim, and each term's coefficient."""

    cells: Sequence[Cell]
    part: Mapping[str, Any]
    times: Sequence[float]

    def columns(self, term: int, metric: str | None = None, dataset: str | None = None) -> list[int]:
        """Columns of one term, by rising number of edits."""
        found = [
            (cell.n_edits, column)
            for column, cell in enumerate(self.cells)
            if cell.term == term and metric in (None, cell.metric) and dataset in (None, cell.dataset)
        ]
        return [column for _, column in sorted(found)]

    def last(self, term: int, metric: str | None = None, dataset: str | None = None) -> int:
        """Column of the last snapshot of one term."""
        return self.columns(term, metric, dataset)[-1]


Statistic = Callable[[Floats, Layout], Floats]


def linear(means: Floats, layout: Layout) -> Floats:
    """Sum of coefficient x mean at the last snapshot, minus `above`. means: [..., cells] -> [...]."""
    total = sum(times * means[..., layout.last(term)] for term, times in enumerate(layout.times))
    return np.asarray(total - float(layout.part.get("above", 0.0)))


def majority(means: Floats, layout: Layout) -> Floats:
    """Of all metric and data set pairs, the one that must be positive for more than half to be so."""
    pairs = sorted({(cell.metric, cell.dataset) for cell in layout.cells})
    values = np.stack(
        [
            sum(times * means[..., layout.last(term, *pair)] for term, times in enumerate(layout.times))
            for pair in pairs
        ],
        axis=-1,
    )
    needed = len(pairs) // 2 + 1
    return np.asarray(np.sort(values, axis=-1)[..., len(pairs) - needed])


def _series(means: Floats, layout: Layout) -> tuple[Floats, Floats]:
    """Numbers of edits [s], and the terms' sum at each snapshot that all terms have [..., s]."""
    per_term = [
        {layout.cells[column].n_edits: column for column in layout.columns(term)}
        for term in range(len(layout.times))
    ]
    shared = sorted(set.intersection(*(set(columns) for columns in per_term)))
    values = np.stack(
        [
            sum(times * means[..., per_term[term][n_edits]] for term, times in enumerate(layout.times))
            for n_edits in shared
        ],
        axis=-1,
    )
    return np.asarray(shared, dtype=np.float64), values


def slope(means: Floats, layout: Layout) -> Floats:
    """Least-squares slope over the snapshots, per 100 edits, minus `above`."""
    n_edits, values = _series(means, layout)
    centred = (n_edits - n_edits.mean()) / 100
    return np.asarray(values @ centred / (centred @ centred) - float(layout.part.get("above", 0.0)))


def level(means: Floats, layout: Layout) -> Floats:
    """`below` minus the absolute change from the share `from` of the stream to its end."""
    n_edits, values = _series(means, layout)
    start = int(np.argmax(n_edits >= float(layout.part["from"]) * n_edits[-1] - 1e-9))
    return np.asarray(float(layout.part["below"]) - np.abs(values[..., -1] - values[..., start]))


def early_drop(means: Floats, layout: Layout) -> Floats:
    """The first snapshot minus the one at the share `to` of the stream, minus `above`."""
    n_edits, values = _series(means, layout)
    end = int(np.argmax(n_edits >= float(layout.part["to"]) * n_edits[-1] - 1e-9))
    return np.asarray(values[..., 0] - values[..., end] - float(layout.part.get("above", 0.0)))


def _ranges(means: Floats, layout: Layout) -> Floats:
    """Range over the snapshots of each term [..., terms]."""
    terms = range(len(layout.times))
    return np.stack([np.ptp(means[..., layout.columns(term)], axis=-1) for term in terms], axis=-1)


def steadiest(means: Floats, layout: Layout) -> Floats:
    """Smallest range over the snapshots among the other terms, minus the range of the first one."""
    ranges = _ranges(means, layout)
    return np.asarray(ranges[..., 1:].min(axis=-1) - ranges[..., 0])


def shown(name: str, means: Floats, layout: Layout) -> Floats:
    """The numbers that a test's line shows: one for each term, means or what the statistic `name` compares [terms]."""
    return SHOWN.get(name, _along)(means, layout)


def _along(means: Floats, layout: Layout) -> Floats:
    """Last snapshots in the order of a sweep [..., values]."""
    return np.stack([means[..., layout.last(term)] for term in range(len(layout.times))], axis=-1)


def interior_maximum(means: Floats, layout: Layout) -> Floats:
    """Best inner value of the sweep minus the better of its two ends."""
    values = _along(means, layout)
    return np.asarray(values[..., 1:-1].max(axis=-1) - np.maximum(values[..., 0], values[..., -1]))


def sweep_lowest(means: Floats, layout: Layout) -> Floats:
    """The lowest of the other values of the sweep minus its first one: positive where the first is the worst of all."""
    values = _along(means, layout)
    return np.asarray(values[..., 1:].min(axis=-1) - values[..., 0])


def sweep_spread(means: Floats, layout: Layout) -> Floats:
    """`below` minus the range over the sweep. Resampling widens a range, so this errs against the claim."""
    return np.asarray(float(layout.part["below"]) - np.ptp(_along(means, layout), axis=-1))


def sweep_decline(means: Floats, layout: Layout) -> Floats:
    """The smaller of `rise` minus the largest rise, and `drop` minus the fall from first to last."""
    values = _along(means, layout)
    rises = np.diff(values, axis=-1).max(axis=-1)
    fall = values[..., 0] - values[..., -1]
    return np.asarray(np.minimum(float(layout.part["rise"]) - rises, float(layout.part["drop"]) - fall))


STATISTICS: dict[str, Statistic] = {
    "linear": linear,
    "majority": majority,
    "slope": slope,
    "level": level,
    "early_drop": early_drop,
    "steadiest": steadiest,
    "sweep_linear": linear,
    "interior_maximum": interior_maximum,
    "sweep_lowest": sweep_lowest,
    "sweep_spread": sweep_spread,
    "sweep_decline": sweep_decline,
}
# What a test's line shows of each term, where it is not the mean at the last snapshot.
SHOWN: dict[str, Statistic] = {"steadiest": _ranges}
WHOLE_SWEEP = ("interior_maximum", "sweep_lowest", "sweep_spread", "sweep_decline")


def outlier(values: Floats) -> float:
    """Median z at the subject minus the 95th percentile of the others' largest z. values: [records, 2]."""
    return float(np.median(values[:, 0]) - np.quantile(values[:, 1], 0.95))
