"""Which model is edited on which data set, and which figures show the runs of several experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sized(sizes: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes with what `pairs` and the protocol imply: the models and data sets in them, and edits made one by one."""
    pairs = sizes.get("pairs") or {}
    implied = {"models": list(pairs), "datasets": list(dict.fromkeys(pairs.values()))} if pairs else {}
    return {**implied, **({"batch_size": 1} if entry.get("protocol") == "lifelong" else {}), **sizes}


def belongs(
    scale: Mapping[str, Any], sizes: Mapping[str, Any], model: str, dataset: str, tasks: list[str] | None
) -> bool:
    """Whether a model is edited on a data set: `pairs` says so, and the method suits the task."""
    if tasks and scale["datasets"][dataset].get("task") not in tasks:
        return False
    return bool((sizes.get("pairs") or {}).get(model, dataset) == dataset)


def is_stream(scale: Mapping[str, Any], dataset: str) -> bool:
    """Whether a data set is a stream of a lifelong task: no gate and no list of known facts belong to it."""
    return bool(scale["datasets"][dataset].get("task"))


def join_figures(figures: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Give figures that show several experiments (`with_runs_of`) the runs, models and data sets of all of them."""
    own = {name: dict(figure.runs) for name, figure in figures.items()}
    shown = {
        name: {key: list(figure.spec[key]) for key in ("models", "datasets")}
        for name, figure in figures.items()
    }
    for name, figure in figures.items():
        for other in entries[name].get("with_runs_of") or ():
            figure.runs |= own.get(other, {})
            for key, values in shown.get(other, {}).items():
                figure.spec[key] = list(dict.fromkeys([*figure.spec[key], *values]))
