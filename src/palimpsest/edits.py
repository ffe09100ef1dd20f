"""What everyone speaks about: an Edit, and the probes by which it will be judged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError
from palimpsest.files import read_records, write_text

UNSETTLED = "unsettled"  # kind of a near probe to which nobody knows the right answer; the one it holds stands for none


@dataclass(frozen=True)
class Probe:
    """A prompt with the answer that is looked for after it. `kind` tells probes apart (`UNSETTLED`: of locality, near)."""

    prompt: str
    answer: str
    kind: str = "locality"


@dataclass(frozen=True)
class Edit:
    """One wanted change: after `prompt` the model shall say `target`.

    Strings carry no leading or trailing blanks; one blank is put between prompt and target when they are joined.

    Attributes:
        prompt: the sentence or question, with the subject in it where there is one.
        target: the new answer.
        subject: the part of the prompt the fact is about; may be absent.
        identifier: unique within a data set; empty for edits typed by hand.
        truth: the answer before the edit, where it is known.
        rephrasings: other prompts that should then give `target` (generality).
        locality: prompts whose answer must not change.
        portability: prompts whose answer follows from the edit.
        relation: name of the relation, where it is known.
    """

    prompt: str
    target: str
    subject: str | None = None
    identifier: str = ""
    truth: str | None = None
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    relation: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no editor can use, with a message that names the record and the field."""
        record = self.identifier or repr(str(self.prompt)[:60])
        for name, remedy in (
            ("prompt", "Give the text the answer follows"),
            ("target", "Give the new answer"),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                wrong = (
                    f"the {name} is empty"
                    if isinstance(value, str)
                    else f"the {name} is no text: {value!r:.60}"
                )
                raise DataError(wrong, record=record, field=name, remedy=remedy)
        if self.subject is not None and (not self.subject or self.subject not in self.prompt):
            raise DataError(
                f"the subject {self.subject!r} does not occur in the prompt {self.prompt!r}",
                record=record,
                field="subject",
                remedy="Give the subject exactly as it is written in the prompt, or leave it out",
            )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Edit:
        """Build from the form that `to_dict` writes; DataError names a field of another type."""
        known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        for name in ("prompt", "target", "identifier"):
            _need_text(known.get(name, "" if name == "identifier" else None), name)
        for name in ("subject", "truth", "relation"):
            if known.get(name) is not None:
                _need_text(known[name], name)
        for name in ("rephrasings", "locality", "portability"):
            known[name] = tuple(_need_list(content.get(name, ()), name))
        for text in known["rephrasings"]:
            _need_text(text, "rephrasings")
        for name in ("locality", "portability"):
            known[name] = tuple(_probe(probe, name) for probe in known[name])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def write_edits(path: Path | str, edits: Iterable[Edit]) -> None:
    """Write one edit a line (JSON), whole or not at all."""
    write_text(path, "".join(json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in edits))


def read_edits(path: Path | str) -> list[Edit]:
    """Read what `write_edits` wrote; a bad line is refused with file, line and field."""
    edits = []
    for place, content in read_records(path, "Run the rule 'dataset' that makes it"):
        try:
            edits.append(Edit.from_dict(content))
        except DataError as error:
            raise DataError(str(error), file=path, record=place) from error
    return edits


def _need_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected a text, found {value!r:.60}", field=field, remedy="Make the file again")
    return value


def _need_list(value: Any, field: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f"expected a list, found {value!r:.60}", field=field, remedy="Make the file again")
    return value


def _probe(content: Any, field: str) -> Probe:
    if not isinstance(content, dict) or not set(content) <= set(Probe.__dataclass_fields__):
        raise DataError(f"not a probe: {content!r:.60}", field=field, remedy="Make the file again")
    parts = {"kind": "locality", **content}
    return Probe(
        **{name: _need_text(parts.get(name), f"{field}.{name}") for name in ("prompt", "answer", "kind")}
    )
