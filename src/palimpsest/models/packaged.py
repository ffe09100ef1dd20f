"""Weights that lie inside an installed Python package: `package:NAME/FOLDER`. Nothing of the package is imported or run."""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

from palimpsest.errors import ModelError

PREFIX = "package:"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


def locate(where: str) -> str:
    """The folder that `package:NAME/FOLDER` means; any other text (a directory, a hub id) comes back as it is.

    Raises:
        ModelError: the package is not installed, or its folder lacks a file that is read.
    """
    if not where.startswith(PREFIX):
        return where
    package, _, inside = where.removeprefix(PREFIX).partition("/")
    # `find_spec` of a top-level name looks for the files only.
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the model {where} lies in the Python package {package!r}, which is not installed. Install the extra that "
            "brings it (pyproject.toml; docs/real_data.md)"
        )
    for root in spec.submodule_search_locations:
        folder = Path(root) / inside
        if all(os.path.isfile(folder / name) for name in NEEDED):
            return str(folder)
    raise ModelError(
        f"the package {package!r} has no folder {inside!r} with {', '.join(NEEDED)}. Correct the model's `start`, or "
        "install the version of constraints.txt"
    )


def checksum(where: str) -> str | None:
    """SHA-256 of the weights that lie in a local folder, for the record; None of a hub id."""
    weights = Path(locate(where)) / "model.safetensors"
    if not os.path.isfile(weights):
        return None
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
