"""Names in a scale's file that nothing answers to, numbers that it lacks, and methods that are one and the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest.config import Config, complete_settings, editor_settings, without_scale_settings
from palimpsest.experiments import places
from palimpsest.plain import suggest

COUNTED = ("batch_size", "last_layers")  # sweeps over whole numbers


def reference_problems(config: Config) -> Iterator[str]:
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
            "path": ("path", "family"),
            "hub": ("id", "family"),
        }[entry["kind"]]:
            if not entry.get(key):
                yield f"models.{name}: a model of kind {entry['kind']!r} needs the key {key!r}"
        if entry.get("tokenizer") and entry["kind"] not in ("path", "hub"):
            yield f"models.{name}.tokenizer: a model of kind {entry['kind']!r} gets its tokenizer here. Leave the key out"
    for role, model in (scale["claims"].get("models") or {}).items():
        if model not in scale["models"]:
            yield f"claims.models.{role}: {_absent(model, scale['models'])}"
    for name, stated in scale["experiments"].items():
        yield from _experiment_problems(name, stated, config.experiments.get(name) or {}, scale)


def _experiment_problems(
    name: str, stated: Mapping[str, Any], entry: Mapping[str, Any], scale: Mapping[str, Any]
) -> Iterator[str]:
    sizes = places.sized(stated, entry)
    yield from places.edits_problems(name, sizes)
    named = [
        ("models", "models", sizes.get("models")),
        ("datasets", "datasets", places.datasets_named(sizes, entry)),
    ]
    for group in sizes.get("also") or ():
        named += [(f"also.{key}", key, group.get(key)) for key in ("models", "datasets")]
    for place, key, values in named:
        for value in values or ():
            if value not in scale[key]:
                yield f"experiments.{name}.{place}: {_absent(value, scale[key])}"
    if (entry.get("sweep") or {}).get("setting") in COUNTED:
        for value in sizes.get("values") or ():
            if type(value) is not int or value < 1:
                yield (
                    f"experiments.{name}.values: {value!r:.60} is no {entry['sweep']['setting']}. Give whole numbers above 0"
                )
    if sizes.get("values") and not entry.get("sweep") and entry:
        yield f"experiments.{name}.values: this experiment sweeps over no setting. Leave `values` out"


def layers_problem(config: Config, editor: str, model: str, settings: Mapping[str, Any]) -> str | None:
    """Blocks that a model does not have, or none where statistics are needed: one such run would stop those of all others."""
    entry = config.scale["models"][model]
    preset, blocks = entry.get("preset") or model, (entry.get("shape") or {}).get("blocks")
    stated = settings.get("layers") or settings.get("layer")
    named = [n for n in (stated if isinstance(stated, list) else [stated]) if type(n) is int]
    remedy = f"State them in config/editors/{editor}.yaml under `models`, {preset!r}, `settings`"
    if config.trait(editor, "needs_statistics") and not named:
        return f"config/editors/{editor}.yaml: it needs statistics, but has neither `layers` nor `layer` on {model}. {remedy}"
    if blocks and named and max(named) >= blocks:
        return f"config/editors/{editor}.yaml: layers {named} for {model!r}, which has blocks 0 to {blocks - 1}. {remedy}"
    return None


def preset_problem(config: Config, editor: str, variant: str, model: str) -> str | None:
    """A preset for which the editor's file, which has others, states nothing: it would edit with another model's settings."""
    scale, content = config.scale, config.editors[editor]
    preset = scale["models"][model].get("preset") or model
    known = content.get("models") or {}
    own = (content["variants"][variant].get("models") or {}).get(preset)
    stated = scale["models"][model].get("settings", {}).get(editor) or own
    stated = stated or scale["settings"].get(editor) or scale["settings"].get(f"{editor}:{variant}")
    if not known or preset in known or stated:
        return None
    return (
        f"models.{model}.preset = {preset!r}: config/editors/{editor}.yaml has no settings for it{suggest(preset, known)} (there "
        f"are: {', '.join(known)}). Correct it, add it there, or state the settings here: models.{model}.settings.{editor}"
    )


def decoder_problem(config: Config, experiment: str, editor: str, model: str, dataset: str) -> str | None:
    """An editor of decoders on a model that is none."""
    if not config.trait(editor, "needs_decoder") or places.continues_text(config.scale, model):
        return None
    tasks = [name for name, one in config.scale["datasets"].items() if one.get("task") == "generation"]
    return (
        f"experiments.{experiment}: {editor} edits decoder-only models, and {model!r} ({dataset}) is none. Write "
        f"{{method: {editor}, tasks: [generation]}} in the experiment's list of methods"
        + (f" (here: {', '.join(tasks)})" if tasks else "")
        + ", or leave it out at this scale (`without`)"
    )


def no_editor(config: Config, editor: str) -> str:
    """Why there is none of that name."""
    if (Path(__file__).parents[1] / "editors" / f"{editor}.py").is_file():
        return f"the editor {editor!r} is not in workflow/schemas/editors.schema.json. Run palimpsest schema --write"
    return f"no editor {editor!r}{suggest(editor, config.editors)}. Add it to `editors`"


def statistics_problems(scale: Mapping[str, Any], needing: Mapping[str, str]) -> Iterator[str]:
    """Models whose statistics are needed (model -> an editor that does), and that name no text to collect them from."""
    for name, editor in needing.items():
        entry = scale["models"][name]
        if not (entry.get("corpus") or entry.get("source")):
            yield (
                f"models.{name}: {editor} needs statistics of its keys. Name a text under `corpus` "
                "(a source of kind text)"
            )


def coinciding(config: Config, experiment: str, runs: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Methods of one experiment that are one and the same on a model: (those that are refused, those that are only said).

    A variant that states nothing for the model lacks its values: refused. One that states what the model has anyway, such as
    the released negatives where the default is as released, is drawn twice on purpose: said. Where only the scale's own
    `settings` make two alike, as few steps do in smoke runs, nothing is said.

    Args:
        experiment: its name.
        runs: `experiments.PlannedRun`s of this experiment alone.
    """
    alike: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        same = {key: value for key, value in run.spec.items() if key not in ("run", "variant", "title")}
        trained = run.training.spec if run.training else None
        alike.setdefault(json.dumps([same, trained], sort_keys=True), {})[run.spec["variant"]] = run.spec
    refused: dict[str, None] = {}
    said: dict[str, None] = {}
    for specs in alike.values():
        first, *further = sorted(specs, key=lambda variant: variant != "default")
        for variant in further:
            spec = specs[variant]
            editor, model = spec["editor"], spec["model"]
            preset = config.scale["models"][model].get("preset") or model
            both = (
                f"{editor} and {editor}:{variant}"
                if first == "default"
                else f"{editor}:{first} and :{variant}"
            )
            found = f"experiments.{experiment}: {both} are one and the same on {model}"
            silent = [name for name in (first, variant) if _says_nothing(config, editor, name, preset)]
            if silent:
                refused[
                    f"{found}: config/editors/{editor}.yaml, variants.{silent[0]} has no settings for the preset {preset!r}. "
                    "Add them under its `models`, or leave the method out at this scale (`without`)"
                ] = None
            elif _stated(config, spec, first) == _stated(config, spec, variant):
                said[
                    f"{found}: the variant states what this model has anyway; its rows repeat the other's"
                ] = None
    return list(refused), list(said)


def _says_nothing(config: Config, editor: str, variant: str, preset: str) -> bool:
    """Whether a variant other than the default states no setting for a preset."""
    chosen = config.editors[editor]["variants"][variant]
    own = chosen.get("settings") or (chosen.get("models") or {}).get(preset)
    return variant != "default" and not own and f"{editor}:{variant}" not in config.scale["settings"]


def _stated(config: Config, spec: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Settings of a variant for a run's model and protocol before the scale's own are put over them."""
    files, editor = without_scale_settings(config), spec["editor"]
    return complete_settings(
        files, editor, editor_settings(files, editor, variant, spec["model"], spec["protocol"])
    )


def _absent(value: object, known: Mapping[str, Any]) -> str:
    return f"{value!r} is not one of them{suggest(str(value), known)} (there are: {', '.join(known)})"
