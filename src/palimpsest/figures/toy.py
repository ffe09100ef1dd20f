"""GRACE's illustrative figure: decision regions before and after editing, by one key and by fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from palimpsest.errors import DataError
from palimpsest.figures import captions, lifelong, style
from palimpsest.files import read_json

_CLASSES = ("#0072B2", "#D55E00")
# Uncertain is pale, but never white: the two classes can be told apart up to their boundary.
_REGIONS = LinearSegmentedColormap.from_list(
    "regions", [(0.0, "#7FB4D6"), (0.5, "#D6E7F2"), (0.5, "#F8E2D1"), (1.0, "#E8A878")]
)
_MARKS = ("o", "s")
_FIRES = "#882255"
_LINES = {"trr": ("upstream points right", "#333333", "o"), "err": ("edits right", "#882255", "X"),
          "holdout": ("unseen flipped points right", "#44AA99", "d")}  # fmt: skip


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Panels: data, flipped points, three decision maps, and the sweep over the initial radius.

    `spec["toy"]` (or options.toy) names the file that the rule `grace_toy` wrote.
    """
    del run_dirs
    path = spec.get("toy") or (spec.get("options") or {}).get("toy")
    if not path:
        raise DataError(
            "no toy results are given", field="toy", remedy="Name the file toy.json in the figure's spec"
        )
    content = read_json(path)
    for field in ("settings", "rows", "maps", "seeds"):
        if field not in content:
            raise DataError(
                "the field is missing", file=path, field=field, remedy="Run the rule 'grace_toy' again"
            )
    rows, maps, settings = pd.DataFrame(content["rows"]), content["maps"], content["settings"]
    first = rows[rows["seed"] == content["seeds"][0]]
    with style.house_style():
        figure = style.new_figure(style.WIDTH + 0.4, 4.75)
        axes = figure.subplots(2, 3)
        for axis in axes.ravel()[:5]:
            _plane(axis, settings)
        _points(axes[0][0], maps["train"], size=13)
        axes[0][0].set_title("Training points", pad=7)
        _points(axes[0][1], maps["train"], size=9, alpha=0.25)
        _points(axes[0][1], maps["edits"], size=12, edge=True)
        _disc(axes[0][1], maps)
        axes[0][1].set_title("Flipped points: the edits", pad=7)
        shown = (
            ("unedited", "Unedited", axes[0][2]),
            ("ft", "Fine-tuned", axes[1][1]),
            ("grace", "GRACE", axes[1][0]),
        )
        for key, title, axis in shown:
            found = first[first["method"] == key]
            if key == "grace":
                found = found[found["radius"] == settings["radius"]]
            _region(axis, maps, key, settings)
            one = found.iloc[0]
            keys = f", {int(one['keys'])} key{'s' if one['keys'] != 1 else ''}" if key == "grace" else ""
            axis.set_title(title + keys, pad=7)
            axis.text(
                0.03, 0.03, f"TRR {one['trr']:.3f}  ERR {one['err']:.2f}", transform=axis.transAxes, fontsize=6.8,
                bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 2},
            )  # fmt: skip
        points = _sweep(axes[1][2], rows)
        handles = [
            Line2D(
                [],
                [],
                ls="none",
                marker=_MARKS[k],
                color=_CLASSES[k],
                mec="white",
                mew=0.5,
                label=f"class {k}",
            )
            for k in (0, 1)
        ]
        handles.append(Line2D([], [], color=style.INK, lw=1.0, label="decision boundary"))
        handles.append(Line2D([], [], color=_FIRES, lw=3.4, label="edge of where the key fires"))
        handles.append(Line2D([], [], color=style.INK, lw=0.8, ls=":", label="disc of flipped labels"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, columnspacing=1.4, handletextpad=0.5
        )
        style.panel_letters(list(axes.ravel()))
        style.stamp(figure, (spec.get("options") or {}).get("stamp") or "")
        return style.save_figure(figure, name, out, points, _caption(spec, content, rows))


def _plane(axis: Axes, settings: dict[str, Any]) -> None:
    extent = settings["extent"]
    axis.set_xlim(-extent, extent)
    axis.set_ylim(-0.72 * extent, 0.72 * extent)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(True)


def _points(
    axis: Axes, points: Sequence[Sequence[float]], size: float, alpha: float = 1.0, edge: bool = False
) -> None:
    found = np.asarray(points)
    for label in (0, 1):
        own = found[found[:, 2] == label]
        axis.scatter(
            own[:, 0], own[:, 1], s=size, marker=_MARKS[label], color=_CLASSES[label], alpha=alpha,
            edgecolors=style.INK if edge else "white", linewidths=0.5 if edge else 0.4, zorder=4,
        )  # fmt: skip


def _disc(axis: Axes, maps: dict[str, Any]) -> None:
    x, y, size = maps["disc"]
    axis.add_patch(Circle((x, y), size, fill=False, ls=":", lw=0.9, color=style.INK, zorder=5))


def _region(axis: Axes, maps: dict[str, Any], key: str, settings: dict[str, Any]) -> None:
    line = np.linspace(-settings["extent"], settings["extent"], settings["grid"])
    probability = np.asarray(maps[key])
    axis.imshow(
        probability, origin="lower", cmap=_REGIONS, vmin=0, vmax=1, interpolation="bilinear", zorder=0, aspect="equal",
        extent=(line[0], line[-1], line[0], line[-1]),
    )  # fmt: skip
    axis.set_xlim(line[0], line[-1])
    axis.set_ylim(0.72 * line[0], 0.72 * line[-1])
    axis.contour(line, line, probability, levels=[0.5], colors=[style.INK], linewidths=1.0, zorder=2)
    if key == "grace":
        axis.contour(
            line,
            line,
            np.asarray(maps["fires"]),
            levels=[0.5],
            colors=[_FIRES],
            linewidths=3.4,  # wider than the boundary, which lies on it wherever the key changes the class
            zorder=1,
        )
    _points(axis, maps["train"], size=5, alpha=0.35)
    _points(axis, maps["edits"], size=8, edge=True)
    _disc(axis, maps)


def _sweep(axis: Axes, rows: pd.DataFrame) -> pd.DataFrame:
    """Scores against the initial radius; the mean number of keys above each radius."""
    own = rows[rows["method"] == "grace"]
    tables = []
    for quantity, (title, colour, marker) in _LINES.items():
        points: list[dict[str, Any]] = []
        for radius, part in own.groupby("radius", sort=True):
            found = lifelong.spread(part[quantity])
            assert found is not None
            keys = float(part["keys"].mean())
            points.append(
                {"method": "grace", "quantity": quantity, "radius": radius, "keys": keys, **found._asdict()}
            )
        table = pd.DataFrame(points)
        axis.fill_between(table["radius"], table["low"], table["high"], color=colour, alpha=0.14, lw=0)
        axis.plot(
            table["radius"], table["mean"], color=colour, marker=marker, mec="white", mew=0.5, label=title,
            zorder=4 if quantity == "err" else 3,  # it lies on "unseen" where that is 1 too
        )  # fmt: skip
        tables.append(table)
    for _, point in tables[0].iterrows():
        axis.text(point["radius"], 1.075, f"{point['keys']:.3g}", ha="center", fontsize=6.8, color=style.INK)
    axis.text(
        -0.03, 1.075, "keys", transform=axis.get_yaxis_transform(), ha="right", fontsize=6.8, color=style.INK
    )
    axis.set_title("Initial radius, and keys", pad=7)
    axis.set_xscale("log")
    ticks = [radius for radius in tables[0]["radius"] if radius in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)]
    axis.set_xticks(
        ticks or list(tables[0]["radius"]), [f"{radius:g}" for radius in ticks or tables[0]["radius"]]
    )
    axis.minorticks_off()
    style.unit_axis(axis)
    axis.set_ylim(-0.03, 1.16)
    axis.set_box_aspect(0.72)
    axis.set_xlabel("initial radius")
    axis.legend(loc="lower center", fontsize=7, handlelength=1.4)
    for method in ("unedited", "ft"):
        for quantity in _LINES:
            found = lifelong.spread(rows.loc[rows["method"] == method, quantity])
            if found is not None:
                tables.append(pd.DataFrame([{"method": method, "quantity": quantity, **found._asdict()}]))
    return pd.concat(tables, ignore_index=True)


