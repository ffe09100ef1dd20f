"""What the drawers of tables and figures are told: methods, titles, printed neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.config import Config
from palimpsest.experiments import places
from palimpsest.experiments.places import split_method


def figure_spec(config: Config, name: str, entry: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """What the drawer is told (figures/__init__.py says what it reads)."""
    methods = [figure_method(config, method) for method in methods_drawn(entry, sizes)]
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
        "datasets": places.datasets_named(sizes, entry),
        "dataset_titles": dataset_titles(config),
        "methods": methods,
        "options": options,
    }


def dataset_titles(config: Config) -> dict[str, str]:
    """How the scale's data sets are written in figures and reports."""
    return {name: entry["title"] for name, entry in config.scale["datasets"].items() if entry.get("title")}


def methods_drawn(entry: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[Any]:
    """The experiment's methods, in its order, then those of further runs; when a scale names fewer, those it runs."""
    methods = entry.get("methods") or []
    further = [m for group in sizes.get("also") or () for m in group["methods"]]
    wanted = [*(sizes.get("methods") or methods), *further]
    run = {split_method(method)[:2] for method in wanted}
    drawn = [method for method in methods if split_method(method)[:2] in run]
    for method in wanted:
        if split_method(method)[:2] not in {split_method(known)[:2] for known in [*methods, *drawn]}:
            drawn.append(method)
    return drawn


def figure_method(config: Config, method: str | Mapping[str, Any]) -> dict[str, Any]:
    """A row or line as a drawer reads it; `not_run` where there is no such editor yet."""
    editor, variant, extra = split_method(method)
    content = config.editors.get(editor)
    if content is None:
        return {"editor": editor, "variant": variant, "title": editor.upper(), "not_run": True, **extra}
    chosen = content["variants"].get(variant, {})
    found = {"editor": editor, "variant": variant, "title": chosen.get("title") or content["title"]}
    published = chosen.get("published") or (content.get("published") if variant == "default" else None)
    return {**found, **({"published": published} if published else {}), **extra}
