"""A source of text alone, for models that were trained elsewhere: statistics of keys and the drift meter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.data.sources import digest
from palimpsest.data.text import read_passages
from palimpsest.files import write_json, write_text

HELD_OUT = 0.1


def build_text_source(spec: Mapping[str, Any], out: Path | str) -> dict[str, Any]:
    """Write `out`/text.txt (all passages; the last tenth measures drift), corpus.txt (the others), an empty facts.jsonl
    and, last, manifest.json, which is returned. `spec`: see `palimpsest.data.text.read_passages`."""
    out = Path(out)
    passages = read_passages(spec)
    read = passages[: math.ceil(len(passages) * (1 - HELD_OUT))]
    text = "".join(passage + "\n" for passage in passages)
    # Only now: bad input, refused above, costs no earlier source. And never an old manifest beside new files.
    (out / "manifest.json").unlink(missing_ok=True)
    write_text(out / "facts.jsonl", "")
    write_text(out / "text.txt", text)
    write_text(out / "corpus.txt", "".join(passage + "\n" for passage in read))
    manifest = {
        "kind": "text",
        "settings": dict(spec),
        "text_passages": len(passages),
        "fingerprint": digest(text.encode()),
    }
    write_json(out / "manifest.json", manifest)
    return manifest
