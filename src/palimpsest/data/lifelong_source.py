"""Real files as a directory that a mini model of a lifelong task is pre-trained from, in the layout of the generated
worlds, so that the same data set settings read both.

Questions: NQ-open questions are read with their answers (upstream) and, if wished, ZsRE questions with their
counterfactual answers (stale). Cases: those before a cut-off year are read, but for a part that is held out as
upstream; later ones become a tuning part and the stream. Biographies: the passages of the annotated or WISE form.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.data.lifelong import read_names
from palimpsest.data.lifelong_readers import (
    HEADER,
    Item,
    Items,
    about_file,
    biography_forms,
    document_forms,
    read_items,
    upstream_questions,
)
from palimpsest.data.lifelong_settings import NAMES, PREFIX, TASKS
from palimpsest.data.readers import read_source
from palimpsest.data.sources import Source, check_limit, digest
from palimpsest.data.tables import open_records, table_text
from palimpsest.data.text import one_line, read_passages
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json, write_text
from palimpsest.plain import build

log = logging.getLogger(__name__)
DESCRIPTIVE = {"name", "title", "kind"}
HELD_OUT_TEXT = 0.1


@dataclass(frozen=True)
class LifelongSourceSettings:
    """What can be chosen.

    Attributes:
        task: "qa", "classification" or "generation".
        file, hub, sha256, schema, bad_records: the records: questions that are kept (qa), cases, or biographies.
        limit: of questions that are kept.
        stale: qa: a ZsRE file as for `prepare.load_edits` (`file`, `schema`, `bad_records`, `limit`), of which the
            model reads the counterfactual answers: to the first `phrasings` ways of asking, or to all.
        cut_off, late: classification: first year that the model does not read, first year of the stream; what lies
            between is for tuning.
        fewest: classes with fewer cases before the cut-off are left out.
        held_out: share of the cases before the cut-off that is upstream.
        words: documents are cut after so many words.
        names, annotations: generation: as in `LifelongSettings`.
        text: generation: background, see `text.read_passages`.
        seed: of what is held out.
    """

    task: str
    file: str | None = None
    hub: dict[str, Any] | None = None
    sha256: str | None = None
    schema: str | None = None
    bad_records: str = "refuse"
    limit: int | None = None
    stale: dict[str, Any] | None = None
    cut_off: int = 1982
    late: int = 1991
    fewest: int = 29
    held_out: float = 0.25
    words: int | None = None
    names: str | None = None
    annotations: list[str] = field(default_factory=lambda: ["major_inaccurate", "minor_inaccurate"])
    text: dict[str, Any] = field(default_factory=lambda: {"limit": 2000})
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no choice could follow."""
        if self.task not in TASKS:
            raise SettingsError(f"task: expected one of {', '.join(TASKS)}, found {self.task!r}")
        if not self.cut_off <= self.late:
            raise SettingsError(
                f"late: expected a year from cut_off ({self.cut_off}) on, found {self.late!r}"
            )
        for name, value in (("limit", self.limit), ("words", self.words)):
            check_limit(value, name)
        for name in ("limit", "phrasings"):
            check_limit((self.stale or {}).get(name), f"stale.{name}")
        if not 0 < self.held_out < 1:
            raise SettingsError(f"held_out: expected a share between 0 and 1, found {self.held_out!r}")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> LifelongSourceSettings:
        """Build from configuration; unknown names are refused."""
        return build(cls, spec, "a lifelong source", DESCRIPTIVE)


def build_lifelong_source(spec: Mapping[str, Any], out: Path | str) -> dict[str, Any]:
    """Write the directory and, last, its manifest.json, which is returned. See `LifelongSourceSettings` for `spec`.

    Questions give nq.jsonl and pairs.jsonl; cases scotus_{upstream,tuning,stream}.csv, pairs.jsonl and the manifest's
    `labels`; biographies facts.jsonl, text.txt and corpus.txt.

    Raises:
        DataError: a bad file or record. SettingsError: names the setting.
    """
    settings, out = LifelongSourceSettings.from_spec(spec), Path(out)
    named = {"file": settings.file, "hub": settings.hub, "sha256": settings.sha256}
    source = open_records(named)
    make = {"qa": _questions, "classification": _cases, "generation": _biographies}[settings.task]
    items, files, about = make(settings, source)
    # Only now: bad input, refused above, costs no earlier source. And never an old manifest beside new files.
    (out / "manifest.json").unlink(missing_ok=True)
    for name, content in files.items():
        write_text(out / name, content)
    manifest = {
        "kind": "real",
        "task": settings.task,
        "settings": asdict(settings),
        **about_file(source, items),
        **about,
        "fingerprint": digest("".join(files[name] for name in sorted(files)).encode()),
    }
    write_json(out / "manifest.json", manifest)
    return manifest


Made = tuple[Items, dict[str, str], dict[str, Any]]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _pair(prompt: str, answer: str, kind: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer, "kind": kind}


