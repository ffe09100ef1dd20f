"""How the learned editors were trained: losses of every training at this scale, and the step whose state was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

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
_ACROSS = 5
_FEW = 3  # with more trainings in a panel those on training edits would hide the others
_NEAR = 2.0  # trainings that end within this factor of the default's are one bundle on the axis of all
_BUNDLE = 4  # a bundle of so many lines has a panel of its own
ALL, BUNDLE = "all", "bundle"  # the two views of a panel with a bundle
# Safe for colour-blind readers as far as ten colours can be.
_PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#882255",
    "#56B4E9",
    "#332288",
    "#999933",
    "#661100",
)
_DASHES = ("-", "--", ":", "-.")
Key = tuple[str, str, str, str]  # editor, model, data set, view


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """A panel for each editor, model and data set, a line for each of its trainings: validation strong, training pale.

    Panels of several trainings stand first and are larger, each line with its name at the end; lines that end near the
    default's have a panel of their own, and are pale in that of all.

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
    together: dict[tuple[str, str, str], list[Part]] = {}
    for part in sorted(found, key=lambda part: str(part[0]["editor"])):  # editor after editor
        together.setdefault(_place(part[0]), []).append(part)
    panels = {(*place, view): own for place, parts in together.items() for view, own in _views(parts).items()}
    looks = _looks([[_short(entry) for entry, _, _ in parts] for parts in panels.values()])
    rows = _rows(panels)
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.6, 0.2 + sum(height for _, _, height in rows))
        parts = figure.subfigures(
            len(rows), 1, height_ratios=[height for _, _, height in rows], squeeze=False
        )
        shown = []
        for number, ((keys, across, _), [part]) in enumerate(zip(rows, parts, strict=True)):
            axes = part.subplots(1, across, squeeze=False)[0]
            for axis, key in zip(axes, keys, strict=False):
                pale = panels[*key[:3], BUNDLE] if key[3] == ALL else ()
                _panel(axis, key, panels[key], looks, pale)
                axis.set_title(_title(key, across), pad=6, fontsize=7)
                if number == len(rows) - 1 or rows[number + 1][1] != across:
                    axis.set_xlabel("steps", labelpad=2)
            for axis in axes[len(keys) :]:
                axis.set_axis_off()
            axes[0].set_ylabel(f"{keys[0][0].upper()}: loss" if across == _ACROSS else "loss")
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
        return style.save_figure(
            figure, name, out, points, _caption(spec, found, any(key[3] == BUNDLE for key in panels))
        )


def _views(parts: list[Part]) -> dict[str, list[Part]]:
    """One view; or, where many trainings end near the default's, all others beside it, and these."""
    last = {_short(entry): float(_total(table, "valid")["value"].iloc[-1]) for entry, table, _ in parts}
    if DEFAULT not in last:
        return {"": parts}
    near = {name for name, value in last.items() if 1 / _NEAR < value / last[DEFAULT] < _NEAR}
    if len(near) < _BUNDLE or len(last) - len(near) < 2:
        return {"": parts}
    away = [part for part in parts if _short(part[0]) not in near - {DEFAULT}]
    return {ALL: away, BUNDLE: [part for part in parts if _short(part[0]) in near]}


def _rows(panels: Mapping[Key, Sequence[Part]]) -> list[tuple[list[Key], int, float]]:
    """(panels, room for panels, height) of each row: the more lines with names at their ends, the more room."""

    def size(key: Key) -> int:
        return 2 if key[3] or len(panels[key]) > _FEW + 1 else 3 if len(panels[key]) > 1 else _ACROSS

    rows = []
    for across, height in ((2, 2.75), (3, 1.8), (_ACROSS, 1.4)):
        chosen = [key for key in panels if size(key) == across]
        # The editor of small panels stands at their row, not in their titles.
        editors = list(dict.fromkeys(key[0] for key in chosen)) if across == _ACROSS else [""]
        for editor in editors:
            own = [key for key in chosen if editor in ("", key[0])]
            rows += [(own[start : start + across], across, height) for start in range(0, len(own), across)]
    return rows


