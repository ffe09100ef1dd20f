"""How the learned editors were trained: losses of every training at this scale, and the step whose state was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from palimpsest.errors import DataError
from palimpsest.figures import captions, style
from palimpsest.files import read_json

Part = tuple[dict[str, Any], pd.DataFrame, Any]  # what was trained, its curve, its description
COLUMNS = ("step", "split", "loss", "value")
TOTAL = "total"
DEFAULT = "default"
_ACROSS = 4
_FEW = 3  # with more trainings in a panel those on training edits would hide the others


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """A panel for each editor, model and data set, a line for each of its trainings: validation strong, training pale.

    Panels of several trainings stand first and are larger, each line with its name at the end.

    `spec["trainings"]` lists {file, editor, title, model, dataset}; `trained.json` lies beside each file.

    Raises:
        DataError: there is no training, or a file lacks a column or has no validation.
    """
    del run_dirs
    entries = spec.get("trainings") or []
    if not entries:
        raise DataError(
            f"no training is named for figure '{name}'",
            field="trainings",
            remedy="Give files results/editors/{trained}/seed=N/training.csv",
        )
    found = [(entry, curve(Path(entry["file"])), read_json(_description(entry))) for entry in entries]
    panels: dict[tuple[str, str, str], list[Part]] = {}
    for part in sorted(found, key=lambda part: str(part[0]["editor"])):  # editor after editor
        panels.setdefault(_key(part[0]), []).append(part)
    looks = _looks(list(dict.fromkeys(_short(entry) for entry in entries)))
    rows = _rows(panels)
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.6, 0.2 + sum(height for _, _, height in rows))
        parts = figure.subfigures(
            len(rows), 1, height_ratios=[height for _, _, height in rows], squeeze=False
        )
        shown = []
        for (keys, across, _), [part] in zip(rows, parts, strict=True):
            axes = part.subplots(1, across, squeeze=False)[0]
            for axis, key in zip(axes, keys, strict=False):
                _panel(axis, key, panels[key], looks)
                axis.set_xlabel("steps", labelpad=2)
            for axis in axes[len(keys) :]:
                axis.set_axis_off()
            axes[0].set_ylabel("loss")
            shown += list(axes[: len(keys)])
        for letter, axis in zip(
            ascii_lowercase, shown, strict=False
        ):  # left of titles that fill the narrow panels
            axis.annotate(
                letter, (0, 1), xycoords="axes fraction", xytext=(-26, 10), textcoords="offset points",
                fontweight="bold", fontsize=9.5,
            )  # fmt: skip
        style.stamp(figure, captions.stamp_text(spec))
        points = pd.concat([_points(*part) for part in found], ignore_index=True)
        return style.save_figure(figure, name, out, points, _caption(spec, found))


def _rows(panels: Mapping[Any, Sequence[Part]]) -> list[tuple[list[Any], int, float]]:
    """(panels, room for panels, height) of each row: the more lines with names at their ends, the more room."""
    rows = []
    for least, most, across, height in (
        (_FEW + 2, None, 2, 3.1),
        (2, _FEW + 1, 3, 1.95),
        (1, 1, _ACROSS, 1.65),
    ):
        keys = [key for key, parts in panels.items() if least <= len(parts) <= (most or len(parts))]
        rows += [(keys[start : start + across], across, height) for start in range(0, len(keys), across)]
    return rows


def curve(path: Path) -> pd.DataFrame:
    """Rows of training.csv.

    Raises:
        DataError: the file is missing, lacks a column, or holds no loss of validation.
    """
    if not path.is_file():
        raise DataError("the file is missing", file=path, remedy="Run the rule 'train_editor' again")
    table = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DataError(
            f"the column '{missing[0]}' is missing", file=path, remedy="Run the rule 'train_editor' again"
        )
    if not len(_total(table, "valid")):
        raise DataError("no loss of validation", file=path, field="split", remedy="Train for more steps")
    return table


def _description(entry: dict[str, Any]) -> Path:
    return Path(entry["file"]).with_name("trained.json")


def _key(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["editor"], entry["model"], entry["dataset"]


def _total(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[(table["loss"] == TOTAL) & (table["split"] == split)]


def _panel(
    axis: Axes, key: tuple[str, str, str], parts: Sequence[Part], looks: dict[str, tuple[Any, str]]
) -> None:
    ends = []
    for entry, table, description in parts:
        colour, dashes = looks[_short(entry)]
        seen, valid = _total(table, "train"), _total(table, "valid")
        if len(parts) <= _FEW:
            axis.plot(seen["step"], seen["value"], color=colour, lw=0.6, alpha=0.35)
        axis.plot(valid["step"], valid["value"], color=colour, ls=dashes, lw=1.3)
        kept = valid[valid["step"] == description["best_step"]]
        axis.plot(kept["step"], kept["value"], color=colour, marker="o", ms=4.5, mec="white", ls="none")
        ends.append((float(valid["step"].iloc[-1]), float(valid["value"].iloc[-1]), _short(entry), colour))
    axis.set_yscale("log")
    style.log_ticks(axis)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    editor, model, dataset = key
    axis.set_title(f"{editor.upper()}: {model}\n{captions.dataset_title(dataset)}", pad=6, fontsize=7)
    if len(parts) > 1:
        style.end_labels(axis, ends, size=6.8, gap=0.062 if len(parts) > _FEW + 1 else 0.12)
    elif ends[0][2] != DEFAULT:
        name, colour = ends[0][2:]
        axis.text(
            0.97, 0.95, name, transform=axis.transAxes, ha="right", va="top", fontsize=6.8, color=colour
        )


def _looks(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Colour and dashes of every variant, the same in all panels; the default in ink."""
    palette = matplotlib.colormaps["tab10"]
    others = [name for name in names if name != DEFAULT]
    looks = {name: (palette(n % 10), ("-", "--", ":")[n // 10 % 3]) for n, name in enumerate(others)}
    return ({DEFAULT: (style.INK, "-")} if DEFAULT in names else {}) | looks


def _short(entry: dict[str, Any]) -> str:
    """The variant: "MEND (no sharing)" as "no sharing", since the panel names the editor."""
    title = str(entry["title"])
    inside = title.partition("(")[2].rstrip(")")
    return inside or (DEFAULT if title.lower() == entry["editor"] else title)


def _points(entry: dict[str, Any], table: pd.DataFrame, description: dict[str, Any]) -> pd.DataFrame:
    named = {key: entry[key] for key in ("editor", "title", "model", "dataset")}
    return table.assign(**named, kept=table["step"] == description["best_step"])


def _caption(spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], pd.DataFrame, Any]]) -> str:
    steps = [int(description["steps"]) for _, _, description in found]
    span = f"{min(steps):,}" + (f" to {max(steps):,}" if max(steps) > min(steps) else "")
    seeds = sorted({int(description["seed"]) for _, _, description in found})
    words = [
        f"{len(found)} trainings, {span} steps each; seed {', '.join(map(str, seeds))} serves all runs of a model and "
        "data set.",
        f"Strong: total loss on the fixed validation edits; pale, in panels of up to {_FEW} trainings: on training edits; dot: "
        "the state that is kept. Names stand at the ends of the lines where a panel has several; default: with the settings of "
        "the editor's file. Losses of different objectives cannot be compared.",
    ]
    worst = [
        f"{entry['title']} on {entry['model']}, {captions.dataset_title(entry['dataset'])}: {dropped}"
        for entry, table, _ in found
        if (dropped := _dropped(table))
    ]
    if worst:
        words.append("Steps dropped because a gradient was not finite: " + "; ".join(worst) + ".")
    return captions.caption(spec, *words, metrics=False)


def _dropped(table: pd.DataFrame) -> int:
    rows = table[table["loss"] == "dropped steps"]["value"]
    return int(rows.iloc[-1]) if len(rows) else 0
