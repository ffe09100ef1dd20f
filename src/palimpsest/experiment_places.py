"""Which model is edited on which data set, and which figures show the runs of several experiments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from palimpsest.config import ConfigError


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


def edits_of(sizes: Mapping[str, Any], model: str) -> int:
    """Number of edits of a run: one for all models, or each model's own."""
    edits = sizes["edits"]
    return int(edits[model] if isinstance(edits, Mapping) else edits)


def edits_problems(name: str, sizes: Mapping[str, Any]) -> Iterator[str]:
    """Models whose number of edits an experiment does not give, when it gives each its own."""
    edits = sizes.get("edits")
    groups = [sizes, *(sizes.get("also") or ())]
    models = dict.fromkeys(model for group in groups for model in group.get("models") or ())
    for model in models:
        if isinstance(edits, Mapping) and model not in edits:
            yield f"experiments.{name}.edits: no number for the model {model!r}. Add it, or give one number for all"


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


def wants_fisher(spec: Mapping[str, Any]) -> bool:
    """Whether a run needs the Fisher information of what is to be kept (FT+EWC's variant `upstream`)."""
    return bool(spec["settings"].get("fisher") == "upstream")


def fisher_problem(scale: Mapping[str, Any], spec: Mapping[str, Any]) -> str | None:
    """Why a run cannot have its Fisher information: only streams say what is to be kept."""
    if not wants_fisher(spec) or is_stream(scale, spec["dataset"]):
        return None
    return (
        f"{spec['editor']}:{spec['variant']} on {spec['dataset']}: Fisher information is taken on the upstream probes of a "
        "stream, and this data set has none. Name a data set with a `task`"
    )


def fisher_spec(runs: Iterable[Mapping[str, Any]], model: str, dataset: str) -> dict[str, Any]:
    """Layers and matrix whose Fisher information the runs (their specs) of a model on a data set need.

    Raises:
        ConfigError: the runs want different matrices of a block.
    """
    wanted = [
        spec["settings"]
        for spec in runs
        if wants_fisher(spec) and (spec["model"], spec["dataset"]) == (model, dataset)
    ]
    sites = sorted({settings["site"] for settings in wanted})
    if len(sites) != 1:
        raise ConfigError(
            [
                f"Fisher information of {model} on {dataset} is wanted at {' and '.join(sites) or 'no site'}; give one site"
            ]
        )
    return {
        "kind": "fisher",
        "layers": sorted({int(settings["layer"]) for settings in wanted}),
        "site": sites[0],
    }
