"""From experiments, declared in data, to the runs that they need.

An experiment (a paper's table or figure) names methods, models, data sets and perhaps a sweep. Here it becomes resolved
run specs. A run's name is a function of what it does, so experiments that need the same run share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.config import (
    Config,
    ConfigError,
    complete_settings,
    editor_settings,
    load_config,
    merge_settings,
    suggest,
)
from palimpsest.experiments import places
from palimpsest.experiments.checks import (
    coinciding,
    decoder_problem,
    layers_problem,
    no_editor,
    preset_problem,
    reference_problems,
    statistics_problems,
)
from palimpsest.experiments.figure_specs import figure_spec
from palimpsest.experiments.pins import Unpinned, pin_problems, unpinned_models
from palimpsest.experiments.places import split_method
from palimpsest.experiments.shared import (
    PlannedTraining,
    search_name,
    search_spec,
    training_of,
    training_problems,
)
from palimpsest.figures import TABLE_DRAWERS

SNAPSHOTS = ("consecutive", "lifelong")  # protocols that look at the model in between


@dataclass
class PlannedRun:
    """One resolved run: what it does (`spec`), for which seeds, and what files it needs."""

    spec: dict[str, Any]
    seeds: list[int]
    needs_statistics: bool
    targets: str | None = None  # the search of target vectors it shares with other runs
    training: PlannedTraining | None = None  # of its editor, if that learns; shared too

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return str(self.spec["run"])


@dataclass
class Figure:
    """One table or figure: the spec for its drawer and the runs that go into it."""

    name: str
    spec: dict[str, Any]
    runs: dict[str, list[int]] = field(default_factory=dict)

    @property
    def is_table(self) -> bool:
        """Tables come as csv, markdown and LaTeX, figures as pdf, svg and png."""
        return self.spec["drawer"] in TABLE_DRAWERS


@dataclass
class Plan:
    """Everything a scale needs, resolved.

    Attributes:
        notes: what a dry run says: methods of one experiment that are the same on a model.
    """

    config: Config
    runs: dict[str, PlannedRun]
    figures: dict[str, Figure]
    notes: list[str] = field(default_factory=list)

    def searches(self) -> dict[str, dict[str, Any]]:
        """Searches of target vectors that runs share: name -> their spec."""
        return {run.targets: search_spec(run.spec) for run in self.runs.values() if run.targets}

    def trainings(self) -> dict[str, PlannedTraining]:
        """Trainings of editors that learn: name -> what is trained."""
        return {run.training.name: run.training for run in self.runs.values() if run.training}

    @property
    def training_seed(self) -> int:
        """Seed of all of them: runs of every seed edit with the same trained editor."""
        return int(self.scale["training_seed"])

    @property
    def scale(self) -> dict[str, Any]:
        """The scale's file."""
        return self.config.scale

    def models_used(self) -> list[str]:
        """Models of any run or model check, in the order of the configuration."""
        used = {run.spec["model"] for run in self.runs.values()}
        used |= {model for figure in self.figures.values() for model in figure.spec["models"]}
        return [model for model in self.scale["models"] if model in used]

    def unpinned(self) -> list[Unpinned]:
        """Models of the hub whose commit is not known."""
        return unpinned_models(self.scale, self.models_used(), self.runs.values())

    def datasets_of(self, model: str) -> list[str]:
        """Data sets that a model is edited on and that the gate examines it on."""
        used = {run.spec["dataset"] for run in self.runs.values() if run.spec["model"] == model}
        return [
            name
            for name in self.scale["datasets"]
            if name in used and places.has_gate(self.scale, model, name)
        ]

    def statistics_layers(self, model: str) -> list[int]:
        """Blocks whose covariance any run on this model needs."""
        layers: set[int] = set()
        for run in self.runs.values():
            if run.needs_statistics and run.spec["model"] == model:
                settings = run.spec["settings"]
                layers |= set(settings.get("layers") or [settings["layer"]])
        return sorted(layers)

    @cached_property
    def turns(self) -> dict[str, int]:
        """Whose turn each run is: the first of the groups (papers, in the order of the scale's experiments) that show it."""
        groups = {name: str(self.config.experiments[name]["group"]) for name in self.figures}
        order = list(dict.fromkeys(groups.values()))
        turns: dict[str, int] = {}
        for name, figure in self.figures.items():
            for run in figure.runs:
                turns[run] = min(turns.get(run, len(order)), order.index(groups[name]))
        return turns

    def run_seeds(self, **wanted: Any) -> Iterator[tuple[str, int]]:
        """(run, seed) of all runs whose spec has the wanted values."""
        for name, run in self.runs.items():
            if all(run.spec[key] == value for key, value in wanted.items()):
                yield from ((name, seed) for seed in run.seeds)


