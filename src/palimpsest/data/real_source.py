"""A real split as something a mini model can learn: closed answers, one truth per prompt, phrasings held out.

Follows what was measured on real CounterFact at mini scale: a small model can only be edited to answers that
it met as answers, so records are kept whose true and new answer are both frequent; a locality probe about a
subject that is edited itself would measure nothing; part of the phrasings is never shown, so that recall can
be told from rote.
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.data.annotate import Candidate, annotate
from palimpsest.data.readers import read_source, reader_of
from palimpsest.data.relations import SLOT, majority_share
from palimpsest.data.sentences import as_upstream, write_sentences
from palimpsest.data.sources import digest
from palimpsest.data.text import one_line, read_passages
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json, write_text
from palimpsest.plain import build

log = logging.getLogger(__name__)
WORD = re.compile(r"\w+")
DESCRIPTIVE = {"name", "title", "kind", "dataset", "datasets"}


@dataclass(frozen=True)
class SourceSettings:
    """What can be chosen about a real split.

    Attributes:
        reader, file, hub, schema, sha256, targets, bad_records: as for `prepare.load_edits`.
        size: number of records; null takes all that qualify.
        closed_answers: K; both answers of a record must be among the K most frequent (relation, true answer)
            pairs; for ZsRE, whose relations are not known well enough, among the K most frequent true
            answers. null switches the filter off.
        held_out_rephrasings: share of the rephrasings that is not shown in pre-training.
        extra_templates: further templates of the relation that are shown, for every fact.
        held_out_templates: further templates of the relation that are not shown, for every fact.
        seed: chooses which phrasings are held out.
        text: see `palimpsest.data.text.read_passages`.
    """

    reader: str
    file: str | None = None
    hub: dict[str, Any] | None = None
    schema: str | None = None
    sha256: str | None = None
    targets: str | None = None
    bad_records: str = "refuse"
    size: int | None = 500
    closed_answers: int | None = 50
    held_out_rephrasings: float = 0.4
    extra_templates: int = 2
    held_out_templates: int = 1
    seed: int = 0
    text: dict[str, Any] = field(default_factory=lambda: {"limit": 4000})

    def __post_init__(self) -> None:
        """Refuse values that no choice could follow."""
        for name, least, optional in (
            ("size", 1, True), ("closed_answers", 1, True),
            ("extra_templates", 0, False), ("held_out_templates", 0, False), ("seed", 0, False),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingsError(f"{name}: expected a whole number of at least {least}, found {value!r}")
        share = self.held_out_rephrasings
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise SettingsError(f"held_out_rephrasings: expected a share between 0 and 1, found {share!r}")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> SourceSettings:
        """Build from configuration; unknown names are refused."""
        return build(cls, spec, "a source", DESCRIPTIVE)


def build_source(spec: Mapping[str, Any], out: Path | str) -> dict[str, Any]:
    """Write the directory a mini model is pre-trained from, and return its manifest.

    `out`/{reader}.json has the upstream form (CF-flat or MEND's) with one more field, `relation`; facts.jsonl
    the sentences that are shown, held_out.jsonl, in the same form, the phrasings that are not; text.txt plain
    text (its last tenth measures drift); corpus.txt what was shown and the rest of the text, for statistics
    of keys; manifest.json, written last, what was chosen and why. See `SourceSettings` for `spec`.

    Raises:
        DataError: a bad file or record, or fewer records than `size` qualify.
        SettingsError: names the setting.
    """
    settings = SourceSettings.from_spec(spec)
    reader = reader_of(spec)
    named = {"reader", "file", "hub", "schema", "sha256", "targets", "bad_records"}
    source, reading = read_source({name: value for name, value in asdict(settings).items() if name in named})
    candidates = annotate(reading.edits, reader.name)
    closed = closed_answers(candidates, settings.closed_answers, by_relation=reader.name == "counterfact")
    chosen, refused = choose(closed, settings.size)
    if settings.size is not None and len(chosen) < settings.size:
        raise DataError(
            f"{settings.size} records are wanted, only {len(chosen)} of {reading.total} qualify "
            f"({len(closed)} have closed answers)",
            file=source.name,
            remedy="Raise closed_answers or lower size",
        )
    passages = read_passages(settings.text)
    out = Path(out)
    # Only now: bad input, refused above, costs no earlier source. And never an old manifest beside new files.
    (out / "manifest.json").unlink(missing_ok=True)
    records = [as_upstream(candidate, reader.name) for candidate in chosen]
    write_text(out / f"{reader.name}.json", json.dumps(records, indent=1, ensure_ascii=True) + "\n")
    shown, sentences = write_sentences(chosen, candidates, settings, reader.name, out)
    write_text(out / "text.txt", "".join(passage + "\n" for passage in passages))
    corpus = [one_line(text) + "." for text in shown] + passages[: math.ceil(len(passages) * 0.9)]
    random.Random(f"corpus {settings.seed}").shuffle(corpus)
    write_text(out / "corpus.txt", "".join(line + "\n" for line in corpus))
    manifest = {
        "kind": "real",
        "dataset": reader.name,
        "schema": reading.schema,
        "file": source.name,
        "revision": source.revision,
        "source_sha256": source.sha256,
        "settings": asdict(settings),
        "records_in_file": reading.total,
        "skipped": reading.skipped,
        "closed": len(closed),
        "refused": dict(sorted(refused.items())),
        **counts(chosen),
        **baselines(chosen, candidates),
        **sentences,
        "text_passages": len(passages),
        "fingerprint": digest(
            (out / "facts.jsonl").read_bytes() + (out / f"{reader.name}.json").read_bytes()
        ),
    }
    write_json(out / "manifest.json", manifest)
    log.info(
        "%s: %d of %d records, %d sentences", reader.name, len(chosen), reading.total, sentences["sentences"]
    )
    return manifest


def counts(chosen: Sequence[Candidate]) -> dict[str, Any]:
    """How many records, subjects, different answers, and records of each relation were chosen."""
    return {
        "records": len(chosen),
        "subjects": len({candidate.edit.subject for candidate in chosen}),
        "answers": len(
            {answer for candidate in chosen for answer in (candidate.edit.truth, candidate.edit.target)}
        ),
        "relations": dict(Counter(candidate.relation for candidate in chosen).most_common()),
    }


def closed_answers(
    candidates: Sequence[Candidate], most: int | None, *, by_relation: bool
) -> list[Candidate]:
    """Keep records whose true and whose new answer are both among the `most` frequent true answers.

    Frequencies are counted over all records, per relation where `by_relation`. Ties follow first occurrence.
    """
    if most is None:
        return list(candidates)

    def key(candidate: Candidate, answer: str | None) -> tuple[str, str | None]:
        return (candidate.relation if by_relation else "", answer)

    counts = Counter(key(candidate, candidate.edit.truth) for candidate in candidates)
    frequent = {pair for pair, _ in counts.most_common(most)}
    return [
        candidate
        for candidate in candidates
        if key(candidate, candidate.edit.truth) in frequent
        and key(candidate, candidate.edit.target) in frequent
    ]


def folded(text: str | None) -> str:
    """Subjects are compared without case and extra blanks."""
    return " ".join((text or "").casefold().split())


def words(text: str) -> str:
    """The words alone, each between two blanks, so that `in` finds whole words only."""
    return f" {' '.join(re.findall(WORD, text.casefold()))} "


def choose(candidates: Sequence[Candidate], size: int | None) -> tuple[list[Candidate], Counter[str]]:
    """Take records in file order that contradict none taken before; return them and why others were not."""
    chosen: list[Candidate] = []
    refused: Counter[str] = Counter()
    selection = _Selection()
    for candidate in candidates:
        if size is not None and len(chosen) == size:
            break
        reason = selection.objection(candidate)
        if reason:
            refused[reason] += 1
            continue
        selection.add(candidate)
        chosen.append(candidate)
    return chosen, refused


class _Selection:
    """What the records taken so far say: one truth per prompt and per (subject, relation)."""

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}
        self.truths: dict[tuple[str, str], str] = {}
        self.edited: set[str] = set()
        self.asked_about: set[str] = set()
        self.named: set[str] = set()
        self.probes: list[str] = []

    def objection(self, candidate: Candidate) -> str | None:
        """Why this record cannot join, or None."""
        edit, subject = candidate.edit, folded(candidate.edit.subject)
        if not subject or edit.truth is None or candidate.template is None:
            return "no subject or no true answer"
        if edit.truth == edit.target:
            return "new answer equals true answer"
        if folded(edit.truth) in subject or folded(edit.target) in subject:
            return "answer inside the subject"
        if edit.prompt in self.prompts or (subject, candidate.relation) in self.truths:
            return "fact already taken, or contradicts one"
        neighbours = {folded(name) for name in candidate.neighbours}
        if neighbours & (self.edited | {subject}) or subject in self.asked_about:
            return "locality subject is edited"
        probes = [words(probe.prompt) for probe in edit.locality]
        if any(name in probe for probe in probes for name in (*self.named, words(subject))):
            return "locality subject is edited"
        if any(words(subject) in probe for probe in self.probes):
            return "locality subject is edited"
        if any(self.prompts.get(probe.prompt, probe.answer) != probe.answer for probe in edit.locality):
            return "locality probe contradicts another record"
        return None

    def add(self, candidate: Candidate) -> None:
        """Remember what this record says."""
        edit, subject = candidate.edit, folded(candidate.edit.subject)
        assert edit.truth is not None  # `objection` refused such records
        self.prompts[edit.prompt] = edit.truth
        self.truths[(subject, candidate.relation)] = edit.truth
        self.edited.add(subject)
        self.named.add(words(subject))
        self.asked_about |= {folded(name) for name in candidate.neighbours}
        for probe in edit.locality:
            self.prompts.setdefault(probe.prompt, probe.answer)
            self.probes.append(words(probe.prompt))


def baselines(chosen: Sequence[Candidate], candidates: Sequence[Candidate]) -> dict[str, float]:
    """How often always giving the template's (relation's) most frequent true answer is right.

    Recall and locality of a model mean nothing below these numbers. "of_others" asks only the other records,
    which matters for ZsRE, where many question templates occur once.
    """
    pairs = [(candidate.template or SLOT, candidate.edit.truth or "") for candidate in chosen]
    best: dict[str, str] = {}
    for (template, answer), _ in Counter(pairs).most_common():
        best.setdefault(template, answer)
    probes = [
        best.get(template or "") == probe.answer
        for candidate in chosen
        for template, probe in zip(candidate.probe_templates, candidate.edit.locality, strict=True)
    ]
    everything = [
        (c.template, c.edit.truth) for c in candidates if c.template is not None and c.edit.truth is not None
    ]
    return {
        "majority_baseline": majority_share(pairs),
        "majority_baseline_of_others": majority_share(pairs, without_self=True),
        "majority_baseline_relation": majority_share([(c.relation, c.edit.truth or "") for c in chosen]),
        "majority_baseline_locality": sum(probes) / len(probes) if probes else 0.0,
        "majority_baseline_all_records": majority_share(everything),
    }
