"""The losses of a training as a table, and what a training that diverged leaves behind."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from palimpsest.files import write_atomic, write_text

CURVE = "training.csv"
COLUMNS = ("step", "split", "loss", "value")
# Of a training that diverged, beside the curve: Snakemake removes the outputs of a failed job, and the curve is one.
DIVERGED_CURVE, DIVERGED_STATE = "diverged.csv", "diverged.safetensors"


def write_curve(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write training.csv: step, split, loss, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def keep_diverged(
    folder: Path,
    rows: Sequence[Sequence[Any]],
    step: int,
    validation: Mapping[str, float],
    best: Mapping[str, Tensor],
) -> str:
    """Write the losses, and the best state if there was a validation; a sentence that says where they are.

    Args:
        step, validation, best: of the best state: when, its validation values, its tensors.
    """
    write_curve(folder / DIVERGED_CURVE, rows)
    if not best:
        return f"Its losses are in {folder / DIVERGED_CURVE}"
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in best.items()}
    header = {"step": str(step), "validation": json.dumps(dict(validation))}
    write_atomic(folder / DIVERGED_STATE, lambda path: save_file(tensors, path, metadata=header))
    return f"Its losses are in {folder / DIVERGED_CURVE}, its best state, of step {step}, in {DIVERGED_STATE}"