def plan(scale: Mapping[str, Any] | Path | str, root: Path | None = None) -> Plan:
    """Load a configuration and resolve every run.

    Raises:
        ConfigError: all problems at once, each with key, value and remedy.
    """
    config = load_config(scale, root)
    problems = list(reference_problems(config))
    notes: list[str] = []
    runs: dict[str, PlannedRun] = {}
    figures: dict[str, Figure] = {}
    for name, sizes in config.scale["experiments"].items():
        entry = config.experiments.get(name)
        if entry is None:
            problems.append(
                f"experiments.{name}: no such experiment{suggest(name, config.experiments)}. See config/experiments/"
            )
            continue
        if problems and any(problem.startswith(f"experiments.{name}") for problem in problems):
            continue
        problems += places.methods_problems(name, sizes, entry, config.editors)
        sizes = places.sized(sizes, entry)
        figures[name] = figure = Figure(name, figure_spec(config, name, entry, sizes))
        own = list(_expand(config, name, entry, sizes, problems))
        refused, said = coinciding(config, name, own)
        problems, notes = [*problems, *refused], [*notes, *said]
        for run in own:
            _share(run, runs, problems)
            figure.runs[run.name] = sorted({*figure.runs.get(run.name, ()), *run.seeds})
    places.join_figures(figures, config.experiments)
    problems += training_problems(run.training for run in runs.values())
    needing = {run.spec["model"]: run.spec["editor"] for run in runs.values() if run.needs_statistics}
    problems += statistics_problems(config.scale, needing)
    made = Plan(config, dict(sorted(runs.items())), figures, notes)
    if not problems:
        problems = pin_problems(made.unpinned())
    if problems:
        raise ConfigError(problems)
    return made


def _expand(
    config: Config, name: str, entry: dict[str, Any], sizes: dict[str, Any], problems: list[str]
) -> Iterator[PlannedRun]:
    """All runs of one experiment."""
    if not entry.get("protocol"):
        return
    if not sizes["models"] and not sizes.get("also"):  # shows other experiments' runs alone (`with_runs_of`)
        return
    missing = [key for key in ("edits", "batch_size", "seeds") if not sizes.get(key)]
    if missing:
        problems.append(
            f"experiments.{name}: the key {', '.join(map(repr, missing))} is missing at scale {config.name!r}"
        )
        return
    groups = [{"models": sizes["models"], "methods": sizes.get("methods") or entry["methods"]}]
    groups += sizes.get("also") or []
    for group in groups:
        for method in group["methods"]:
            editor, variant, extra = split_method(method)
            if editor not in config.editors:
                if editor not in config.scale["not_yet"]:
                    problems.append(f"experiments.{name}: {no_editor(config, editor)}")
                continue
            if variant not in config.editors[editor]["variants"]:
                known = config.editors[editor]["variants"]
                problems.append(
                    f"experiments.{name}: {editor} has no variant {variant!r}{suggest(variant, known)} "
                    f"(config/editors/{editor}.yaml)"
                )
                continue
            for model in group["models"]:
                for dataset in group.get("datasets") or places.datasets_named(sizes, entry):
                    if not places.belongs(config.scale, sizes, model, dataset, extra.get("tasks")):
                        continue
                    if problem := decoder_problem(config, name, editor, model, dataset):
                        problems.append(problem)
                        continue
                    for point in sizes.get("values") or (entry.get("sweep") or {}).get("values") or [None]:
                        here = {**sizes, "seeds": group.get("seeds") or sizes["seeds"]}
                        yield _resolve(
                            config, entry, here, (editor, variant), model, dataset, point, problems
                        )


