"""Names in a scale's file that nothing answers to, and numbers that it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from palimpsest import experiment_places as places
from palimpsest.config import Config
from palimpsest.plain import suggest


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
    if sizes.get("values") and not entry.get("sweep") and entry:
        yield f"experiments.{name}.values: this experiment sweeps over no setting. Leave `values` out"


def statistics_problems(scale: Mapping[str, Any], models: Iterable[str]) -> Iterator[str]:
    """Models whose statistics are needed, and that name no text to collect them from."""
    for name in models:
        entry = scale["models"][name]
        if not (entry.get("corpus") or entry.get("source")):
            yield (
                f"models.{name}: ROME, MEMIT and COMEBA-HK need statistics of its keys. Name a text under `corpus` "
                "(a source of kind text)"
            )


def _absent(value: object, known: Mapping[str, Any]) -> str:
    return f"{value!r} is not one of them{suggest(str(value), known)} (there are: {', '.join(known)})"
