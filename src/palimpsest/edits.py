"""What everyone speaks about: an Edit, and the probes by which it will be judged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError
from palimpsest.files import write_text


@dataclass(frozen=True)
class Probe:
    """A prompt with the answer that is looked for after it. `kind` tells locality probes apart."""

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
        record = self.identifier or repr(self.prompt[:60])
        if not self.prompt.strip():
            raise DataError(
                "the prompt is empty",
                record=record,
                field="prompt",
                remedy="Give the text the answer follows",
            )
        if not self.target.strip():
            raise DataError(
                "the target is empty", record=record, field="target", remedy="Give the new answer"
            )
        if self.subject is not None and (not self.subject or self.subject not in self.prompt):
            raise DataError(
                f"the subject {self.subject!r} does not occur in the prompt {self.prompt!r}",
                record=record,
                field="subject",
                remedy="Give the subject exactly as it is written in the prompt, or leave it out",
            )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Edit:
        """Build from the form that `to_dict` writes."""
        known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        for name in ("locality", "portability"):
            known[name] = tuple(Probe(**probe) for probe in content.get(name, ()))
        known["rephrasings"] = tuple(content.get("rephrasings", ()))
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def write_edits(path: Path | str, edits: Iterable[Edit]) -> None:
    """Write one edit a line (JSON), whole or not at all."""
    write_text(path, "".join(json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in edits))


def read_edits(path: Path | str) -> list[Edit]:
    """Read what `write_edits` wrote; a bad line is refused with file, line and field."""
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise DataError(
            "the file does not exist", file=path, remedy="Run the rule 'dataset' that makes it"
        ) from error
    edits = []
    for number, line in enumerate(lines, start=1):
        try:
            edits.append(Edit.from_dict(json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(
                f"not an edit ({error})", file=path, record=f"line {number}", remedy="Make the file again"
            ) from error
        except DataError as error:
            raise DataError(str(error), file=path, record=f"line {number}") from error
    return edits
