"""From experiments, declared in data, to the runs that they need.

An experiment (a paper's table or figure) names methods, models, data sets and perhaps a sweep. Here it becomes resolved
run specs. A run's name is a function of what it does, so experiments that need the same run share it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest import experiment_places as places
from palimpsest.config import (
    Config,
    ConfigError,
    complete_settings,
    editor_settings,
    load_config,
    merge_settings,
    suggest,
)
from palimpsest.figures import TABLE_DRAWERS

RUN_NAME = re.compile(r"[a-z0-9_-]+")
NOT_RUN = "not run"
# What a search of target vectors reads of a run's settings (KeyValueSettings) and options (run_inputs.Options).
SEARCH_SETTINGS = (
    "layers", "context_lengths", "context_texts", "steps", "learning_rate", "learning_rate_ratio", "clamp", "kl_weight",
    "decay", "stop_loss", "loss_layer", "target_search",
)  # fmt: skip
SEARCH_OPTIONS = ("known_only", "sample", "conflicts", "dtype", "device")


@dataclass
class Run:
    """One resolved run: what it does (`spec`), for which seeds, and what files it needs."""

    spec: dict[str, Any]
    seeds: list[int]
    needs_statistics: bool
    targets: str | None = None  # the search of target vectors it shares with other runs

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
    """Everything a scale needs, resolved."""

    config: Config
    runs: dict[str, Run]
    figures: dict[str, Figure]

    def searches(self) -> dict[str, dict[str, Any]]:
        """Searches of target vectors that runs share: name -> their spec."""
        return {run.targets: search_spec(run.spec) for run in self.runs.values() if run.targets}

    @property
    def scale(self) -> dict[str, Any]:
        """The scale's file."""
        return self.config.scale

    def models_used(self) -> list[str]:
        """Models of any run or model check, in the order of the configuration."""
        used = {run.spec["model"] for run in self.runs.values()}
        used |= {model for figure in self.figures.values() for model in figure.spec["models"]}
        return [model for model in self.scale["models"] if model in used]

    def datasets_of(self, model: str) -> list[str]:
        """Data sets that a model is edited on and that the gate examines it on."""
        used = {run.spec["dataset"] for run in self.runs.values() if run.spec["model"] == model}
        return [
            name for name in self.scale["datasets"] if name in used and not places.is_stream(self.scale, name)
        ]

    def statistics_layers(self, model: str) -> list[int]:
        """Blocks whose covariance any run on this model needs."""
        layers: set[int] = set()
        for run in self.runs.values():
            if run.needs_statistics and run.spec["model"] == model:
                layers |= set(run.spec["settings"]["layers"])
        return sorted(layers)

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
    problems = list(_reference_problems(config))
    runs: dict[str, Run] = {}
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
        sizes = places.sized(sizes, entry)
        figures[name] = figure = Figure(name, _figure_spec(config, name, entry, sizes))
        for run in _expand(config, name, entry, sizes, problems):
            _share(run, runs, problems)
            figure.runs[run.name] = list(run.seeds)
    places.join_figures(figures, config.experiments)
    if problems:
        raise ConfigError(problems)
    return Plan(config, dict(sorted(runs.items())), figures)


def split_method(method: str | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """("ft", "target_new", extra) of "ft:target_new" or of {method: "ft:target_new", title: "FT-M"}."""
    extra = (
        {} if isinstance(method, str) else {key: value for key, value in method.items() if key != "method"}
    )
    editor, _, variant = (method if isinstance(method, str) else str(method["method"])).partition(":")
    return editor, variant or "default", extra


def _reference_problems(config: Config) -> Iterator[str]:
    """Names in the scale's file that nothing answers to."""
    scale = config.scale
    for name, entry in scale["datasets"].items():
        if entry.get("source") and entry["source"] not in scale["sources"]:
            yield f"datasets.{name}.source = {entry['source']!r}: no such source{suggest(entry['source'], scale['sources'])}"
        if not (entry.get("source") or entry.get("file") or entry.get("hub")):
            yield f"datasets.{name}: give `source` (made here), `file` (a local file) or `hub` (a pinned download)"
    for name, entry in scale["models"].items():
        for key in ("source", "corpus"):
            if entry.get(key) and entry[key] not in scale["sources"]:
                yield f"models.{name}.{key} = {entry[key]!r}: no such source{suggest(entry[key], scale['sources'])}"
        for key in {
            "pretrained": ("source", "training") if entry.get("start") else ("source", "shape", "training"),
            "random": ("shape",),
            "path": ("path",),
            "hub": ("id",),
        }[entry["kind"]]:
            if not entry.get(key):
                yield f"models.{name}: a model of kind {entry['kind']!r} needs the key {key!r}"
    for name, stated in scale["experiments"].items():
        sizes = places.sized(stated, {})
        yield from places.edits_problems(name, sizes)
        for key, known in (("models", scale["models"]), ("datasets", scale["datasets"])):
            for value in sizes.get(key) or ():
                if value not in known:
                    yield (
                        f"experiments.{name}.{key}: {value!r} is not one of them{suggest(value, known)} "
                        f"(there are: {', '.join(known)})"
                    )


def _expand(
    config: Config, name: str, entry: dict[str, Any], sizes: dict[str, Any], problems: list[str]
) -> Iterator[Run]:
    """All runs of one experiment."""
    if not entry.get("protocol"):
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
                    problems.append(
                        f"experiments.{name}: no editor {editor!r}{suggest(editor, config.editors)}. Add it to `editors`"
                    )
                continue
            if variant not in config.editors[editor]["variants"]:
                known = config.editors[editor]["variants"]
                problems.append(
                    f"experiments.{name}: {editor} has no variant {variant!r}{suggest(variant, known)} "
                    f"(config/editors/{editor}.yaml)"
                )
                continue
            for model in group["models"]:
                for dataset in group.get("datasets") or _datasets(sizes, entry):
                    if not places.belongs(config.scale, sizes, model, dataset, extra.get("tasks")):
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
) -> Run:
    """One run with all its settings."""
    editor, variant = method
    content, scale, edits = config.editors[editor], config.scale, places.edits_of(sizes, model)
    preset = scale["models"][model].get("preset") or model
    stated = editor_settings(config, editor, variant, preset, entry["protocol"])
    settings, batch_size, suffix = complete_settings(config, editor, stated), sizes["batch_size"], ""
    if point is not None and entry["sweep"]["setting"] == "batch_size":
        batch_size = int(point)
    elif point is not None:
        changes, suffix = _sweep(entry["sweep"]["setting"], point, settings)
        settings = complete_settings(config, editor, merge_settings(stated, changes))
    where = {
        "device": scale["device"],
        "dtype": scale["models"][model]["dtype"],
        "gate": scale["gate"]["mode"],
    }
    if places.is_stream(scale, dataset):
        where |= {"gate": "off", "known_only": False}
    options = {**scale["protocol"], **where, "inspect": False, **(entry.get("run_options") or {})}
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
        "snapshot_every": sizes.get("snapshot_every") if entry["protocol"] != "single_round" else None,
        "options": options,
    }
    spec["run"] = _run_name(spec, suffix)
    absent = [key for key in config.settings_schema[editor].get("required", ()) if settings.get(key) is None]
    if absent:
        problems.append(
            f"config/editors/{editor}.yaml: no value of {', '.join(absent)} for the model {model!r} (preset {preset!r}). "
            "Add it under `models`"
        )
    if problem := places.fisher_problem(scale, spec):
        problems.append(problem)
    run = Run(spec, list(sizes["seeds"]), bool(content.get("needs_statistics")))
    if content.get("shares_targets") and entry["protocol"] == "single_round":
        run.targets = _search_name(search_spec(spec))
    return run