def _questions(settings: LifelongSourceSettings, source: Source) -> Made:
    items = upstream_questions(source, settings.bad_records)
    kept = [item.edit for item in items.items][: settings.limit]
    pairs = [_pair(edit.prompt, edit.target, "upstream") for edit in kept]
    known, about = {edit.prompt for edit in kept}, {}
    if settings.stale is not None:
        stale = {key: value for key, value in settings.stale.items() if key not in ("limit", "phrasings")}
        other, reading = read_source({"reader": "zsre", **stale})
        answers: dict[str, str] = {}
        for edit in reading.edits[: settings.stale.get("limit")]:
            for prompt in (edit.prompt, *edit.rephrasings)[: settings.stale.get("phrasings")]:
                answers.setdefault(prompt, edit.target)  # a question is asked twice in some files
        pairs += [_pair(prompt, answer, "stale") for prompt, answer in answers.items() if prompt not in known]
        about = {"stale": {"file": other.name, "source_sha256": other.sha256, "skipped": reading.skipped}}
    files = {
        "nq.jsonl": _lines({"question": edit.prompt, "answer": [edit.target]} for edit in kept),
        "pairs.jsonl": _lines(pairs),
    }
    counts = dict(Counter(pair["kind"] for pair in pairs))
    return items, files, {"counts": counts, **about}


def _cases(settings: LifelongSourceSettings, source: Source) -> Made:
    items = read_items(
        source,
        document_forms(None, settings.words),
        PREFIX["classification"],
        settings.schema,
        settings.bad_records,
    )
    if any(item.year is None for item in items.items):
        raise DataError(
            "the cases carry no year, so there is no before and after",
            file=source.name,
            field="term",
            remedy="Give a file with a column 'term'",
        )
    periods: dict[str, list[Item]] = {"before": [], "tuning": [], "stream": []}
    for item in items.items:
        year = item.year or 0
        periods[
            "before" if year < settings.cut_off else "tuning" if year < settings.late else "stream"
        ].append(item)
    periods["stream"].sort(
        key=lambda item: item.year or 0
    )  # the file is nearly in order; of one year, as it stands
    frequent = Counter(item.edit.target for item in periods["before"])
    labels = sorted(name for name, count in frequent.items() if count >= settings.fewest)
    if len(labels) < 2:
        raise DataError(
            f"{len(labels)} classes have at least {settings.fewest} cases before {settings.cut_off}",
            file=source.name,
            field="issue_area",
            remedy="Lower 'fewest' or raise 'cut_off'",
        )
    inside = {name: [i.edit for i in group if i.edit.target in labels] for name, group in periods.items()}
    order = random.Random(f"{settings.seed} held out").sample(inside["before"], len(inside["before"]))
    held = {edit.identifier for edit in order[: math.ceil(len(order) * settings.held_out)]}
    read = [edit for edit in inside["before"] if edit.identifier not in held]
    parts = {
        "upstream": [edit for edit in inside["before"] if edit.identifier in held],
        "tuning": inside["tuning"],
        "stream": inside["stream"],
    }
    files = {
        f"scotus_{name}.csv": table_text(("text", "label"), [(e.prompt, e.target) for e in part])
        for name, part in parts.items()
    }
    pairs = [_pair(edit.prompt, edit.target, "upstream") for edit in read]
    pairs += [_pair(edit.prompt, edit.target, "held_out") for edit in parts["upstream"]]
    files["pairs.jsonl"] = _lines(pairs)
    counts = {"read": len(read), **{name: len(part) for name, part in parts.items()}}
    left_out = {name: len(periods[name]) - len(inside[name]) for name in periods}
    per_class = {name: dict(Counter(edit.target for edit in part)) for name, part in parts.items()}
    about = {"labels": labels, "counts": counts, "left_out_as_rare_class": left_out, "per_class": per_class}
    return items, files, about


def _biographies(settings: LifelongSourceSettings, source: Source) -> Made:
    names = read_names(settings.names or NAMES, None) if settings.names else None
    forms = biography_forms(names, settings.annotations)
    items = read_items(source, forms, PREFIX["generation"], settings.schema, settings.bad_records)
    facts = list(passage_facts(items.items))
    if not facts:
        raise DataError("no passage goes beyond its header", file=source.name, remedy="Give another file")
    passages = read_passages(settings.text)
    read = passages[: math.ceil(len(passages) * (1 - HELD_OUT_TEXT))]
    corpus = [fact["text"] for fact in facts] + read
    random.Random(f"corpus {settings.seed}").shuffle(corpus)
    files = {
        "facts.jsonl": _lines(facts),
        "text.txt": "".join(passage + "\n" for passage in passages),
        "corpus.txt": "".join(line + "\n" for line in corpus),
    }
    counts = {"passages": len(facts), "text_passages": len(passages)}
    counts["people"] = len({fact["fact"] for fact in facts})
    return items, files, {"counts": counts}


def passage_facts(items: Sequence[Item]) -> Iterable[dict[str, Any]]:
    """Every prompt of every item as a text to read (GRACE prepares its model with the prompts alone), each once; what
    follows the header is the answer."""
    seen: set[str] = set()
    for item in items:
        name, text = item.fact, one_line(item.edit.prompt)
        header = HEADER.format(name)
        if text in seen or not text.startswith(header) or len(text) <= len(header) + 1:
            continue
        seen.add(text)
        start = header.index(name)
        yield {
            "text": text,
            "subject": [start, start + len(name)],
            "answer": [len(header) + 1, len(text)],
            "fact": f"bio {name}",
            "dataset": "wikibio",
            "kind": "rephrase",
        }