def _resolve(
    config: Config,
    entry: dict[str, Any],
    sizes: dict[str, Any],
    method: tuple[str, str],
    model: str,
    dataset: str,
    point: Any,
    problems: list[str],
) -> PlannedRun:
    """One run with all its settings."""
    editor, variant = method
    content, scale, edits = config.editors[editor], config.scale, places.edits_of(sizes, model)
    preset = scale["models"][model].get("preset") or model
    stated = editor_settings(config, editor, variant, model, entry["protocol"])
    settings, batch_size, suffix = complete_settings(config, editor, stated), sizes["batch_size"], ""
    changes: dict[str, Any] = {}
    if point is not None and entry["sweep"]["setting"] == "batch_size":
        batch_size = int(point)
    elif point is not None:
        changes, suffix = _sweep(entry["sweep"]["setting"], point, settings)
        settings = complete_settings(config, editor, merge_settings(stated, changes))
    where = {
        "device": scale["device"],
        "dtype": scale["models"][model]["dtype"],
        "gate": places.gate_mode(scale, model, dataset, at_subject=config.trait(editor, "needs_subject")),
    }
    if not places.has_gate(scale, model, dataset):
        where["known_only"] = False
    options = {**scale["protocol"], **where, "inspect": False, **(entry.get("run_options") or {})}
    if entry["protocol"] == places.ONE_BY_ONE and sizes.get("until_edits"):
        options["until_edits"] = sizes["until_edits"]
    if entry["protocol"] == places.AT_ONCE:
        options |= places.rounds_of(sizes, model)
        batch_size = max(options.get("batch_sizes") or [batch_size])
    spec = {
        "scale": scale["scale"],
        "protocol": entry["protocol"],
        "dataset": dataset,
        "model": model,
        "editor": editor,
        "variant": variant,
        "title": content["variants"][variant].get("title") or content["title"],
        "settings": settings,
        "edits": edits,
        "batch_size": min(batch_size, edits),
        "snapshot_every": sizes.get("snapshot_every") if entry["protocol"] in SNAPSHOTS else None,
        "options": options,
    }
    spec["run"] = _run_name(spec, suffix)
    absent = [key for key in config.settings_schema[editor].get("required", ()) if settings.get(key) is None]
    if absent:
        problems.append(
            f"config/editors/{editor}.yaml: no value of {', '.join(absent)} for the model {model!r} (preset {preset!r}). "
            "Add it under `models`"
        )
    checks = (preset_problem(config, editor, variant, model), layers_problem(config, editor, model, settings))
    problems += [problem for problem in checks if problem]
    if problem := places.fisher_problem(scale, spec):
        problems.append(problem)
    run = PlannedRun(spec, list(sizes["seeds"]), config.trait(editor, "needs_statistics"))
    if config.trait(editor, "shares_targets") and entry["protocol"] == "single_round":
        run.targets = search_name(search_spec(spec))
    run.training = training_of(config, spec, changes, problems)
    return run


def _sweep(setting: str, point: Any, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """One value of a sweep: (what it changes, suffix of the run's name).

    `last_layers` keeps the last n of the layers that the model's preset names; a value may also be a mapping of several
    settings. A value that changes nothing is the plain run and keeps its name, so that it is shared.
    """
    if setting == "last_layers":
        layers = list(settings["layers"])[-int(point) :]
        changes, suffix = {"layers": layers}, f"last{point}"
    else:
        changes = dict(point) if isinstance(point, Mapping) else {setting: point}
        suffix = "-".join(f"{name}-{value}" for name, value in changes.items() if settings.get(name) != value)
    changes = {name: value for name, value in changes.items() if settings.get(name) != value}
    return changes, suffix if changes else ""


def _run_name(spec: Mapping[str, Any], suffix: str) -> str:
    """The name says everything in which runs of one scale differ."""
    parts = [spec["protocol"], spec["model"], spec["dataset"], spec["editor"], spec["variant"]]
    every, draws = (spec["options"].get(option) for option in ("batch_sizes", "draws"))
    parts += [f"n{spec['edits']}", "k" + "-".join(map(str, every)) if every else f"b{spec['batch_size']}"]
    parts += [f"d{draws}"] if draws else []
    until = spec["options"].get("until_edits")
    parts += [f"u{until}"] if until else []
    parts += [f"s{spec['snapshot_every']}"] if spec["snapshot_every"] else []
    parts += ["inspect"] if spec["options"]["inspect"] else []
    parts += [suffix] if suffix else []
    return re.sub(r"[^a-z0-9_-]+", "p", "-".join(parts).lower().replace(" ", ""))


def _share(run: PlannedRun, runs: dict[str, PlannedRun], problems: list[str]) -> None:
    """Enter a run, or join the seeds of the same run that another experiment needs."""
    known = runs.setdefault(run.name, run)
    generation = known.spec["options"].get("generation") or run.spec["options"].get("generation")
    for spec in (known.spec, run.spec):
        spec["options"]["generation"] = bool(generation)  # asks the model more, changes no other row
    if known.spec != run.spec:
        problems.append(
            f"two different runs are called {run.name!r}: rename a variant in config/editors/{run.spec['editor']}.yaml"
        )
    known.seeds = sorted({*known.seeds, *run.seeds})
