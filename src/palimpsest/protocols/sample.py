"""Which edits of a data set a run makes, and in which order; those that spoil the measure are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import read_json

SAMPLES = ("shuffled", "file_order", "drawn_in_order")
CONFLICTS = ("drop", "keep")
RULES = {
    "unknown": "the unedited model does not know the fact",
    "too_long": "a text is longer than the model's context",
    "same_prompt": "an earlier chosen edit has the same prompt",
    "same_fact": "an earlier chosen edit has the same subject and relation",
    "probe": "its subject or prompt stands in a locality probe of a chosen edit, or the reverse",
}
_WORD = re.compile(r"\w+")


@dataclass
class Sample:
    """The chosen edits in order, counts of those dropped by each rule, and further edits not chosen.

    `reserved` names the chosen edits that were set aside for learned editors: taken only when the others did not suffice.
    """

    edits: list[Edit]
    dropped: Counter[str] = field(default_factory=Counter)
    others: list[Edit] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)


def choose(
    edits: Sequence[Edit],
    count: int,
    seed: int,
    *,
    known: Collection[str] | None = None,
    order: str = "shuffled",
    conflicts: str = "drop",
    fits: Callable[[Edit], bool] | None = None,
    others: int = 0,
    source: str = "the data set",
    reserved: Collection[str] = (),
) -> Sample:
    """Take `count` edits in the order of a permutation given by the seed (or in file order).

    With `drawn_in_order` they are those that `shuffled` takes, in the order of the file: each seed has its own edits, and time
    still passes as it does there.

    Edits set aside for learned editors (`reserved`) come after all others, each group in that order, so that all editors of
    a table are judged on the same edits, and none on what a learned one was trained with.

    Dropped, and counted: what the model does not know (when `known` lists what it knows); what does not fit
    its context; and, unless `conflicts` is "keep", prompts or facts that are chosen already (a later edit
    would contradict the earlier), and edits that a locality probe of a chosen edit asks about (an edited fact
    is no locality probe).

    Args:
        known: identifiers that pass; None = all pass.
        fits: tells whether all texts of an edit fit into the model's context.
        others: how many further usable edits about other subjects to list in `Sample.others`.
        source: name of the data set, for messages.
        reserved: identifiers of the edits that were set aside (see `read_reserved`).

    Raises:
        DataError: fewer edits are left than asked for; the message counts them by rule.
    """
    if order not in SAMPLES or conflicts not in CONFLICTS:
        raise SettingsError(
            f"sample {order!r} must be one of {', '.join(SAMPLES)}, "
            f"conflicts {conflicts!r} one of {', '.join(CONFLICTS)}"
        )
    shuffled = (
        range(len(edits)) if order == "file_order" else np.random.default_rng(seed).permutation(len(edits))
    )
    places = [int(place) for place in shuffled]
    if reserved:
        places.sort(key=lambda place: edits[place].identifier in reserved)
    chosen = _Chosen(edits if conflicts == "drop" else [])
    sample = Sample([])
    taken: list[int] = []
    about: set[str] = set()  # subjects; of records that name none, the prompts
    for place in places:
        if len(sample.edits) == count and len(sample.others) >= others:
            break
        edit = edits[place]
        rule = _rule(edit, known, fits) or (chosen.rule_against(edit) if conflicts == "drop" else None)
        if len(sample.edits) == count:
            sample.others += [edit] if rule is None and (edit.subject or edit.prompt) not in about else []
        elif rule is not None:
            sample.dropped[rule] += 1
        else:
            sample.edits.append(edit)
            taken.append(place)
            sample.reserved += [edit.identifier] if edit.identifier in reserved else []
            chosen.add(edit)
            about.add(edit.subject or edit.prompt)
    if len(sample.edits) < count:
        raise DataError(_too_few(sample, len(edits), count, source))
    if order == "drawn_in_order":
        sample.edits = [edits[place] for place in sorted(taken)]
    return sample


def read_reserved(dataset_dir: Path | str) -> frozenset[str]:
    """Identifiers of the edits that a data set sets aside for learned editors; empty where it sets none aside.

    Raises:
        DataError: the manifest does not list them as text.
    """
    path = Path(dataset_dir) / "manifest.json"
    content = read_json(path) if path.is_file() else {}
    named = content.get("reserved", []) if isinstance(content, dict) else None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise DataError(
            "expected a list of identifiers", file=path, field="reserved", remedy="Make the data set again"
        )
    return frozenset(named)


def refuse_reserved(sample: Sample, total: int, reserved: int, editor: str, source: str) -> None:
    """Raise DataError when a learned editor would be judged on subjects it was trained with.

    Args:
        total, reserved: edits of the data set, and how many of them are set aside.
    """
    if sample.reserved:
        raise DataError(
            f"{len(sample.edits)} edits are requested, of which {len(sample.reserved)} (such as {sample.reserved[0]}) "
            f"are among the {reserved} that {source} sets aside to train {editor} with",
            field="reserve",
            remedy=f"Ask for at most {len(sample.edits) - len(sample.reserved)} edits, lower `reserve`, or use a larger "
            f"data set (this one has {total} records)",
        )


def _too_few(sample: Sample, total: int, count: int, source: str) -> str:
    lost = "; ".join(
        f"{number} dropped because {RULES[rule]}" for rule, number in sample.dropped.most_common()
    )
    return (
        f"{count} edits are requested, but only {len(sample.edits)} of the {total} in {source} can be used"
        f"{f' ({lost})' if lost else ''}. Ask for fewer edits, or use a larger data set"
    )


def _rule(edit: Edit, known: Collection[str] | None, fits: Callable[[Edit], bool] | None) -> str | None:
    if known is not None and edit.identifier not in known:
        return "unknown"
    return "too_long" if fits is not None and not fits(edit) else None


class _Chosen:
    """What the chosen edits say, indexed so that one more candidate is checked without going through them."""

    def __init__(self, edits: Sequence[Edit]):
        self.longest = max((len(_words(edit.subject)) for edit in edits if edit.subject), default=0)
        self.prompts: set[str] = set()
        self.facts: set[tuple[str, str]] = set()
        self.subjects: set[tuple[str, ...]] = set()
        self.probe_prompts: set[str] = set()
        self.probe_phrases: set[tuple[str, ...]] = set()

    def rule_against(self, edit: Edit) -> str | None:
        """Name of the rule that forbids `edit` beside those chosen so far, or None."""
        if edit.prompt in self.prompts:
            return "same_prompt"
        if _fact(edit) in self.facts:
            return "same_fact"
        asked = edit.prompt in self.probe_prompts
        asked |= edit.subject is not None and _words(edit.subject) in self.probe_phrases
        asks = any(
            probe.prompt in self.prompts
            or any(phrase in self.subjects for phrase in self._phrases(probe.prompt))
            for probe in edit.locality
        )
        return "probe" if asked or asks else None

    def add(self, edit: Edit) -> None:
        """Take note of a chosen edit."""
        self.prompts.add(edit.prompt)
        fact = _fact(edit)
        if fact is not None:
            self.facts.add(fact)
        if edit.subject and _words(edit.subject):
            self.subjects.add(_words(edit.subject))
        for probe in edit.locality:
            self.probe_prompts.add(probe.prompt)
            self.probe_phrases.update(self._phrases(probe.prompt))

    def _phrases(self, text: str) -> Iterator[tuple[str, ...]]:
        """Runs of words no longer than the longest subject: whole words, so that Rome is not in Romeo."""
        words = _words(text)
        for first in range(len(words)):
            for last in range(first + 1, min(first + self.longest, len(words)) + 1):
                yield words[first:last]


def _fact(edit: Edit) -> tuple[str, str] | None:
    return (edit.subject, edit.relation) if edit.subject and edit.relation else None


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))