def _title(key: Key, across: int) -> str:
    editor, model, dataset, view = key
    first = model if across == _ACROSS else f"{editor.upper()}: {model}"
    return f"{first}\n{captions.dataset_title(dataset)}" + (", near the default" if view == BUNDLE else "")


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


def _place(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["editor"], entry["model"], entry["dataset"]


def _total(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[(table["loss"] == TOTAL) & (table["split"] == split)]


def _panel(
    axis: Axes, key: Key, parts: Sequence[Part], looks: dict[str, tuple[Any, str]], pale: Sequence[Part] = ()
) -> None:
    ends = []
    for entry, table, _ in pale:
        if _short(entry) != DEFAULT:
            own = _total(table, "valid")
            axis.plot(own["step"], own["value"], color=style.FAINT, lw=0.7, alpha=0.6, zorder=1.5)
    for entry, table, description in parts:
        colour, dashes = looks[_short(entry)]
        seen, valid = _total(table, "train"), _total(table, "valid")
        if len(parts) <= _FEW:
            axis.plot(seen["step"], seen["value"], color=colour, lw=0.6, alpha=0.35)
        axis.plot(valid["step"], valid["value"], color=colour, ls=dashes, lw=1.3)
        kept = valid[valid["step"] == description["best_step"]]
        axis.plot(kept["step"], kept["value"], color=colour, marker="o", ms=4.5, mec="white", ls="none")
        name = _short(entry) + (f" and {len(pale) - 1} near it" if pale and _short(entry) == DEFAULT else "")
        ends.append((float(valid["step"].iloc[-1]), float(valid["value"].iloc[-1]), name, colour))
    axis.set_yscale("log")
    style.log_ticks(axis)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if len(parts) > 1:
        style.end_labels(axis, ends, size=6.8, gap=0.07 if key[3] or len(parts) > _FEW + 1 else 0.12)
    elif ends[0][2] != DEFAULT:
        name, colour = ends[0][2:]
        axis.text(
            0.97,
            0.95,
            name,
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=6.8,
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5},
        )


def _looks(panels: Sequence[Sequence[str]]) -> dict[str, tuple[Any, str]]:
    """Colour and dashes of every variant, the same everywhere, no colour twice in a panel if they suffice; the default in ink."""
    looks: dict[str, tuple[Any, str]] = {}
    for name in dict.fromkeys(name for names in panels for name in names):
        if name == DEFAULT:
            looks[name] = style.INK, "-"
            continue
        beside = {looks[other][0] for names in panels if name in names for other in names if other in looks}
        free = [look for look in _every_look() if look not in looks.values()]
        looks[name] = next((look for look in free if look[0] not in beside), free[0])
    return looks


def _every_look() -> list[tuple[Any, str]]:
    return [(colour, dashes) for dashes in _DASHES for colour in _PALETTE]


def _short(entry: dict[str, Any]) -> str:
    """The variant: "MEND (no sharing)" as "no sharing", since the panel names the editor."""
    title = str(entry["title"])
    inside = title.partition("(")[2].rstrip(")")
    return inside or (DEFAULT if title.lower() == entry["editor"] else title)


def _points(entry: dict[str, Any], table: pd.DataFrame, description: dict[str, Any]) -> pd.DataFrame:
    named = {key: entry[key] for key in ("editor", "title", "model", "dataset")}
    return table.assign(**named, kept=table["step"] == description["best_step"])


def _caption(spec: dict[str, Any], found: Sequence[Part], bundled: bool) -> str:
    steps = [int(description["steps"]) for _, _, description in found]
    span = f"{min(steps):,}" + (f" to {max(steps):,}" if max(steps) > min(steps) else "")
    seeds = sorted({int(description["seed"]) for _, _, description in found})
    words = [
        f"{len(found)} trainings, {span} steps each; seed {', '.join(map(str, seeds))} serves all runs of a model and "
        "data set.",
        f"Strong: total loss on the fixed validation edits; pale, in panels of up to {_FEW} trainings: on training edits; dot: "
        "the state that is kept. Names stand at the ends of the lines where a panel has several, in the order of the last loss; "
        "default: with the settings of the editor's file. Losses of different objectives cannot be compared.",
    ]
    if bundled:
        words.append(
            f"Near the default: trainings that end within a factor of {_NEAR:g} of it, pale in the panel before."
        )
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
