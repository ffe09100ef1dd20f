"""Pairs of prompt and answer, which models that are no decoders are trained on: pairs.jsonl of a source directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.errors import DataError
from palimpsest.files import read_records

HELD_OUT = "held_out"  # a kind of pair that is never read; it measures


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Lines of pairs.jsonl ({"prompt", "answer", "kind"}), refused with file, line and field."""
    remedy = "Make the source directory again"
    pairs = []
    for place, pair in read_records(path, remedy):
        for name in ("prompt", "answer", "kind"):
            value = pair.get(name)
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"expected a text, found {value!r:.60}",
                    file=path,
                    record=place,
                    field=name,
                    remedy=remedy,
                )
        pairs.append(pair)
    if all(pair["kind"] == HELD_OUT for pair in pairs):
        raise DataError("the file has no pair to read", file=path, remedy=remedy)
    return pairs
