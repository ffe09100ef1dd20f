"""Table 1 of GRACE: the sets of every task, how many they hold, and what the unedited model scores on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.figures import captions, lifelong, lifelong_captions, read, tables
from palimpsest.figures.lifelong import LOWER_IS_BETTER, PRINTED
from palimpsest.figures.lifelong_table import score
from palimpsest.figures.read import Run
from palimpsest.published import find_printed

# Row of the table -> (quantity, name of the printed numbers).
SETS = {
    "Upstream": ("trr", "upstream"),
    "Edit stream": ("err", "edits"),
    "Hold-out": ("holdout", "holdout"),
    "Accurates": ("arr", "accurates"),
}
RATIO = "Distance ratio"


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Groups: task, model, data set; rows: sets; columns: size and score before editing, beside printed."""
    runs = read.select(spec, run_dirs)
    points = pd.DataFrame(_points(spec, runs))
    words = [
        f"What the streams consist of and what the unedited model scores. {captions.spread(runs)}; "
        "every seed draws its own stream.",
        lifelong_captions.scores(runs),
        "Accurates are judged by perplexity.",
        f"{RATIO}: at the edited layer, median distance between ways of asking one question over that between different "
        "questions (from 1 on, GRACE cannot generalise); its number is that of questions."
        if (points["set"] == RATIO).any()
        else "",
        "Printed numbers are the paper's, on its models and data.",
    ]
    if (points["printed_n_shown"].str.endswith("†") | points["printed_score_shown"].str.endswith("†")).any():
        words.append(lifelong_captions.unchecked())
    caption = captions.caption(spec, *words, metrics=False)
    return tables.save_table(_layout(points), name, out, points, caption, captions.stamp_text(spec))


def _points(spec: dict[str, Any], runs: Sequence[Run]) -> list[dict[str, Any]]:
    table = ((spec.get("options") or {}).get("published") or {}).get("table")
    rows = []
    for place in lifelong.places_of(spec, runs):
        first = {run.seed: run for run in reversed(lifelong.at_place(runs, place))}
        for title, (quantity, printed) in SETS.items():
            looks = [
                found
                for run in first.values()
                if (found := lifelong.look(run, quantity, "start")) is not None
            ]
            if not looks:
                continue
            score = lifelong.spread(float(found["value"]) for found in looks)
            assert score is not None
            cells = {
                part: find_printed(
                    table,
                    dataset=PRINTED[place[0]][0],
                    model=PRINTED[place[0]][1],
                    method="",
                    metric=f"{printed}_{part}",
                )
                if table
                else None
                for part in ("n", "score")
            }
            rows.append(
                {
                    "task": place[0],
                    "model": place[1],
                    "dataset": place[2],
                    "set": title,
                    "size": round(sum(float(found["n"]) for found in looks) / len(looks)),
                    **score._asdict(),
                    **{f"printed_{part}": cell.printed if cell else None for part, cell in cells.items()},
                    **{f"printed_{part}_shown": cell.shown if cell else "–" for part, cell in cells.items()},
                }
            )
        rows += _ratio(place, list(first.values()))
    return rows


def _ratio(place: tuple[str, str, str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How close phrasings lie where a codebook is asked, as the runs noted it; nothing where none did."""
    noted = [found for run in runs if (found := run.info.get("key_distances"))]
    ratio = lifelong.spread(float(found["ratio"]) for found in noted)
    if ratio is None:
        return []
    about = dict(zip(("task", "model", "dataset"), place, strict=True))
    nothing: dict[str, Any] = {f"printed_{part}": None for part in ("n", "score")}
    nothing |= {f"printed_{part}_shown": "" for part in ("n", "score")}
    size = round(sum(int(found["questions"]) for found in noted) / len(noted))
    return [{**about, "set": RATIO, "size": size, **ratio._asdict(), **nothing}]


def _layout(points: pd.DataFrame) -> tables.Table:
    groups = []
    for place, part in points.groupby(["task", "model", "dataset"], sort=False):
        task, model, dataset = map(str, place)
        rows = [
            [
                str(point["set"]),
                f"{point['size']:,}",
                point["printed_n_shown"],
                _score(point, task),
                point["printed_score_shown"],
            ]
            for _, point in part.iterrows()
        ]
        title = f"{lifelong.TASK_TITLES[task]} ({lifelong_captions.score_title(task)})"
        title += f": {model} on {captions.dataset_title(dataset)}"
        groups.append((f"{title}; printed: {' on '.join(reversed(PRINTED[task]))}", rows))
    return tables.Table(["Set", "prompts", "printed", "score before editing", "printed"], groups)


def _score(point: pd.Series, task: str) -> str:
    return score(point, task in LOWER_IS_BETTER or point["set"] == "Accurates")
