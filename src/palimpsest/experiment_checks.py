"""Names in a scale's file that nothing answers to, and numbers that it lacks."""

from __future__ import annotations

from collections.abc import Iterator

from palimpsest import experiment_places as places
from palimpsest.config import Config, suggest


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
