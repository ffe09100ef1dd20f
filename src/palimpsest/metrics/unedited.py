"""What a model answers before any edit, kept on disk: every run of a model and data set asks it the same first.

A file holds the answers to one list of questions. Its name is a digest of all that decides them: weights and precision, the
questions in their order, how they are asked and share passes, and the source of what asks. A file that is missing or damaged is
no loss: the questions are asked, and two runs that ask at once write the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from palimpsest.errors import PalimpsestError
from palimpsest.files import read_object, remove_abandoned, write_json
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.plain import unwritable
from palimpsest.provenance import source_digest

log = logging.getLogger(__name__)
T = TypeVar("T")
FORMAT = 2  # of 1 some held what an editor said that speaks before its first edit


@dataclass(frozen=True)
class Unedited:
    """A folder of answers. Any number of runs may share it; it may be removed at any time."""

    folder: Path

    def answers(
        self,
        model: LanguageModel,
        questions: Sequence[tuple[str, str]],
        batching: Batching,
        how: Mapping[str, Any],
        code: Sequence[str],
        ask: Callable[[], T],
        plain: Callable[[T], dict[str, list[Any]]],
        read: Callable[[dict[str, Any]], T],
    ) -> T:
        """The answers to all (prompt, answer) pairs as they are kept, else as `ask` gives them, which are then kept.

        Args:
            model: unedited now.
            batching: how questions share a pass.
            how: whatever else decides the answers.
            code: the modules that ask.
            plain: the answers as lists for JSON, each as long as the questions, or empty.
            read: the answers again; it may raise what Python raises for wrong types, which means a damaged file.
        """
        if not questions:
            return ask()
        about = {
            "format": FORMAT,
            "model": model.fingerprint,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "lean": model.lean,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batching": asdict(batching),
            "how": dict(how),
            "code": source_digest(*code),
            "questions": [list(question) for question in questions],
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.json"
        found = _read(path, len(questions), read)
        if found is None:
            found = ask()
            content = plain(found)
            # A loss that is no number, of a model that is broken, is not for JSON: the next run asks again.
            if next(unwritable(content), None) is None:
                # Of runs that were killed while they wrote: no run holds this folder.
                remove_abandoned(self.folder)
                write_json(path, content)
        return found


def _read(path: Path, count: int, read: Callable[[dict[str, Any]], T]) -> T | None:
    if not path.is_file():
        return None
    try:
        content = read_object(path)
        if not any(content.values()) or any(len(rows) not in (0, count) for rows in content.values()):
            raise ValueError("it is not whole")
        return read(content)
    except (PalimpsestError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        log.warning("%s is damaged (%s); the model is asked again", path, error)
        return None
