"""What a saved state belongs to, and the refusal of one that belongs to something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.editors.base import EditorState
from palimpsest.errors import PalimpsestError

KEY = "belongs_to"


def refuse_foreign(state: EditorState, own: Mapping[str, Any], what: str, fitting: str) -> None:
    """Compare what a state says that it belongs to with the editor that is to take it.

    Args:
        own: by name, what the editor's own states belong to.
        what, fitting: for the message: "state of grace", and what an editor must have to take it.

    Raises:
        PalimpsestError: they differ; the first difference is named.
    """
    theirs = state.plain.get(KEY, {})
    for name, value in own.items():
        if theirs.get(name) != value:
            raise PalimpsestError(
                f"this {what} was saved for {name} {theirs.get(name)!r}, but the editor has {value!r}. "
                f"Load it into an editor with the {fitting} it was saved from"
            )
