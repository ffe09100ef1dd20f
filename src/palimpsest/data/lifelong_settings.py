"""What can be chosen about a lifelong data set, and which files of a source directory it reads by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from palimpsest.data.sources import check_limit
from palimpsest.errors import SettingsError
from palimpsest.plain import build

TASKS = ("qa", "classification", "generation")
# Default files of a source directory: stream, upstream.
FILES = {
    "qa": ("zsre.jsonl", "nq.jsonl"),
    "classification": ("scotus_stream.csv", "scotus_upstream.csv"),
    "generation": ("wikibio.jsonl", "text.txt"),
}
NAMES = "wiki_bio_concepts.txt"
PREFIX = {"qa": "zsre", "classification": "case", "generation": "bio"}
UPSTREAM_FIELDS = {"file", "hub", "sha256", "bad_records", "limit", "files", "kind", "prompt_words", "tail"}
DESCRIPTIVE = {"name", "title", "kind", "source", "dataset"}


@dataclass(frozen=True)
class LifelongSettings:
    """What can be chosen about a lifelong data set.

    Attributes:
        task: "qa", "classification" or "generation".
        file, hub, sha256, schema, bad_records: the stream's records, as for `prepare.load_edits`; by default the
            task's file of the source directory.
        upstream: where the questions come from that must keep their answers: `file` or `hub` with `sha256` and
            `bad_records`, and `limit`. For generation, text as for `text.read_passages` (`file` or `files`, `hub`,
            `kind`), cut after `prompt_words` words, so that there is a prompt to ask the codebook with; `tail` takes
            only the last share, which pre-training does not read (default .1 in a source directory, else all).
        skip, limit: leave out the first so many edits of the stream (a tuning stream uses those), keep so many.
        seed: of the order of the questions.
        rephrasings, at_least: questions with at least `at_least` rephrasings give so many of them as further pairs.
        empty_rephrasings: "refuse" a record that has none, or keep its "question" alone (GRACE).
        pairs: the first so many (question, answer) pairs are used.
        split: "released" permutes the pairs with numpy's generator of this `seed` and halves them into stream and
            hold-out: the released code's own halves of its file, in which repeated phrasings and records that are left out
            keep their places, to fall away afterwards; "mixed" does so in an order drawn here; "phrasings" halves
            the phrasings of each question (as the paper describes it).
        holdout, accurates: largest number of probes of each kind; null keeps all.
        labels: class names in the order of the classifier; null takes those of the source or of the upstream file.
        outside_labels: "refuse" or "drop" documents of other classes.
        words: documents are cut after so many words; null keeps them whole.
        from_year, until_year: first and last year of the stream, where documents carry a year.
        names: list of names, one a line, for biographies in the hub's form.
        annotations: which sentences are edited.
        reserve: so many records at the end are set aside for learned editors (data/lifelong_learning.py).
    """

    task: str
    file: str | None = None
    hub: dict[str, Any] | None = None
    sha256: str | None = None
    schema: str | None = None
    bad_records: str = "refuse"
    upstream: dict[str, Any] = field(default_factory=dict)
    skip: int = 0
    limit: int | None = None
    seed: int = 42
    rephrasings: int = 10
    at_least: int = 10
    empty_rephrasings: str = "refuse"
    pairs: int | None = 10_000
    split: str = "mixed"
    holdout: int | None = None
    accurates: int | None = None
    labels: list[str] | None = None
    outside_labels: str = "refuse"
    words: int | None = None
    from_year: int | None = None
    until_year: int | None = None
    names: str | None = None
    annotations: list[str] = field(default_factory=lambda: ["major_inaccurate", "minor_inaccurate"])
    reserve: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no choice could follow."""
        for name, allowed in (
            ("task", TASKS), ("split", ("released", "mixed", "phrasings")), ("outside_labels", ("refuse", "drop")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}"
                )
        whole = {"skip": 0, "seed": 0, "rephrasings": 0, "at_least": 0, "reserve": 0}
        whole |= dict.fromkeys(
            ("limit", "pairs", "holdout", "accurates", "words", "from_year", "until_year"), 1
        )
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and least:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingsError(f"{name}: expected a whole number of at least {least}, found {value!r}")
        if not isinstance(self.upstream, Mapping) or (unknown := set(self.upstream) - UPSTREAM_FIELDS):
            found = sorted(unknown) if isinstance(self.upstream, Mapping) else self.upstream
            raise SettingsError(
                f"upstream: unexpected {found}; allowed are {', '.join(sorted(UPSTREAM_FIELDS))}"
            )
        check_limit(self.upstream.get("limit"), "upstream.limit")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise SettingsError(f"labels: expected at least two different names, found {self.labels!r}")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> LifelongSettings:
        """Build from configuration; unknown names are refused."""
        return build(cls, spec, "a lifelong data set", DESCRIPTIVE)
