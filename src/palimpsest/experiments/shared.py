"""What several runs share: searches of target vectors, and the training of editors that learn."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.config import (
    Config,
    complete_settings,
    editor_settings,
    merge_settings,
    without_scale_settings,
)
from palimpsest.experiments import places
from palimpsest.plain import suggest

# What a search of target vectors reads of a run's settings (KeyValueSettings) and options (runs/inputs.py, Options).
SEARCH_SETTINGS = (
    "layers", "context_lengths", "context_texts", "steps", "learning_rate", "learning_rate_ratio", "clamp", "kl_weight",
    "decay", "stop_loss", "loss_layer", "target_search",
)  # fmt: skip
SEARCH_OPTIONS = ("known_only", "sample", "conflicts", "dtype", "device")


@dataclass(frozen=True)
class PlannedTraining:
    """The training of one editor for one model on one data set; runs of all seeds and of several variants edit with it.

    Attributes:
        name: of its directory.
        title: of the variant that is trained.
        model, dataset: whose learning.jsonl it reads.
        spec: what `palimpsest train-editor` is told.
    """

    name: str
    title: str
    model: str
    dataset: str
    spec: dict[str, Any]


def search_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a single-round run that its target vectors depend on: neither method, nor lambda, nor batch size."""
    settings = {name: spec["settings"][name] for name in SEARCH_SETTINGS}
    settings["layers"] = settings["layers"][-1:]  # z is searched at the last one
    options = {name: spec["options"][name] for name in SEARCH_OPTIONS if name in spec["options"]}
    options |= {"plain": True} if spec["options"].get("plain") else {}
    return {
        **{name: spec[name] for name in ("model", "dataset", "edits")},
        "options": options,
        "settings": settings,
    }


def search_name(spec: Mapping[str, Any]) -> str:
    """Names tell model, data and size apart; eight digits the rest."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return f"{spec['model']}-{spec['dataset']}-n{spec['edits']}-{digest}"


def training_of(
    config: Config,
    spec: Mapping[str, Any],
    changes: Mapping[str, Any],
    problems: list[str],
) -> PlannedTraining | None:
    """The training that a run edits with; None for editors that do not learn.

    Its settings are those of the variant, or of the one that it is `trained_as`, without what the protocol changes and
    without settings that say how to edit: these two may not change anything else. A variant whose training is that of
    `default` on this model shares it.

    Args:
        spec: of the run, resolved.
        changes: what a sweep has changed.
    """
    editor, variant, model, dataset = (spec[key] for key in ("editor", "variant", "model", "dataset"))
    content = config.editors[editor]
    if not config.trait(editor, "learns"):
        return None
    learned_as = content["variants"][variant].get("trained_as", variant)
    if learned_as not in content["variants"]:
        known = content["variants"]
        problems.append(
            f"config/editors/{editor}.yaml, variants.{variant}.trained_as = {learned_as!r}: no such variant"
            f"{suggest(learned_as, known)}"
        )
        return None
    edit_time = set(config.settings_schema[editor].get("edit_time", ()))
    learned = {name: value for name, value in changes.items() if name not in edit_time}
    if _trained_alike(config, editor, learned_as, model):
        learned_as = "default"
    stated = merge_settings(editor_settings(config, editor, learned_as, model, None), learned)
    settings = complete_settings(config, editor, stated)
    differ = [
        name
        for name, value in spec["settings"].items()
        if name not in edit_time and settings.get(name) != value
    ]
    if differ:
        problems.append(
            f"{editor}:{variant} on {model} would edit with other values of {', '.join(differ)} than it is trained with "
            f"(as {learned_as!r}). Only {', '.join(sorted(edit_time))} may differ: leave out `trained_as`, or state the "
            f"setting outside of `protocols` (config/editors/{editor}.yaml)"
        )
    if not places.can_learn(config.scale, dataset):
        problems.append(
            f"datasets.{dataset}: {editor} learns before it edits, and nothing is set aside to learn from. "
            "Give `reserve` (records of this file) or `learning` (another file)"
        )
    own = [f"{name}-{value}" for name, value in learned.items()]
    name = "-".join([model, dataset, editor, learned_as, *own]).lower().replace(" ", "")
    return PlannedTraining(
        name=re.sub(r"[^a-z0-9_-]+", "p", name),
        title=content["variants"][learned_as].get("title") or content["title"],
        model=model,
        dataset=dataset,
        spec={
            "editor": editor,
            "settings": settings,
            "device": spec["options"]["device"],
            "dtype": spec["options"]["dtype"],
        },
    )


def _trained_alike(config: Config, editor: str, variant: str, model: str) -> bool:
    """Whether a variant is trained as `default` is: by its files, and with what the scale puts over them."""
    return all(
        complete_settings(one, editor, editor_settings(one, editor, variant, model, None))
        == complete_settings(one, editor, editor_settings(one, editor, "default", model, None))
        for one in (config, without_scale_settings(config))
    )


def training_problems(trainings: Iterable[PlannedTraining | None]) -> list[str]:
    """Trainings of one name that are not one and the same."""
    first: dict[str, PlannedTraining] = {}
    return [
        f"two different trainings are called {one.name!r}: rename a variant in config/editors/{one.spec['editor']}.yaml"
        for one in trainings
        if one is not None and first.setdefault(one.name, one) != one
    ]


def models_in(settings: Mapping[str, Any], models: Iterable[str]) -> list[str]:
    """Models of the workflow that a setting names by their directory, such as a classifier's encoder."""
    named = [value for value in settings.values() if isinstance(value, str)]
    return [model for model in models if f"results/models/{model}" in named]
