"""What the models say before and after a stream of edits: the paper's qualitative table, for every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, read, tables

LONGEST = 46  # characters of a cell; the csv has the whole texts
SPLITS = {"edit": "taught", "upstream": "upstream"}


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Groups: task, model, data set, method; rows: prompts; columns: the answer, and what is said before and after."""
    runs = read.select(spec, run_dirs)
    rows: list[dict[str, Any]] = []
    for place in lifelong.places_of(spec, runs):
        here = lifelong.at_place(runs, place)
        for method in read.methods_of(spec, here):
            mine = [run for run in here if method.fits(run)]
            if not mine:
                continue
            run = min(mine, key=lambda one: one.seed)
            base: dict[str, Any] = dict(zip(("task", "model", "dataset"), place, strict=True))
            base |= {"method": method.title, "seed": run.seed, "items": int(run.metrics["step"].max())}
            rows += [{**base, **one} for one in (run.info.get("history") or {}).get("examples") or []]
    if not rows:
        raise DataError("no run kept examples", field="history.examples", remedy="Run again")
    points = pd.DataFrame(rows)
    words = [
        "What the model says, freely and greedily, before any edit and at the end of the stream, to the prompts of the "
        "first edits and to the first upstream prompts; not chosen by the answers.",
        "The first seed of each run; texts are cut here, the csv file has them whole.",
    ]
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(_layout(points), name, out, points, caption, captions.stamp_text(spec))


def _layout(points: pd.DataFrame) -> tables.Table:
    groups = []
    for key, part in points.groupby(["task", "model", "dataset", "method"], sort=False):
        task, model, dataset, method = map(str, key)
        rows = [
            [
                _end(point["prompt"]),
                SPLITS[point["split"]],
                *(_start(point[column]) for column in ("answer", "before", "after")),
            ]
            for _, point in part.iterrows()
        ]
        title = f"{lifelong.TASK_TITLES[task]}: {model} on {captions.dataset_title(dataset)}, {method}"
        groups.append((f"{title}, {part['items'].iloc[0]} items", rows))
    columns = ["Prompt", "set", "answer", "said before", "said after"]
    return tables.Table(columns, groups, words=frozenset(range(len(columns))))


def _start(text: str) -> str:
    """The first characters of a text, as one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"


def _end(text: str) -> str:
    """The last ones: what an answer follows."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else "…" + line[1 - LONGEST :].lstrip()
