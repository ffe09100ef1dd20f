"""Real fact checking as a directory that a mini classifier is pre-trained from, in the layout of the generated claims.

A classifier that was fine-tuned on FEVER holds some claims for right and others for wrong; an edit turns one of them. Here the
file itself says what is held before its edits: the record's old label for the claim and its rephrasings, the other one for
what contradicts it. A share of the rephrasings is held out and measures.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.data.fever import LABELS
from palimpsest.data.readers import read_source
from palimpsest.data.sources import check_limit, digest
from palimpsest.edits import Edit
from palimpsest.errors import SettingsError
from palimpsest.files import write_json, write_text

READERS = ("fever", "evidence")
FIELDS = {"reader", "file", "hub", "schema", "sha256", "bad_records", "limit", "held_out", "seed"}
DESCRIPTIVE = {"name", "title", "kind"}


def build_claims_source(spec: Mapping[str, Any], out: Path | str) -> dict[str, Any]:
    """Write pairs.jsonl and, last, manifest.json (with `labels`), which is returned.

    Args:
        spec: `reader` (fever or evidence), `file` or `hub` as for `prepare.load_edits`, `limit` (claims), `held_out` (share
            of the rephrasings that is not read, .1) and `seed`.

    Raises:
        DataError: a bad file or record. SettingsError: names the setting.
    """
    if unknown := set(spec) - FIELDS - DESCRIPTIVE:
        raise SettingsError(
            f"claims source: unexpected {sorted(unknown)}; allowed are {', '.join(sorted(FIELDS))}"
        )
    held_out = spec.get("held_out", 0.1)
    if not isinstance(held_out, (int, float)) or isinstance(held_out, bool) or not 0 <= held_out < 1:
        raise SettingsError(f"held_out: expected a share from 0 to below 1, found {held_out!r}")
    limit, out = check_limit(spec.get("limit")), Path(out)
    source, reading = read_source(spec)
    drawn = random.Random(f"{spec.get('seed', 0)} held out")
    pairs: dict[str, dict[str, str]] = {}
    twice = 0
    for edit in reading.edits[:limit]:
        for prompt, answer, is_rephrasing in _held(edit):
            kind = "held_out" if is_rephrasing and drawn.random() < held_out else "upstream"
            twice += prompt in pairs  # the first record that says something about a text decides
            pairs.setdefault(prompt, {"prompt": prompt, "answer": answer, "kind": kind})
    text = "".join(json.dumps(pair, ensure_ascii=True) + "\n" for pair in pairs.values())
    # Only now: bad input, refused above, costs no earlier source. And never an old manifest beside new files.
    (out / "manifest.json").unlink(missing_ok=True)
    write_text(out / "pairs.jsonl", text)
    manifest = {
        "kind": "real",
        "task": "classification",
        "labels": list(LABELS),
        "file": source.name,
        "revision": source.revision,
        "source_sha256": source.sha256,
        "schema": reading.schema,
        "records_in_file": reading.total,
        "skipped": reading.skipped,
        "counts": dict(Counter(f"{pair['kind']} {pair['answer']}" for pair in pairs.values())),
        "said_again": twice,
        "fingerprint": digest(text.encode()),
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _held(edit: Edit) -> list[tuple[str, str, bool]]:
    """(text, label before the edit, whether it is a rephrasing) of everything that an edit is about."""
    before = edit.truth or next(label for label in LABELS if label != edit.target)
    turned = {edit.target: before, before: edit.target}
    rows = [(edit.prompt, before, False)]
    rows += [(text, before, True) for text in edit.rephrasings]
    return rows + [(probe.prompt, turned[probe.answer], True) for probe in edit.portability]