def _caption(spec: dict[str, Any], content: dict[str, Any], rows: pd.DataFrame) -> str:
    settings, seeds = content["settings"], content["seeds"]

    def words(method: str) -> str:
        own = rows[rows["method"] == method]
        if method == "grace":
            own = own[own["radius"] == settings["radius"]]
        return f"TRR {own['trr'].mean():.3f}, ERR {own['err'].mean():.2f}, unseen {own['holdout'].mean():.2f}"

    own = rows[(rows["method"] == "grace") & (rows["radius"] == settings["radius"])]
    keys = own["keys"].mean()
    several = len(seeds) > 1
    over = f"Means over {len(seeds)} seeds" if several else "One seed"
    bands = "Bands in the last panel: lowest to highest seed; small" if several else "Small"
    return captions.caption(
        {**spec, "scale": None},
        f"A network with two hidden layers of {settings['width']} ReLU units learns two classes of points; then the labels "
        f"in a small disc are flipped, and {settings['flipped']} points of it are edited one after the other, at the second "
        "layer. Computed here, without a language model.",
        f"Maps: the colour is the probability of the classes, seed {seeds[0]}. GRACE's initial radius there is "
        f"{settings['radius']:g}.",
        f"{over}: unedited {words('unedited')}; GRACE {words('grace')}, {keys:.2g} key{'s' if keys != 1 else ''}; "
        f"fine-tuned {words('ft')}. TRR (test retention rate): points outside the disc; ERR (edit retention rate): edited "
        "points; unseen: points of the disc that were never edited.",
        f"{bands} numbers in the last panel: mean number of keys.",
        metrics=False,
    )
