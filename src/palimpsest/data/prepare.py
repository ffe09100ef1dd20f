"""From upstream files to what a workflow run uses: validated edits (`build_dataset`) and, for real data, the
directory a mini model is pre-trained from (`build_source`)."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.data.fever import LABELS
from palimpsest.data.in_scope import unchanged
from palimpsest.data.learning import LEARNING_FILE, check_reserve, learning_of, set_aside, subject_key
from palimpsest.data.readers import READERS, read_source
from palimpsest.data.real_source import build_source
from palimpsest.data.sources import check_limit, digest
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json, write_text

__all__ = ["READERS", "build_dataset", "build_source", "load_edits", "read_source"]

log = logging.getLogger(__name__)
DATASET_FIELDS = {
    "reader", "file", "hub", "schema", "sha256", "targets", "bad_records",
    "limit", "deduplicate", "drop_edited_locality", "implied", "true_false", "keep_answer", "reserve", "learning",
}  # fmt: skip
LEARNING_FIELDS = {
    "reader", "file", "hub", "schema", "sha256", "targets", "bad_records", "limit", "implied", "true_false",
}  # fmt: skip
CLASSES = {"fever": LABELS, "evidence": LABELS}  # readers whose answers are classes
# What a configuration may say about a data set that does not concern reading it.
DESCRIPTIVE = {"name", "title", "kind", "source", "dataset"}


def check_spec(spec: Mapping[str, Any], allowed: set[str]) -> None:
    """Refuse names that nobody would read, and values of a wrong type."""
    if unknown := set(spec) - allowed - DESCRIPTIVE:
        raise SettingsError(
            f"data set: unexpected {sorted(unknown)}; allowed are {', '.join(sorted(allowed))}"
        )
    check_limit(spec.get("limit"))
    for name in ("deduplicate", "drop_edited_locality"):
        if not isinstance(spec.get(name, False), bool):
            raise SettingsError(f"{name}: expected true or false, found {spec[name]!r}")
    kept = spec.get("keep_answer", 0)
    if not isinstance(kept, (int, float)) or isinstance(kept, bool) or not 0 <= kept <= 1:
        raise SettingsError(f"keep_answer: expected a share from 0 to 1, found {kept!r}")
    if "learning" in spec and (
        check_reserve(spec.get("reserve")) or not isinstance(spec["learning"], Mapping)
    ):
        raise SettingsError(
            "learning: expected the fields of a file, and no `reserve` beside it: learned editors are trained "
            "either on records of that file or on records set aside from this one"
        )
    check_limit(spec.get("learning", {}).get("limit"), "learning.limit")


def load_edits(
    spec: Mapping[str, Any], folder: Path | str | None = None
) -> tuple[list[Edit], dict[str, Any]]:
    """Read, filter, and only then cut: the edits of a data set and the manifest that explains them.

    Args:
        spec: `reader` ("counterfact" or "zsre"); `file` (relative to `folder` or to the data folder, or
            absolute) or `hub`; optional `schema`, `sha256`, `targets` (companion of the reduced ZsRE form),
            `limit` (number of edits), `bad_records` ("refuse" or "skip"), `deduplicate` (keep the first edit
            of each prompt), `drop_edited_locality` (drop locality probes whose prompt is itself edited), `implied` and
            `true_false` (companions of the structured ZsRE form, data/qa_hard.py) and `keep_answer` (this share of
            the edits is to what the model says already, as MEND's on FEVER, where it is .5; their probes then ask for what
            was so before).
        folder: directory of a generated or prepared source; its {reader}.json is the default file.

    Raises:
        DataError: with file, record, field and remedy.
        SettingsError: names the setting.
    """
    edits, manifest = _read(spec, folder)
    edits = _kept(edits, spec)
    return edits, manifest | describe(edits)


def _read(spec: Mapping[str, Any], folder: Path | str | None) -> tuple[list[Edit], dict[str, Any]]:
    """The edits as the file has them, and what the manifest says about reading them."""
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
    }
    return edits, manifest


def _kept(edits: Sequence[Edit], spec: Mapping[str, Any]) -> list[Edit]:
    """The edits, this share of them (drawn by name) to what is said already."""
    share = float(spec.get("keep_answer", 0))
    return [
        unchanged(edit) if random.Random(f"keep {edit.identifier}").random() < share else edit
        for edit in edits
    ]


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
    """Write `out`/edits.jsonl and, last, manifest.json; return the manifest (`spec`: see `load_edits`).

    With `reserve: N` the records of the last subjects, N of them at least, are set aside for learned editors: they stay in
    edits.jsonl, are named in the manifest as `reserved`, and learning.jsonl is made of them. With `learning` (fields of
    another file, such as a training split) it is made of that file's records about other subjects.
    """
    read, manifest = _read(spec, source)
    out = Path(out)
    # Learned from is what each record changes; which edits keep their answer is a matter of the tables (and of `no_op_share`).
    own, tables = _to_learn_from(spec, source, read, manifest)
    edits = _kept(read, spec)
    manifest |= describe(edits)
    content = "".join(json.dumps(edit.to_dict(), ensure_ascii=True, sort_keys=True) + "\n" for edit in edits)
    manifest["fingerprint"] = digest(content.encode())
    learning = ""
    if own:
        learning, about = learning_of(own, tables, CLASSES.get(spec["reader"]))
        manifest["learning"] |= about
    # Only now: bad input, refused above, costs no earlier data set. And never an old manifest beside new edits.
    (out / "manifest.json").unlink(missing_ok=True)
    (out / LEARNING_FILE).unlink(missing_ok=True)
    if own:
        write_text(out / LEARNING_FILE, learning)
    # ASCII: U+2028 and its like would end a line for some readers of line-based files.
    write_text(out / "edits.jsonl", content)
    write_json(out / "manifest.json", manifest)
    log.info(
        "%s: %d edits, %d records skipped", source or spec.get("file"), len(edits), len(manifest["skipped"])
    )
    return manifest


def _to_learn_from(
    spec: Mapping[str, Any], source: Path | str | None, edits: list[Edit], manifest: dict[str, Any]
) -> tuple[list[Edit], list[Edit]]:
    """Records to learn from (none: nothing was asked for) and those of the tables; the manifest says which."""
    if count := check_reserve(spec.get("reserve")):
        own = set_aside(edits, count, manifest["file"])
        aside = {edit.identifier for edit in own}
        manifest |= {"reserved": [edit.identifier for edit in own], "learning": {"asked": count}}
        return own, [edit for edit in edits if edit.identifier not in aside]
    if "learning" not in spec:
        return [], edits
    fields = spec["learning"]
    if unknown := set(fields) - LEARNING_FIELDS:
        raise SettingsError(
            f"learning: unexpected {sorted(unknown)}; allowed are {', '.join(sorted(LEARNING_FIELDS))}"
        )
    other, reading = read_source({"reader": spec["reader"], **fields}, source)
    subjects, prompts = {subject_key(edit) for edit in edits}, {edit.prompt for edit in edits}
    apart = [e for e in reading.edits if subject_key(e) not in subjects and e.prompt not in prompts]
    manifest["learning"] = {
        "file": other.name,
        "source_sha256": other.sha256,
        "schema": reading.schema,
        "skipped": reading.skipped,
        "left_out_as_edited": len(reading.edits) - len(apart),
    }
    if not apart:
        raise DataError(
            "all its subjects are edited", file=other.name, field="learning", remedy="Give another file"
        )
    # Names of another file's records may be the same; a run must not take one for the other.
    named = [replace(edit, identifier=f"learning-{edit.identifier}") for edit in apart[: fields.get("limit")]]
    return named, edits
