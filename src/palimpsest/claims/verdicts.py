"""What is judged, what was found, and the rule that makes a verdict of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsest.errors import PalimpsestError

AS_PRINTED = "as printed"  # the papers' own tables say so; nothing was measured
VERDICTS = ("holds", "fails", "undecided", "not run", AS_PRINTED)
MIN_RECORDS = 20  # per seed; with fewer a bootstrap interval says nothing, so the verdict stays undecided


class NotMeasuredError(PalimpsestError):
    """A test cannot be made from the runs at hand; the text says what is missing."""


@dataclass(frozen=True)
class ClaimTest:
    """One part of a claim on one model, with the data sets and metrics that are judged in it."""

    claim: str
    part: dict[str, Any]
    model: str
    datasets: tuple[str, ...]
    metrics: tuple[str, ...]
    hedged: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a test found. `value`, `low`, `high` and `per_seed` are of the statistic that must be positive."""

    test: ClaimTest
    verdict: str
    evidence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    per_seed: tuple[float, ...] = field(default_factory=tuple)
    n: int = 0


def over_seeds(per_seed: Sequence[float], exact: bool = False) -> tuple[str, float, float]:
    """Verdict, lowest and highest seed of a statistic without records to draw from; one seed alone decides nothing.

    exact: the statistic is of counts that nothing blurs: where it is zero in every seed there is no difference, and "more" fails.
    """
    low, high = min(per_seed), max(per_seed)
    if len(per_seed) < 2:
        return "undecided", low, high
    if exact and low == high == 0:
        return "fails", low, high
    return decide(per_seed, low, high), low, high


def decide(per_seed: Sequence[float], low: float, high: float, hedged: bool = False) -> str:
    """holds: positive in every seed and the interval above zero; fails: negative in every seed and the interval below."""
    if low > 0 and min(per_seed) > 0:
        return "holds"
    if high < 0 and max(per_seed) < 0 and not hedged:
        return "fails"
    return "undecided"


def verdict_of(outcomes: Sequence[Outcome]) -> str:
    """The verdict on a claim from those on its tests."""
    found = {outcome.verdict for outcome in outcomes}
    if found == {AS_PRINTED}:
        return AS_PRINTED
    if "fails" in found:
        return "fails"
    if "not run" in found or not found:
        return "not run"
    return "undecided" if "undecided" in found else "holds"


def outcome(
    test: ClaimTest,
    verdict: str,
    words: str,
    values: Sequence[float],
    low: float,
    high: float,
    n: int,
    drawn: bool = True,
) -> Outcome:
    """The outcome of a statistic with one value per seed, in words: `words`, its mean, the interval and the seeds.

    `drawn`: `low` and `high` are of a bootstrap over records; otherwise they are the lowest and highest seed.
    """
    above, mean = float(test.part.get("above", 0)), sum(values) / len(values)
    name = f"margin over {above:+g}:" if above else "statistic"
    positive = f"{sum(value > 0 for value in values)} of {len(values)} seeds positive"
    interval = f"[{low:+.3g}, {high:+.3g}]" if drawn else f"(seeds {low:+.3g} to {high:+.3g})"
    text = f"{words}; {name} {mean:+.3g} {interval}, {positive}"
    return Outcome(test, verdict, text, mean, low, high, tuple(values), n)
