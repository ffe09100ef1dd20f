"""Lines that lie on each other: drawn in turns, and their points side by side, so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from palimpsest.figures import style

WORDS = "Where lines lie on each other they are drawn in turns, and their points side by side."
_DASH = 2.6  # length of a turn, in widths of the line
_COVERED = 0.4  # of its width: a mark so near to another one cannot be made out
_STEP = 0.7
_ROOM = 17.0  # points of the page at most, over which the marks of one place are spread

Thing = TypeVar("Thing")
Place = tuple[float, ...]  # heights on the page, in points: of a mark, or of both ends of a piece


def show(figure: Figure, axes: Sequence[Axes]) -> str:
    """Draw what is hidden in the panels, whose limits are final.

    Returns:
        the words that the caption needs; empty where no line hides another.
    """
    with style.house_style():
        figure.draw_without_rendering()  # how near two lines are is known when the panels have their size
    found = [_panel(axis, 72 / figure.dpi) for axis in axes if axis.axison]
    return WORDS if any(found) else ""


def _panel(axis: Axes, scale: float) -> bool:
    lines = [line for line in axis.get_lines() if str(line.get_marker()) not in ("None", "", " ")]
    pieces: dict[Place, list[tuple[Place, Line2D]]] = {}
    marks: dict[float, list[tuple[Place, tuple[Line2D, int]]]] = {}
    for line in lines:
        data = np.asarray(line.get_xydata(), dtype=float)
        if not len(data):
            continue
        heights = axis.transData.transform(data)[:, 1] * scale
        for number, (x, _) in enumerate(data):
            if x > 0:  # at the start all methods are the same model
                marks.setdefault(float(x), []).append(((float(heights[number]),), (line, number)))
            if number and line.get_linestyle() != "None":
                ends = float(heights[number - 1]), float(heights[number])
                pieces.setdefault((float(data[number - 1, 0]), float(x)), []).append((ends, line))
    covered = [
        (xs, [line for _, line in group])
        for xs, found in pieces.items()
        for group in _groups(found, near=lines[0].get_linewidth())
    ]
    near = _COVERED * max((line.get_markersize() for line in lines), default=0.0)
    beside = [[mark for _, mark in group] for found in marks.values() for group in _groups(found, near)]
    for piece, group in covered:
        _in_turns(axis, piece, group)
    _side_by_side(axis, beside)
    return bool(covered or beside)


def _groups(found: Sequence[tuple[Place, Thing]], near: float) -> list[list[tuple[Place, Thing]]]:
    """Those of two and more whose heights differ from the first one's by less than `near`."""
    groups: list[list[tuple[Place, Thing]]] = []
    for entry in found:
        for group in groups:
            if all(abs(a - b) < near for a, b in zip(entry[0], group[0][0], strict=True)):
                group.append(entry)
                break
        else:
            groups.append([entry])
    return [group for group in groups if len(group) > 1]


def _in_turns(axis: Axes, xs: Place, group: Sequence[Line2D]) -> None:
    if sum(line.get_linestyle() == "-" for line in group) < 2:
        return  # a broken line lets what is under it be seen
    top = max(line.get_zorder() for line in group)
    for turn, line in enumerate(group):
        data = np.asarray(line.get_xydata(), dtype=float)
        own = data[np.isin(data[:, 0], xs)]
        axis.plot(
            own[:, 0], own[:, 1], color=line.get_color(), lw=line.get_linewidth(), zorder=top + 0.1,
            ls=(-_DASH * turn, (_DASH, _DASH * (len(group) - 1))),
        )  # fmt: skip


def _side_by_side(axis: Axes, beside: Sequence[Sequence[tuple[Line2D, int]]]) -> None:
    moved: dict[Line2D, set[int]] = {}
    figure = axis.get_figure()
    assert figure is not None
    for group in beside:
        top = max(line.get_zorder() for line, _ in group)
        step = min(_STEP * group[0][0].get_markersize(), _ROOM / len(group))
        for place, (line, number) in enumerate(group):
            moved.setdefault(line, set()).add(number)
            aside = ScaledTranslation((place - (len(group) - 1) / 2) * step / 72, 0, figure.dpi_scale_trans)
            x, y = np.asarray(line.get_xydata(), dtype=float)[number]
            inside = axis.viewLim.contains(
                x, y
            )  # a mark moved over the edge is whole; what is beyond it stays out
            axis.plot(
                [x], [y], ls="none", transform=axis.transData + aside, color=line.get_color(), zorder=top + 0.2,
                marker=line.get_marker(), ms=line.get_markersize(), mew=line.get_markeredgewidth(),
                mfc=line.get_markerfacecolor(), mec=line.get_markeredgecolor(), clip_on=not inside,
            )  # fmt: skip
    for line, numbers in moved.items():
        line.set_markevery(
            [number for number in range(len(np.asarray(line.get_xdata()))) if number not in numbers]
        )
