"""Which model is edited on which data set, and which figures show the runs of several experiments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from palimpsest.command_line.commands import PAIR_FAMILIES
from palimpsest.config import ConfigError, suggest

# Readers whose records are facts about a subject in a sentence or a question: what the gate can examine.
FACTS = ("counterfact", "zsre")
ONE_BY_ONE = "lifelong"
AT_ONCE = "simultaneous"
ROUND_OPTIONS = ("draws", "outside", "rephrasings")  # of a run of simultaneous edits


def sized(sizes: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes with what `pairs` and the protocol imply: the models and data sets in them, and edits made one by one."""
    pairs = sizes.get("pairs") or {}
    named = [dataset for datasets in pairs.values() for dataset in _listed(datasets)]
    implied: dict[str, Any] = {"models": list(pairs), "datasets": list(dict.fromkeys(named))} if pairs else {}
    if entry.get("protocol") == ONE_BY_ONE:
        implied["batch_size"] = 1
    if sizes.get("batch_sizes"):
        every = sizes["batch_sizes"]
        listed = every.values() if isinstance(every, Mapping) else [every]
        implied["batch_size"] = max(size for sizes_of_one in listed for size in sizes_of_one)
    if sizes.get("without") and entry.get("methods"):
        left_out = {split_method(method)[:2] for method in sizes["without"]}
        kept = [method for method in entry["methods"] if split_method(method)[:2] not in left_out]
        implied["methods"] = kept
    return {**implied, **sizes}


def split_method(method: str | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """("ft", "target_new", extra) of "ft:target_new" or of {method: "ft:target_new", title: "FT-M"}."""
    extra = (
        {} if isinstance(method, str) else {key: value for key, value in method.items() if key != "method"}
    )
    editor, _, variant = (method if isinstance(method, str) else str(method["method"])).partition(":")
    return editor, variant or "default", extra


def methods_problems(
    name: str, sizes: Mapping[str, Any], entry: Mapping[str, Any], editors: Mapping[str, Any]
) -> Iterator[str]:
    """A `without` that names what is neither a method of the experiment nor one at all, or that stands beside `methods`."""
    own = {split_method(method)[:2] for method in entry.get("methods") or ()}
    for method in sizes.get("without") or ():
        editor, variant, _ = split_method(method)
        if (editor, variant) not in own and variant not in editors.get(editor, {"variants": ()})["variants"]:
            yield f"experiments.{name}.without: there is no method {method!r}{suggest(editor, editors)}"
    if sizes.get("without") and sizes.get("methods"):
        yield f"experiments.{name}: give `methods` or `without`, not both"


def belongs(
    scale: Mapping[str, Any], sizes: Mapping[str, Any], model: str, dataset: str, tasks: list[str] | None
) -> bool:
    """Whether a model is edited on a data set: `pairs` says so, and the method suits the task."""
    if tasks and scale["datasets"][dataset].get("task") not in tasks:
        return False
    return dataset in _listed((sizes.get("pairs") or {}).get(model, dataset))


def datasets_named(sizes: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """The data sets of an experiment: the scale's, or its own."""
    return list(sizes.get("datasets") or entry.get("datasets") or [])


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def edits_of(sizes: Mapping[str, Any], model: str) -> int:
    """Number of edits of a run: one for all models, or each model's own."""
    edits = sizes["edits"]
    return int(edits[model] if isinstance(edits, Mapping) else edits)


def rounds_of(sizes: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Options of a run of simultaneous edits: every k (one list for all models, or each its own), and how much is asked."""
    found = {name: sizes[name] for name in ROUND_OPTIONS if sizes.get(name) is not None}
    every = sizes.get("batch_sizes")
    if every is not None:
        found["batch_sizes"] = sorted(every[model] if isinstance(every, Mapping) else every)
    return found


def edits_problems(name: str, sizes: Mapping[str, Any]) -> Iterator[str]:
    """Models whose number of edits (or of simultaneous ones) an experiment does not give, when it gives each its own."""
    groups = [sizes, *(sizes.get("also") or ())]
    models = dict.fromkeys(model for group in groups for model in group.get("models") or ())
    missing = [
        (key, model)
        for key in ("edits", "batch_sizes")
        for model in models
        if isinstance(sizes.get(key), Mapping) and model not in sizes[key]
    ]
    for key, model in missing:
        yield f"experiments.{name}.{key}: no number for the model {model!r}. Add it, or give one number for all"
    if missing or not (sizes.get("edits") and sizes.get("batch_sizes")):
        return
    for model in models:
        if max(rounds_of(sizes, model)["batch_sizes"]) > edits_of(sizes, model):
            yield (
                f"experiments.{name}.batch_sizes: more edits at once than the {edits_of(sizes, model)} edits of {model!r}. "
                "Raise `edits`, or leave the larger numbers out"
            )


def is_stream(scale: Mapping[str, Any], dataset: str) -> bool:
    """Whether a data set is a stream of a lifelong task: no list of known facts belongs to it."""
    return bool(scale["datasets"][dataset].get("task"))


def continues_text(scale: Mapping[str, Any], model: str) -> bool:
    """Whether a model is decoder-only."""
    return scale["models"][model].get("family") not in PAIR_FAMILIES


def has_gate(scale: Mapping[str, Any], model: str, dataset: str) -> bool:
    """Whether the gate can examine a model on a data set: one that continues text, on single facts."""
    return continues_text(scale, model) and scale["datasets"][dataset].get("reader") in FACTS


def gate_mode(scale: Mapping[str, Any], model: str, dataset: str, at_subject: bool) -> str:
    """What a run does with the gate's verdict. `at_subject`: its editor writes at the subject's last token.

    Streams of biographies are examined for such editors only, and a model that fails warns: the paper has their row there, so
    it is made, named in captions, and counts for no claim.
    """
    mode = str(scale["gate"]["mode"])
    if has_gate(scale, model, dataset) or mode == "off":
        return mode
    streams = continues_text(scale, model) and is_stream(scale, dataset)
    return "warn" if at_subject and streams else "off"


def can_learn(scale: Mapping[str, Any], dataset: str) -> bool:
    """Whether a data set has something for learned editors to learn from: learning.jsonl."""
    entry = scale["datasets"][dataset]
    own = entry.get("lifelong") or {}
    return bool(entry.get("reserve") or entry.get("learning") or own.get("reserve"))


def join_figures(figures: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Give figures that show several experiments (`with_runs_of`) the runs, models and data sets of all of them."""
    own = {name: dict(figure.runs) for name, figure in figures.items()}
    shown = {
        name: {key: list(figure.spec[key]) for key in ("models", "datasets")}
        for name, figure in figures.items()
    }
    for name, figure in figures.items():
        for other in entries[name].get("with_runs_of") or ():
            for run, seeds in own.get(other, {}).items():
                figure.runs[run] = sorted({*figure.runs.get(run, ()), *seeds})
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
