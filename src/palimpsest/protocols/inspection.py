"""Looking inside an editor that decides its scope: z-scores, thresholds and swaps of prompts, as rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from palimpsest.editors.base import Editor, edit_name
from palimpsest.edits import Edit
from palimpsest.metrics.answers import Batching
from palimpsest.models.tokens import tokenise


def shown(
    editor: Editor, texts: Sequence[str], subjects: Sequence[str | None], batching: Batching
) -> list[dict[str, Any]]:
    """`editor.inspect` of many texts, in groups of like length; "prompt" counts through all texts."""
    if not texts or type(editor).inspect is Editor.inspect:
        return []
    found = []
    lengths = [len(row.ids) for row in tokenise(editor.model, texts)]
    for group in batching.groups(lengths):
        for row in editor.inspect([texts[place] for place in group], [subjects[place] for place in group]):
            if "z" in row:  # other decisions than z-scores are no rows of this table
                found.append({**row, "prompt": group[row["prompt"]]})
    return sorted(found, key=lambda row: (row["prompt"], row["layer"]))


def inspection_rows(
    editor: Editor, edits: Iterable[Edit], others: Iterable[Edit], batching: Batching, base: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `inspection.parquet`: edit prompts, first rephrasings, first locality prompts, and unedited
    subjects.

    Prompts are read without their answers, as in Fig. 3 of COMEBA-HK.

    Args:
        edits: those that were made.
        others: edits that were not made, whose subjects the model knows.
        base: run, seed and step, put into every row.
    """
    asked: list[tuple[str, str, str, str | None]] = []
    for edit in edits:
        asked.append((edit_name(edit), "edit", edit.prompt, edit.subject))
        asked += [(edit_name(edit), "rephrase", prompt, edit.subject) for prompt in edit.rephrasings[:1]]
        probes = [probe for probe in edit.locality if probe.kind == "locality"]
        asked += [(edit_name(edit), "locality", probe.prompt, None) for probe in probes[:1]]
    asked += [(edit_name(edit), "unedited", edit.prompt, edit.subject) for edit in others]
    seen = shown(editor, [prompt for *_, prompt, _ in asked], [subject for *_, subject in asked], batching)
    return [
        {**base, "edit": asked[row["prompt"]][0], "split": asked[row["prompt"]][1], **_numbers(row)}
        for row in seen
    ]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """One prompt at one layer; None where there is nothing to say (no subject, or z undefined)."""
    z, swapped, at = row["z"], row["swapped"], row["subject_index"]
    others = [value for place, value in enumerate(z) if place != at]
    return {
        "layer": int(row["layer"]),
        "tokens": int(row["tokens"]),
        "z_subject": _finite(z[at]) if at is not None else None,
        "z_max": _largest(z),
        "z_max_other": _largest(others) if at is not None else None,
        "alpha": _finite(row["alpha"]),
        "ceiling": _finite(row["ceiling"]),
        "swapped_subject": bool(swapped[at]) if at is not None else None,
        "swapped_any": any(swapped),
    }


def _largest(values: Sequence[float]) -> float | None:
    return max((float(value) for value in values if math.isfinite(value)), default=None)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
