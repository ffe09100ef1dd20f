"""What a model answers before any edit, kept on disk: every run of a model and data set asks it the same first.

A file holds the answers to one list of questions. Its name is a digest of all that decides them: weights and precision, the
questions in their order, how rows share a pass, and the source of what asks. A file that is missing or damaged is no loss: the
questions are asked, and two runs that ask at once write the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from palimpsest.errors import PalimpsestError
from palimpsest.files import read_object, remove_abandoned, write_json
from palimpsest.metrics.answers import Answer
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.provenance import source_digest

log = logging.getLogger(__name__)
Answers = tuple[
    list[Answer], list[tuple[int, ...]]
]  # teacher-forced, and generated (empty where nobody generates)


@dataclass(frozen=True)
class Unedited:
    """A folder of answers. Any number of runs may share it; it may be removed at any time."""

    folder: Path

    def answers(
        self,
        model: LanguageModel,
        questions: Sequence[tuple[str, str]],
        batching: Batching,
        generation: bool,
        ask: Callable[[], Answers],
    ) -> Answers:
        """The answers to all (prompt, answer) pairs as they are kept, else as `ask` gives them, which are then kept.

        The model must be unedited.
        """
        about = {
            "model": model.fingerprint,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batching": asdict(batching),
            "generation": generation,
            "code": source_digest("palimpsest.metrics.answers", "palimpsest.metrics.generation"),
            "questions": [list(question) for question in questions],
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.json"
        found = _read(path, len(questions))
        if found is None:
            found = ask()
            answers, generated = found
            content = {
                "predicted": [answer.predicted for answer in answers],
                "wanted": [answer.wanted for answer in answers],
                "generated": generated,
            }
            # Of runs that were killed while they wrote: no run holds this folder.
            remove_abandoned(self.folder)
            write_json(path, content)
        return found


def _read(path: Path, count: int) -> Answers | None:
    if not path.is_file():
        return None
    try:
        content = read_object(path, "predicted", "wanted", "generated")
        predicted, wanted, generated = (
            [tuple(int(token) for token in row) for row in content[name]]
            for name in ("predicted", "wanted", "generated")
        )
        whole = len(predicted) == len(wanted) == count and len(generated) in (0, count)
    except (PalimpsestError, TypeError, ValueError) as error:
        log.warning("%s is damaged (%s); the model is asked again", path, error)
        return None
    if not whole:
        log.warning("%s is not whole; the model is asked again", path)
        return None
    return [Answer(*pair) for pair in zip(predicted, wanted, strict=True)], generated
