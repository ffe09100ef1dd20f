"""A lifelong data set: a stream of questions with their right answers, and the probes beside it.

The directory holds edits.jsonl (the stream, in order), probes.jsonl (one object a line: `set` "upstream", "holdout" or
"accurate", `prompt`, `answer`, `edit`: identifier of the edit it belongs to, or null) and manifest.json (with `task`,
and for classification `labels`). What belongs to what follows GRACE's released data set classes (section 4.1).
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from palimpsest.data.learning import LEARNING_FILE, learning_of
from palimpsest.data.lifelong_learning import Records, biography_records, document_records, question_records
from palimpsest.data.lifelong_readers import (
    Item,
    Items,
    about_file,
    biography_forms,
    document_forms,
    question_forms,
    read_items,
    upstream_questions,
)
from palimpsest.data.lifelong_settings import FILES, NAMES, PREFIX, LifelongSettings
from palimpsest.data.prepare import describe
from palimpsest.data.sources import Source, digest, locate, read_text
from palimpsest.data.tables import open_records
from palimpsest.data.text import read_passages
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import read_object, write_json, write_text

log = logging.getLogger(__name__)


@dataclass
class LifelongData:
    """What a task makes of its files: the edits in order, probes, what the manifest says about them, and the records as a
    learned editor reads them."""

    edits: list[Edit]
    probes: list[dict[str, Any]]
    about: dict[str, Any]
    records: Records


def build_lifelong(spec: Mapping[str, Any], source: Path | str | None, out: Path | str) -> dict[str, Any]:
    """Write `out`/edits.jsonl, probes.jsonl, with `reserve` learning.jsonl, and, last, manifest.json; return the manifest.

    Args:
        spec: see `LifelongSettings`.
        source: directory of a generated or prepared source, whose files are the default; may be None.

    Raises:
        DataError: with file, record, field and remedy. SettingsError: names the setting.
    """
    settings = LifelongSettings.from_spec(spec)
    folder = Path(source) if source is not None else None
    build = {"qa": _questions, "classification": _documents, "generation": _biographies}[settings.task]
    stream = build(settings, folder)
    edits = stream.edits[settings.skip :][: settings.limit]
    if not edits:
        raise DataError(
            f"no edit is left of {len(stream.edits)}",
            file=settings.file or source,
            remedy="Lower 'skip', or choose other years, labels or annotations",
        )
    if settings.limit is not None and len(edits) < settings.limit:
        log.warning("%d edits were asked for, %d are there", settings.limit, len(edits))
    kept = {edit.identifier for edit in edits}
    probes = [{**probe, "edit": probe["edit"] if probe["edit"] in kept else None} for probe in stream.probes]
    lines = [_lines(edit.to_dict() for edit in edits), _lines(probes)]
    counts: dict[str, int] = defaultdict(int)
    for probe in probes:
        counts[probe["set"]] += 1
    about = describe(edits)
    aside = stream.records.set_aside(edits, settings.reserve, settings.file or source)
    written = {item.name: getattr(settings, item.name) for item in fields(settings)}
    if not settings.reserve:
        written.pop("reserve")  # as it was before there were learned editors
    manifest = {
        "kind": "lifelong",
        "task": settings.task,
        "settings": written,
        "edits": len(edits),
        "stream_before_skip_and_limit": len(stream.edits),
        "probes": dict(counts),
        "conflicts": about["conflicts"],
        "duplicate_prompts": about["duplicate_prompts"],
        "rephrasings": about["rephrasings"],
        **stream.about,
        "fingerprint": digest("".join(lines).encode()),
    }
    learning = ""
    if aside.own:
        learning, learned = learning_of(aside.own, aside.tables, stream.records.classes)
        manifest |= {"reserved": aside.reserved, "learning": {"asked": settings.reserve, **learned}}
    out = Path(out)
    # Only now: bad input, refused above, costs no earlier data set. And never an old manifest beside new files.
    (out / "manifest.json").unlink(missing_ok=True)
    (out / LEARNING_FILE).unlink(missing_ok=True)
    if aside.own:
        write_text(out / LEARNING_FILE, learning)
    write_text(out / "edits.jsonl", lines[0])
    write_text(out / "probes.jsonl", lines[1])
    write_json(out / "manifest.json", manifest)
    log.info("%s: %d edits, %s", settings.task, len(edits), dict(counts))
    return manifest


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    # ASCII: U+2028 and its like would end a line for some readers of line-based files.
    return "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows)


def _probe(kind: str, prompt: str, answer: str, edit: str | None = None) -> dict[str, Any]:
    return {"set": kind, "prompt": prompt, "answer": answer, "edit": edit}


def _stream_source(settings: LifelongSettings, folder: Path | None) -> Source:
    spec = {"file": settings.file, "hub": settings.hub, "sha256": settings.sha256}
    if settings.file is None and settings.hub is None:
        spec["file"] = FILES[settings.task][0]
    return open_records(spec, folder)


def _upstream_source(settings: LifelongSettings, folder: Path | None) -> Source:
    spec = {"file": None, **settings.upstream}
    if spec["file"] is None and spec.get("hub") is None:
        spec["file"] = FILES[settings.task][1]
    return open_records(spec, folder)


def _questions(settings: LifelongSettings, folder: Path | None) -> LifelongData:
    source = _stream_source(settings, folder)
    forms = question_forms(settings.empty_rephrasings)
    items = read_items(source, forms, PREFIX["qa"], settings.schema, settings.bad_records)
    pairs: Sequence[Edit | None]
    if settings.split == "released":
        pairs = released_pairs(items, source.records, settings)
    else:
        pairs = flatten(items.items, settings)
    edits, held = split_questions(pairs[: settings.pairs], settings)
    # Two records may ask the same question: what is edited in one cannot be held out in the other.
    edited = {edit.prompt for edit in edits}
    unseen = [pair for pair in held if pair[1].prompt not in edited]
    twice, held = len(held) - len(unseen), unseen
    asked = edited | {edit.prompt for _, edit in held}
    upstream_source = _upstream_source(settings, folder)
    known = upstream_questions(upstream_source, settings.upstream.get("bad_records", "refuse"))
    apart = [item.edit for item in known.items if item.edit.prompt not in asked]
    probes = [_probe("upstream", e.prompt, e.target) for e in apart[: settings.upstream.get("limit")]]
    first: dict[str, str] = {}
    for edit in edits[settings.skip :][: settings.limit]:
        first.setdefault(fact_of(edit.identifier), edit.identifier)
    # Hold-out questions about facts of this stream first: the others measure nothing that was taught.
    held = sorted(held, key=lambda pair: pair[0] not in first)[: settings.holdout]
    probes += [_probe("holdout", edit.prompt, edit.target, first.get(fact)) for fact, edit in held]
    about = {
        **about_file(source, items),
        "facts": len({fact_of(edit.identifier) for edit in edits}),
        "holdout_removed_because_edited": twice,
        "records_with_enough_rephrasings": sum(
            len(item.edit.rephrasings) >= max(1, settings.at_least) for item in items.items
        ),
        "upstream": {
            **about_file(upstream_source, known),
            "removed_because_edited": len(known.items) - len(apart),
        },
    }
    return LifelongData(edits, probes, about, question_records(items.items, fact_of))


def fact_of(identifier: str) -> str:
    """Pairs of one question are numbered behind a point: "zsre-7.3" asks the fact "zsre-7"."""
    return identifier.rpartition(".")[0]


def flatten(items: Sequence[Item], settings: LifelongSettings) -> list[Edit]:
    """One pair for each question, and for its first rephrasings where there are enough of them."""
    pairs = []
    for item in items:
        edit, enough = item.edit, len(item.edit.rephrasings) >= settings.at_least
        asked = [edit.prompt, *(edit.rephrasings[: settings.rephrasings] if enough else ())]
        for number, prompt in enumerate(dict.fromkeys(asked)):
            subject = edit.subject if edit.subject and edit.subject in prompt else None
            pairs.append(Edit(prompt, edit.target, subject, f"{edit.identifier}.{number}"))
    return pairs


def released_pairs(items: Items, records: Sequence[Any], settings: LifelongSettings) -> list[Edit | None]:
    """The pairs that the released code counts: repeated phrasings too, and None in the places of a record that is left out.

    Places in its permutation are places in this list, so that whatever were missing here would shift all halves.
    """
    edits = {place: item.edit for place, item in zip(items.places, items.items, strict=True)}
    pairs: list[Edit | None] = []
    for place, record in enumerate(records):
        edit = edits.get(place)
        phrasings = edit.rephrasings if edit is not None else _raw_phrasings(record)
        more = settings.rephrasings if len(phrasings) >= settings.at_least else 0
        if edit is None:
            pairs.extend(None for _ in range(1 + len(phrasings[:more])))
            continue
        for number, prompt in enumerate((edit.prompt, *phrasings[:more])):
            subject = edit.subject if edit.subject and edit.subject in prompt else None
            pairs.append(Edit(prompt, edit.target, subject, f"{edit.identifier}.{number}"))
    return pairs


def _raw_phrasings(record: Any) -> Sequence[Any]:
    """Of a record that could not be read: whatever stands where its rephrasings should."""
    content = record if isinstance(record, Mapping) else {}
    names = ("filtered_rephrases", "rephrase_prompt", "rephrase")
    return next((content[name] for name in names if isinstance(content.get(name), list)), [])


def split_questions(
    pairs: Sequence[Edit | None], settings: LifelongSettings
) -> tuple[list[Edit], list[tuple[str, Edit]]]:
    """The shuffled stream, each edit with the held-out phrasings of its fact, and (fact, held-out pair)."""
    source = random.Random(f"{settings.seed} stream")
    half, there = math.ceil(len(pairs) / 2), [pair for pair in pairs if pair is not None]
    if settings.split == "released":
        permuted = _permuted(pairs, settings.seed)
        taken, held = _once(permuted[:half]), _once(permuted[half:])
    elif settings.split == "mixed":
        mixed = source.sample(there, len(there))
        taken, held = mixed[:half], mixed[half:]
    else:
        by_fact: dict[str, list[Edit]] = defaultdict(list)
        for pair in there:
            by_fact[fact_of(pair.identifier)].append(pair)
        taken, held = [], []
        for group in by_fact.values():
            order = source.sample(group, len(group))
            taken += order[: math.ceil(len(order) / 2)]
            held += order[math.ceil(len(order) / 2) :]
        source.shuffle(taken)
    others: dict[str, list[str]] = defaultdict(list)
    for pair in held:
        others[fact_of(pair.identifier)].append(pair.prompt)
    edits = [replace(edit, rephrasings=tuple(others[fact_of(edit.identifier)])) for edit in taken]
    return edits, [(fact_of(pair.identifier), pair) for pair in held]


def _once(pairs: Iterable[Edit | None]) -> list[Edit]:
    """Each phrasing of a fact once, where it comes first; places that hold no pair fall away."""
    found: dict[tuple[str, str], Edit] = {}
    for pair in pairs:
        if pair is not None:
            found.setdefault((fact_of(pair.identifier), pair.prompt), pair)
    return list(found.values())


def _permuted(pairs: Sequence[Edit | None], seed: int) -> list[Edit | None]:
    import numpy

    return [pairs[place] for place in numpy.random.RandomState(seed).permutation(len(pairs))]


def _documents(settings: LifelongSettings, folder: Path | None) -> LifelongData:
    labels = settings.labels
    if labels is None and folder is not None and (folder / "manifest.json").is_file():
        labels = read_object(folder / "manifest.json").get("labels")
    source, upstream_source = _stream_source(settings, folder), _upstream_source(settings, folder)
    forms = document_forms(labels, settings.words)
    bad = settings.upstream.get("bad_records", "refuse")
    known = read_items(upstream_source, forms, "upstream", None, bad)
    names = labels or sorted({item.edit.target for item in known.items})
    items = read_items(source, forms, PREFIX["classification"], settings.schema, settings.bad_records)
    late = [item for item in items.items if in_years(item, settings.from_year, settings.until_year)]
    inside = within(late, names, source.name, settings.outside_labels)
    upstream = within(known.items, names, upstream_source.name, settings.outside_labels)
    texts = {item.edit.prompt for item in inside}
    apart = [item.edit for item in upstream if item.edit.prompt not in texts]
    probes = [_probe("upstream", e.prompt, e.target) for e in apart[: settings.upstream.get("limit")]]
    about = {
        **about_file(source, items),
        "labels": list(names),
        "outside_labels": len(late) - len(inside),
        "outside_years": len(items.items) - len(late),
        "upstream": {
            **about_file(upstream_source, known),
            "outside_labels": len(known.items) - len(upstream),
            "removed_because_edited": len(upstream) - len(apart),
        },
    }
    return LifelongData([item.edit for item in inside], probes, about, document_records(inside, names))


def in_years(item: Item, first: int | None, last: int | None) -> bool:
    """Tell whether a document lies in the years asked for."""
    if first is None and last is None:
        return True
    if item.year is None:
        raise SettingsError("from_year, until_year: the documents of this file carry no year; leave them out")
    return (first is None or item.year >= first) and (last is None or item.year <= last)


def within(items: Sequence[Item], labels: Sequence[str], file: str, outside: str) -> list[Item]:
    """Items whose class is one of `labels`; others are refused with their name, or dropped."""
    inside = [item for item in items if item.edit.target in labels]
    if len(inside) < len(items) and outside == "refuse":
        bad = next(item for item in items if item.edit.target not in labels)
        more = len(items) - len(inside) - 1
        raise DataError(
            f"class {bad.edit.target!r} is outside the label set ({', '.join(labels)}); so are {more} more",
            file=file,
            record=bad.edit.identifier,
            field="label",
            remedy="Correct the label, name all classes in 'labels', or set outside_labels: drop",
        )
    return inside


def _biographies(settings: LifelongSettings, folder: Path | None) -> LifelongData:
    source, names = _stream_source(settings, folder), None
    if settings.names is not None or (folder is not None and (folder / NAMES).is_file()):
        names = read_names(settings.names or NAMES, folder)
    forms = biography_forms(names, settings.annotations)
    items = read_items(source, forms, PREFIX["generation"], settings.schema, settings.bad_records)
    if names is not None and items.form == "annotated" and len(names) != items.total:
        raise DataError(
            f"{len(names)} names for {items.total} passages",
            file=settings.names or NAMES,
            remedy="Give the list of names of exactly this file, one a line",
        )
    accurate = [item.edit for item in items.of("accurate")]
    probes = [_probe("accurate", e.prompt, e.target) for e in accurate[: settings.accurates]]
    passages, text = upstream_text(settings.upstream, folder)
    probes += [_probe("upstream", prompt, rest) for prompt, rest in passages]
    about = {
        **about_file(source, items),
        "people": len({item.fact for item in items.items}),
        "accurates": len(accurate),
        "upstream": text,
    }
    stream = items.of("stream")
    return LifelongData([item.edit for item in stream], probes, about, biography_records(stream))


def read_names(name: str, folder: Path | None) -> list[str]:
    """One name a line, without the brackets that the upstream list was made to lack."""
    lines = read_text(locate(name, folder)).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def upstream_text(
    spec: Mapping[str, Any], folder: Path | None
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Passages of text as (first words, rest), and what the manifest says about them."""
    words = spec.get("prompt_words", 8)
    if not isinstance(words, int) or isinstance(words, bool) or words < 1:
        raise SettingsError(f"upstream.prompt_words: expected a whole number of at least 1, found {words!r}")
    own = not {"file", "files", "hub"} & set(spec)
    tail = spec.get("tail", 0.1 if own else None)
    if tail is not None and (
        not isinstance(tail, (int, float)) or isinstance(tail, bool) or not 0 < tail <= 1
    ):
        raise SettingsError(f"upstream.tail: expected a share above 0 and at most 1, found {tail!r}")
    files = spec.get("files") or [spec.get("file") or FILES["generation"][1]]
    where = {"hub": spec["hub"]} if spec.get("hub") else {"files": files}
    kind = "plain" if own else spec.get("kind", "auto")
    passages = read_passages({**where, "kind": kind, "shortest": 0}, folder)
    read = math.ceil(len(passages) * (1 - tail)) if tail is not None else 0
    cut = [passage.split(" ") for passage in passages[read:]]
    long = [(" ".join(row[:words]), " ".join(row[words:])) for row in cut if len(row) > words]
    about = {"file": (spec.get("hub") or {}).get("id") or files, "passages": len(passages), "tail": tail}
    about |= {"prompt_words": words, "too_short": len(cut) - len(long)}
    if not long:
        raise DataError(
            f"no passage has more than {words} words",
            file=about["file"],
            remedy="Lower upstream.prompt_words",
        )
    return long[: spec.get("limit")], about
