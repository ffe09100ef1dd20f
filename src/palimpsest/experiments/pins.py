"""Models of the hub that a plan would load without a commit: refused, or, where they are marked, said and not loaded.

Such a name means whatever its owner puts there next (`models.hub`). A scale whose authors could not look a commit up says
`unpinned` in its place: the graph is then complete and dry runs, and no job that loads the model starts. Commits of data are
held by the schema of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.models.hub import PINNED, commit_of

MARK = "unpinned"
SETTINGS = ("encoder", "counterfactual")  # of editors: they name models
WORDS = ("scratch", "base")  # what these say when they name none
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Unpinned:
    """One model of the hub without a commit.

    Attributes:
        identifier: its name there.
        place: the key that would hold the commit.
        marked: whether the file says itself that the commit is not known.
        users: (wildcard of a rule, its value) of the jobs that load it: ("model", NAME), ("run", NAME), ("trained", NAME).
    """

    identifier: str
    place: str
    marked: bool
    users: set[tuple[str, str]] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.place}: {self.identifier}"


def unpinned_models(scale: Mapping[str, Any], models: Iterable[str], runs: Iterable[Any]) -> list[Unpinned]:
    """All of a plan.

    Args:
        models: names of the models that the plan uses.
        runs: `experiments.PlannedRun`s; of each the settings of its editor and of that one's training are looked at.
    """
    found: dict[str, Unpinned] = {}
    named = [*_named_by_models(scale, models), *_named_by_settings(scale, runs)]
    for place, text, revision, user in named:
        identifier, _, commit = text.partition("@")
        commit = commit or revision or ""
        if PINNED.fullmatch(commit) or not HUB_ID.fullmatch(identifier) or Path(identifier).is_dir():
            continue
        one = found.setdefault(place, Unpinned(identifier, place, commit == MARK))
        one.users.add(user)
    return list(found.values())


def _named_by_models(
    scale: Mapping[str, Any], models: Iterable[str]
) -> Iterator[tuple[str, str, str | None, tuple[str, str]]]:
    for name in models:
        entry = scale["models"][name]
        if entry["kind"] == "hub" and entry.get("id"):
            yield f"models.{name}.revision", entry["id"], entry.get("revision"), ("model", name)
        if entry.get("tokenizer"):
            yield f"models.{name}.tokenizer", entry["tokenizer"], None, ("model", name)
        if entry["kind"] == "pretrained" and entry.get("start"):
            yield f"models.{name}.start", entry["start"], None, ("model", name)


def _named_by_settings(
    scale: Mapping[str, Any], runs: Iterable[Any]
) -> Iterator[tuple[str, str, str | None, tuple[str, str]]]:
    for run in runs:
        editor, model = run.spec["editor"], run.spec["model"]
        preset = scale["models"][model].get("preset") or model
        loading = [(run.spec["settings"], ("run", run.name))]
        if run.training is not None:
            loading.append((run.training.spec["settings"], ("trained", run.training.name)))
        for settings, user in loading:
            for setting in SETTINGS:
                value = settings.get(setting)
                if isinstance(value, str) and value not in WORDS:
                    place = f"config/editors/{editor}.yaml, `{setting}` for {preset} (models.{model}.settings wins over it)"
                    yield place, value, None, user


def pin_problems(found: Iterable[Unpinned]) -> list[str]:
    """Models without a commit whose files do not say so."""
    return [
        f"{one}: a hub id without a commit means whatever its owner puts there next. {commit_of(one.identifier)} "
        f"(`revision:`, in a setting {one.identifier}@COMMIT); while it is not known, write {MARK!r} in its place"
        for one in found
        if not one.marked
    ]


def warning(found: Iterable[Unpinned]) -> str:
    """What a dry run says of those that are marked; empty when there are none."""
    listed = "".join(f"\n  {one}" for one in found)
    return (
        f"Models of the hub whose commit is not known; jobs that load them are refused. {commit_of('ID')}. Or give a directory "
        f"(of a model with pytorch_model.bin alone, what `palimpsest convert` makes of it):{listed}"
        if listed
        else ""
    )


def refused(found: Iterable[Unpinned], jobs: Iterable[Mapping[str, str]]) -> list[str]:
    """Those that jobs, given by their wildcards, would load."""
    wanted = {item for wildcards in jobs for item in wildcards.items()}
    return [
        f"{one}: no commit is given. {commit_of(one.identifier)}. Or give a directory"
        for one in found
        if one.users & wanted
    ]
