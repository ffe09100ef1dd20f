"""GRACE's qualitative tables, for every task: what models say before and after a stream of edits; which inputs share a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, read, tables

LONGEST = 46  # characters of a cell; the csv has the whole texts
SHOWN = 3  # prompts of an entry; the csv has more
SPLITS = {"edit": "taught", "upstream": "upstream"}
_PLACE = ("task", "model", "dataset", "method")


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Groups: task, model, data set, method; rows: prompts; columns: the answer, and what is said before and after."""
    points = _noted(spec, run_dirs, "examples")
    if points.empty:
        raise DataError("no run kept examples", field="history.examples", remedy="Run again")
    words = [
        "What the model says, freely and greedily, before any edit and at the end of the stream, to the prompts of the "
        "first edits and to the first upstream prompts; not chosen by the answers.",
        "The first seed of each run; texts are cut here, the csv file has them whole.",
    ]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(_layout(points), name, out, points, caption, captions.stamp_text(spec))


def draw_shared_keys(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Groups: task, model, data set, method; rows: the entries that most edits rely on, and prompts of these edits."""
    points = _noted(spec, run_dirs, "shared_keys")
    if points.empty:
        if not any("shared_keys" in (run.info.get("history") or {}) for run in read.select(spec, run_dirs)):
            raise DataError(
                "no run noted shared keys", field="history.shared_keys", remedy="Make the runs again"
            )
        points = pd.DataFrame(columns=[*_PLACE, "items", "edits", "answer", "radius", "prompts"])
    else:
        points["prompts"] = ["\n".join(prompts) for prompts in points["prompts"]]
    words = [
        "The entries of GRACE's codebook that most edits rely on at the end of the stream, with the prompts of the first of "
        "these edits: inputs that share a key, and so one answer. Entries of a single edit are not listed.",
        "The first seed of each run; texts are cut here, the csv file has up to six prompts of an entry, whole.",
    ]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(_entries(points), name, out, points, caption, captions.stamp_text(spec))


def _noted(spec: dict[str, Any], run_dirs: list[Path], what: str) -> pd.DataFrame:
    """What the first seed of each run noted at its end, a row each, with where it belongs."""
    runs = read.select(spec, run_dirs)
    rows: list[dict[str, Any]] = []
    for place in lifelong.places_of(spec, runs):
        here = lifelong.at_place(runs, place)
        for method in read.methods_of(spec, here):
            mine = [run for run in here if method.fits(run)]
            if not mine:
                continue
            run = min(mine, key=lambda one: one.seed)
            base: dict[str, Any] = dict(zip(_PLACE[:3], place, strict=True))
            base |= {"method": method.title, "seed": run.seed, "items": int(run.metrics["step"].max())}
            rows += [{**base, **one} for one in (run.info.get("history") or {}).get(what) or []]
    return pd.DataFrame(rows)


def _layout(points: pd.DataFrame) -> tables.Table:
    groups = []
    for title, part in _groups(points):
        rows = [
            [
                _end(point["prompt"]),
                SPLITS[point["split"]],
                *(_start(point[column]) for column in ("answer", "before", "after")),
            ]
            for _, point in part.iterrows()
        ]
        groups.append((title, rows))
    columns = ["Prompt", "set", "answer", "said before", "said after"]
    return tables.Table(columns, groups, words=frozenset(range(len(columns))))


def _entries(points: pd.DataFrame) -> tables.Table:
    groups = []
    for title, part in _groups(points):
        rows = []
        for _, point in part.iterrows():
            prompts = str(point["prompts"]).split("\n")[:SHOWN]
            first = [str(point["edits"]), f"{point['radius']:.3g}", _start(point["answer"])]
            rows += [
                [*(first if place == 0 else [""] * 3), _end(prompt, LONGEST + 30)]
                for place, prompt in enumerate(prompts)
            ]
        groups.append((title, rows))
    columns = ["edits", "radius", "answer", "some of the prompts"]
    groups = groups or [("No entry holds several edits", [[""] * len(columns)])]
    return tables.Table(columns, groups, words=frozenset({2, 3}))


def _groups(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, part in points.groupby(list(_PLACE), sort=False):
        task, model, dataset, method = map(str, key)
        title = f"{lifelong.TASK_TITLES[task]}: {model} on {captions.dataset_title(dataset)}, {method}"
        yield f"{title}, {part['items'].iloc[0]} items", part


def _start(text: str) -> str:
    """The first characters of a text, as one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"


def _end(text: str, longest: int = LONGEST) -> str:
    """The last ones, from a whole word on: what an answer follows."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else "… " + line[2 - longest :].partition(" ")[2]
