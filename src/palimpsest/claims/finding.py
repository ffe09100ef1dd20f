"""Which runs a test is about: of a method, at a model and a data set, in the first of its experiments that has any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from palimpsest.claims.verdicts import ClaimTest, NotMeasuredError
from palimpsest.figures.read import Run

AGAINST = "against"  # the method of a term that stands for each of the part's `against`


def method_of(test: ClaimTest, entry: Mapping[str, Any], methods: Mapping[str, Any]) -> dict[str, Any]:
    """The method a term names, or the baseline that is its test's turn."""
    method: dict[str, Any] = methods[test.part[AGAINST] if entry["method"] == AGAINST else entry["method"]]
    return method


def find_runs(
    test: ClaimTest,
    dataset: str,
    title: str,
    runs: Mapping[str, Sequence[Run]],
    fits: Callable[[Run], bool],
    experiments: Sequence[str] | None = None,
    words: str = "",
) -> list[Run]:
    """Runs of the test's model on a data set that fit, from the first experiment (of the part's) that has any.

    Args:
        title, words: of the method, and what else was looked for: for messages.

    Raises:
        NotMeasuredError: there are none; or their model failed the gate that their editor needs: how such an editor fares
            there says nothing about the method.
    """
    experiments = experiments or test.part["experiments"]
    for experiment in experiments:
        place = (test.model, dataset)
        here = [run for run in runs.get(experiment, ()) if (run.spec["model"], run.spec["dataset"]) == place]
        found = [run for run in here if fits(run)]
        if found and all(run.ill_suited for run in found):
            raise NotMeasuredError(
                f"{title} writes at the subject, and {test.model} failed the gate on {dataset}: {found[0].ill_suited}"
            )
        if found:
            return found
    raise NotMeasuredError(
        f"{title}{words} on {test.model}, {dataset}: no finished run in {' or '.join(experiments)}"
    )


def by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    """Runs by their seeds; of several with one seed the first."""
    return {run.seed: run for run in reversed(runs)}


def common_seeds(chosen: Iterable[Mapping[int, Run]]) -> list[int]:
    """Seeds that the runs of all terms have.

    Raises:
        NotMeasuredError: there are none.
    """
    seeds = sorted(set.intersection(*(set(own) for own in chosen)))
    if not seeds:
        raise NotMeasuredError("no seed is common to all methods of the test")
    return seeds
