"""What a learned editor may be trained on in a lifelong task: the records at the end of the stream's file.

They stay in the stream, where they are taken last (protocols/sample.py). A question brings its other phrasings. Documents
and passages have none: an in-scope text is the same with part of its beginning cut away, as MEND does with running text
(arXiv 2110.11309, appendix; spec 3.6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from palimpsest.data.learning import last_owners, subject_key
from palimpsest.data.lifelong_readers import HEADER, Item, sentences
from palimpsest.edits import Edit
from palimpsest.errors import DataError

CUTS = 3  # so many shortened texts of a document, each without one sentence more of its beginning


@dataclass
class Aside:
    """What is set aside: records to learn from, the edits of the stream about them, and the other edits."""

    own: list[Edit] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    tables: list[Edit] = field(default_factory=list)


@dataclass
class Records:
    """The records of a stream in file order, as a learned editor reads them.

    Attributes:
        owned: (owner, record): a question, a document, or a sentence about a person. What one owner has stays together.
        owner: the owner of an edit of the stream.
        classes: names of the classes, where answers are classes.
    """

    owned: list[tuple[str, Edit]]
    owner: Callable[[Edit], str]
    classes: Sequence[str] | None = None

    def set_aside(self, edits: Sequence[Edit], count: int, file: object) -> Aside:
        """The last owners' records, at least `count` of them (0: none), but for those about a subject that is edited.

        Raises:
            DataError: no edit of the stream, or nothing to learn from, would be left.
        """
        if not count:
            return Aside()
        by_owner: dict[str, list[Edit]] = defaultdict(list)
        for owner, record in self.owned:
            by_owner[owner].append(record)
        taken = last_owners(by_owner, count)
        tables = [edit for edit in edits if self.owner(edit) not in taken]
        if not tables:
            raise DataError(
                f"{count} of {len(self.owned)} records are to be set aside, which leaves none to edit",
                file=file,
                field="reserve",
                remedy="Lower 'reserve', or use a larger file",
            )
        # Questions about one page have owners of their own; what is edited about a page is nothing to learn from it.
        edited = {self.owner(edit) for edit in tables}
        subjects = {subject_key(record) for owner, record in self.owned if owner in edited}
        own = [r for owner, r in self.owned if owner in taken and subject_key(r) not in subjects]
        if not own:
            raise DataError(
                f"the last {len(taken)} owners have no record about a subject that is not edited",
                file=file,
                field="reserve",
                remedy="Raise 'reserve', or use a larger file",
            )
        return Aside(own, [edit.identifier for edit in edits if self.owner(edit) in taken], tables)


def question_records(items: Sequence[Item], fact_of: Callable[[str], str]) -> Records:
    """Questions with all their phrasings; edited from what the model said, where the file tells, to the true answer."""
    owned = []
    for item in items:
        truth = item.said if item.said != item.edit.target else None
        phrasings = tuple(text for text in item.edit.rephrasings if text != item.edit.prompt)
        record = replace(
            item.edit, truth=truth, subject=item.page or item.edit.subject, rephrasings=phrasings
        )
        owned.append((item.fact, record))
    return Records(owned, lambda edit: fact_of(edit.identifier))


def document_records(items: Sequence[Item], classes: Sequence[str]) -> Records:
    """Documents; those of one class are near each other."""
    owned = []
    for item in items:
        shorter = shortened(item.edit.prompt)
        owned.append(
            (item.fact, replace(item.edit, rephrasings=shorter, relation=f"class {item.edit.target}"))
        )
    return Records(owned, lambda edit: edit.identifier, classes)


def biography_records(items: Sequence[Item]) -> Records:
    """Wrong sentences of biographies; what follows the header is shortened, so that the person stays named."""
    owned = []
    for item in items:
        edit, header = item.edit, HEADER.format(item.fact)
        body = edit.prompt.removeprefix(header).strip() if edit.prompt.startswith(header) else ""
        shorter = tuple(f"{header} {text}" for text in shortened(body)) if body else ()
        # Sentences at one place of different lives say like things; those of one life say different ones.
        _, point, place = edit.identifier.rpartition(".")
        relation = f"sentence {place}" if point else f"sentence {edit.identifier}"
        owned.append((item.fact, replace(edit, rephrasings=shorter, relation=relation)))
    return Records(owned, lambda edit: edit.subject or edit.identifier)


def shortened(text: str) -> tuple[str, ...]:
    """The text without its first sentence, its first two, ...: at most half of them go, and at most `CUTS` texts result."""
    parts = sentences(text)
    return tuple(" ".join(parts[cut:]) for cut in range(1, min(CUTS, len(parts) // 2) + 1))
