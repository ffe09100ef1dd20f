"""What a plan would ask for in vain, or write over: said by a dry run, and refused before the first job that needs it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.data.real_files import files_named, missing_files


def lacking_files(scale: Mapping[str, Any]) -> list[str]:
    """Real files of sources and data sets that are not on this machine."""
    real = [
        source.get(source["kind"], {}) for source in scale["sources"].values() if source["kind"] != "world"
    ]
    named = [*real, *(entry for entry in scale["datasets"].values() if not entry.get("source"))]
    return list(
        dict.fromkeys(name for entry in named for name in files_named(entry) if missing_files({"file": name}))
    )


def lacking_models(scale: Mapping[str, Any], models: Iterable[str]) -> list[str]:
    """Directories of models that are not there."""
    found = []
    for name in models:
        entry = scale["models"][name]
        if entry["kind"] == "path" and not Path(entry["path"]).is_dir():
            found.append(f"models.{name}.path: there is no directory {entry['path']}. Correct the path")
    return found


def lacking(scale: Mapping[str, Any], models: Iterable[str]) -> str:
    """What a dry run says of both; empty where all is there."""
    files, found = lacking_files(scale), lacking_models(scale, models)
    if files:
        looked = os.environ.get("PALIMPSEST_DATA") or "the working directory (PALIMPSEST_DATA names another)"
        found = [f"files that were looked for in {looked}: {', '.join(files)}", *found]
    return (
        "".join(["Not on this machine; jobs that need it are refused:", *(f"\n  {one}" for one in found)])
        if found
        else ""
    )


def foreign_runs(scale: str, folders: Iterable[Path | str]) -> list[str]:
    """Finished runs of another scale in folders that jobs are about to write.

    A run's name says what it does, not at which scale. Snakemake removes a job's old output before the job could refuse.
    """
    found: dict[str, list[Path]] = {}
    for folder in map(Path, folders):
        try:
            other = json.loads((folder / "run.json").read_text(encoding="utf-8"))["spec"]["scale"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # none, or a damaged one: nothing would be lost
        if other != scale:
            found.setdefault(str(other), []).append(folder)
    return [
        f"{len(runs)} of scale {other}, such as {runs[0]}. Give the data set another name in one of the two scales' files, work "
        "in another folder (snakemake --directory), or move that folder away"
        for other, runs in found.items()
    ]
