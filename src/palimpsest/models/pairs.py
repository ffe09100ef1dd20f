"""Pairs of prompt and answer, which models that are no decoders are trained on: pairs.jsonl of a source directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError

HELD_OUT = "held_out"  # a kind of pair that is never read; it measures


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Lines of pairs.jsonl ({"prompt", "answer", "kind"}), refused with file, line and field."""
    remedy = "Make the source directory again"
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise DataError("the file does not exist", file=path, remedy=remedy) from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            pair = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"not valid JSON ({error})", file=path, record=f"line {number}", remedy=remedy
            ) from error
        for name in ("prompt", "answer", "kind"):
            value = pair.get(name) if isinstance(pair, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"expected a text, found {value!r}",
                    file=path,
                    record=f"line {number}",
                    field=name,
                    remedy=remedy,
                )
        pairs.append(pair)
    if all(pair["kind"] == HELD_OUT for pair in pairs):
        raise DataError("the file has no pair to read", file=path, remedy=remedy)
    return pairs
