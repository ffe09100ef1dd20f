"""Which edits can be tried at all: with a subject where one is needed, a class that there is, and room in the context."""

from __future__ import annotations

import logging

from palimpsest.edits import Edit
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import occurrences

log = logging.getLogger(__name__)


def why_not(edit: Edit, model: LanguageModel, who: str, needs_subject: bool, margin: int) -> str | None:
    """Why an edit cannot be tried, in a sentence; None when it can.

    Args:
        who: the editor or the search, for the sentence.
        margin: tokens that are read besides: before the prompt, or after the target.
    """
    if needs_subject and not edit.subject:
        return f"{who} needs to know the subject of the prompt; give it: Edit(subject=...), --subject on the command line"
    if needs_subject and len(occurrences(edit.prompt, str(edit.subject))) > 1:
        log.warning(
            "%s: the subject %r occurs more than once; the last one is edited",
            edit.identifier or edit.prompt,
            edit.subject,
        )
    if model.kind == "encoder" and edit.target not in model.labels:
        return f"the class {edit.target!r} is not one of {', '.join(model.labels)}"
    together = model.kind == "decoder"
    text = f"{edit.prompt} {edit.target}" if together else edit.prompt
    length = len(model.tokenizer(text)["input_ids"]) + margin
    if length > model.context:
        what = "prompt and target need" if together else "the prompt needs"
        return f"{what} {length} tokens, {model.name} reads at most {model.context}"
    if model.kind == "encoder_decoder":
        length = len(model.tokenizer(edit.target)["input_ids"])
        if length > model.context:
            return f"the target needs {length} tokens, {model.name} says at most {model.context}"
    return None