def search_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a single-round run that its target vectors depend on: neither method, nor lambda, nor batch size."""
    settings = {name: spec["settings"][name] for name in SEARCH_SETTINGS}
    settings["layers"] = settings["layers"][-1:]  # z is searched at the last one
    options = {name: spec["options"][name] for name in SEARCH_OPTIONS if name in spec["options"]}
    return {
        **{name: spec[name] for name in ("model", "dataset", "edits")},
        "options": options,
        "settings": settings,
    }


def _search_name(spec: Mapping[str, Any]) -> str:
    """Names tell model, data and size apart; eight digits the rest."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return f"{spec['model']}-{spec['dataset']}-n{spec['edits']}-{digest}"


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
    parts += [f"n{spec['edits']}", f"b{spec['batch_size']}"]
    parts += [f"s{spec['snapshot_every']}"] if spec["snapshot_every"] else []
    parts += ["inspect"] if spec["options"]["inspect"] else []
    parts += [suffix] if suffix else []
    return re.sub(r"[^a-z0-9_-]+", "p", "-".join(parts).lower().replace(" ", ""))


def _share(run: Run, runs: dict[str, Run], problems: list[str]) -> None:
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


def _datasets(sizes: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    return list(sizes.get("datasets") or entry.get("datasets") or [])


def _figure_spec(config: Config, name: str, entry: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """What the drawer is told (figures/__init__.py says what it reads)."""
    methods = [_figure_method(config, method) for method in _methods_drawn(entry, sizes)]
    options = dict(entry.get("options") or {})
    if entry.get("protocol") and not entry.get("with_runs_of"):
        options.setdefault("protocol", entry["protocol"])
    if options.get("published"):
        named = {model: config.scale["models"][model].get("published") for model in config.scale["models"]}
        options["published"] = {
            **options["published"],
            "models": {model: title for model, title in named.items() if title},
        }
    models = list(
        dict.fromkeys(
            [*sizes["models"], *(model for group in sizes.get("also") or () for model in group["models"])]
        )
    )
    return {
        "name": name,
        "drawer": entry["drawer"],
        "paper": entry["paper"],
        "item": entry.get("item", ""),
        "title": entry["title"],
        "scale": config.name,
        "models": models,
        "datasets": _datasets(sizes, entry),
        "methods": methods,
        "options": options,
    }


def _methods_drawn(entry: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[Any]:
    """The experiment's methods, in its order; when a scale names fewer, those it runs on any model."""
    methods = entry.get("methods") or []
    if not sizes.get("methods"):
        return list(methods)
    wanted = [*sizes["methods"], *(m for group in sizes.get("also") or () for m in group["methods"])]
    run = {split_method(method)[:2] for method in wanted}
    drawn = [method for method in methods if split_method(method)[:2] in run]
    for method in wanted:
        if split_method(method)[:2] not in {split_method(known)[:2] for known in [*methods, *drawn]}:
            drawn.append(method)
    return drawn


def _figure_method(config: Config, method: str | Mapping[str, Any]) -> dict[str, Any]:
    editor, variant, extra = split_method(method)
    content = config.editors.get(editor)
    if content is None:
        return {"editor": editor, "variant": variant, "title": editor.upper(), "not_run": True, **extra}
    chosen = content["variants"].get(variant, {})
    found = {"editor": editor, "variant": variant, "title": chosen.get("title") or content["title"]}
    published = chosen.get("published") or (content.get("published") if variant == "default" else None)
    return {**found, **({"published": published} if published else {}), **extra}
