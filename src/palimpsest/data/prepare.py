"""From upstream files to what a workflow run uses: validated edits (`build_dataset`) and, for real data, the
directory a mini model is pre-trained from (`build_source`)."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.data.readers import READERS, read_source
from palimpsest.data.real_source import build_source
from palimpsest.data.sources import digest
from palimpsest.edits import Edit
from palimpsest.errors import SettingsError
from palimpsest.files import write_json, write_text

__all__ = ["READERS", "build_dataset", "build_source", "load_edits", "read_source"]

log = logging.getLogger(__name__)
DATASET_FIELDS = {
    "reader", "file", "hub", "schema", "sha256", "targets", "bad_records",
    "limit", "deduplicate", "drop_edited_locality",
}  # fmt: skip
# What a configuration may say about a data set that does not concern reading it.
DESCRIPTIVE = {"name", "title", "kind", "source", "dataset"}


def check_spec(spec: Mapping[str, Any], allowed: set[str]) -> None:
    """Refuse names that nobody would read, and values of a wrong type."""
    if unknown := set(spec) - allowed - DESCRIPTIVE:
        raise SettingsError(
            f"data set: unexpected {sorted(unknown)}; allowed are {', '.join(sorted(allowed))}"
        )
    limit = spec.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise SettingsError(f"limit: expected a whole number above 0 or null, found {limit!r}")
    for name in ("deduplicate", "drop_edited_locality"):
        if not isinstance(spec.get(name, False), bool):
            raise SettingsError(f"{name}: expected true or false, found {spec[name]!r}")


def load_edits(
    spec: Mapping[str, Any], folder: Path | str | None = None
) -> tuple[list[Edit], dict[str, Any]]:
    """Read, filter, and only then cut: the edits of a data set and the manifest that explains them.

    Args:
        spec: `reader` ("counterfact" or "zsre"); `file` (relative to `folder` or to the data folder, or
            absolute) or `hub`; optional `schema`, `sha256`, `targets` (companion of the reduced ZsRE form),
            `limit` (number of edits), `bad_records` ("refuse" or "skip"), `deduplicate` (keep the first edit
            of each prompt) and `drop_edited_locality` (drop locality probes whose prompt is itself edited).
        folder: directory of a generated or prepared source; its {reader}.json is the default file.

    Raises:
        DataError: with file, record, field and remedy.
        SettingsError: names the setting.
    """
    check_spec(spec, DATASET_FIELDS)
    source, reading = read_source(spec, folder)
    edits = reading.edits
    if spec.get("deduplicate"):
        first: dict[str, Edit] = {}
        for edit in edits:
            first.setdefault(edit.prompt, edit)
        edits = list(first.values())
    removed, limit = len(reading.edits) - len(edits), spec.get("limit")
    if limit is not None and len(edits) < limit:
        log.warning("%s: %d edits were asked for, %d are there", source.name, limit, len(edits))
    edits, asked = _locality(edits[:limit], bool(spec.get("drop_edited_locality")))
    kept = {edit.identifier for edit in edits}
    manifest = {
        "kind": "dataset",
        "reader": spec["reader"],
        "schema": reading.schema,
        "file": source.name,
        "revision": source.revision,
        "source_sha256": source.sha256,
        "records_in_file": reading.total,
        "bad_records": spec.get("bad_records", "refuse"),
        "skipped": reading.skipped,
        "valid": len(reading.edits),
        "removed_as_duplicates": removed,
        "limit": limit,
        "edits": len(edits),
        "subject_twice": [identifier for identifier in reading.subject_twice if identifier in kept],
        "edited_locality": asked,
        **describe(edits),
    }
    return edits, manifest


def _locality(edits: list[Edit], drop: bool) -> tuple[list[Edit], dict[str, Any]]:
    """Find, and with `drop` take out, locality probes whose prompt is itself edited."""
    prompts = {edit.prompt for edit in edits}
    asked = [edit.identifier for edit in edits if any(probe.prompt in prompts for probe in edit.locality)]
    if drop:
        edits = [
            replace(edit, locality=tuple(probe for probe in edit.locality if probe.prompt not in prompts))
            for edit in edits
        ]
    return edits, {"edits": asked, "dropped": drop}


def describe(edits: Sequence[Edit]) -> dict[str, Any]:
    """Counts and conflicts of a list of edits; a conflict is one prompt with several targets."""
    by_prompt: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_prompt[edit.prompt].append(edit)
    repeated = {prompt: group for prompt, group in by_prompt.items() if len(group) > 1}
    conflicts = [
        {"prompt": prompt, "targets": targets, "edits": [edit.identifier for edit in group]}
        for prompt, group in repeated.items()
        if len(targets := list(dict.fromkeys(edit.target for edit in group))) > 1
    ]
    probes = Counter(probe.kind for edit in edits for probe in edit.locality)
    consequences = Counter(probe.kind for edit in edits for probe in edit.portability)
    return {
        "conflicts": conflicts,
        "duplicate_prompts": sum(len(group) - 1 for group in repeated.values()),
        "target_is_truth": [edit.identifier for edit in edits if edit.truth == edit.target],
        "subjects": len({edit.subject for edit in edits if edit.subject is not None}),
        "without_subject": sum(edit.subject is None for edit in edits),
        "rephrasings": sum(len(edit.rephrasings) for edit in edits),
        "locality_probes": dict(probes),
        "portability_probes": dict(consequences),
    }


def build_dataset(spec: Mapping[str, Any], source: Path | str | None, out: Path | str) -> dict[str, Any]:
    """Write `out`/edits.jsonl and, last, manifest.json; return the manifest (`spec`: see `load_edits`)."""
    edits, manifest = load_edits(spec, source)
    out = Path(out)
    content = "".join(json.dumps(edit.to_dict(), ensure_ascii=True, sort_keys=True) + "\n" for edit in edits)
    manifest["fingerprint"] = digest(content.encode())
    (out / "manifest.json").unlink(missing_ok=True)  # never an old manifest beside new edits
    # ASCII: U+2028 and its like would end a line for some readers of line-based files.
    write_text(out / "edits.jsonl", content)
    write_json(out / "manifest.json", manifest)
    log.info(
        "%s: %d edits, %d records skipped", source or spec.get("file"), len(edits), len(manifest["skipped"])
    )
    return manifest
