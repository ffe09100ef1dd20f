"""What makes figures legible: colours that differ for all readers, no hidden lines, marked rows, honest axes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from test_house import ROOT

from palimpsest.config import read_yaml
from palimpsest.figures import lambdas, overlaps, style, tables

# Linear RGB as normal, deuteranopic and protanopic readers see it (Machado, Oliveira and Fernandes 2009).
VISIONS = (
    np.eye(3),
    np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
)
XYZ = np.array(
    [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8730]]
)  # of a white of 1


def _lab(colour, vision):
    values = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    t = XYZ @ np.clip(vision @ linear, 0, 1)
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _difference(one, other):
    return min(float(np.linalg.norm(_lab(one, vision) - _lab(other, vision))) for vision in VISIONS)


def _drawn_together():
    """(figure, its methods) of every figure of lines that tells methods apart."""
    for path in sorted((ROOT / "config" / "experiments").glob("*.yaml")):
        for name, spec in read_yaml(path)["experiments"].items():
            lines = (
                "stream_curves",
                "edit_time",
                "crossover_curves",
                "batch_curves",
                "edit_cost",
                "curves",
                "batch_sizes",
            )
            if spec["drawer"] in lines and (spec.get("options") or {}).get("series", "method") == "method":
                entries = [entry if isinstance(entry, str) else entry["method"] for entry in spec["methods"]]
                yield (
                    name,
                    [
                        ((entry + ":default").split(":")[0], (entry + ":default").split(":")[1])
                        for entry in entries
                    ],
                )


def test_methods_that_share_a_figure_differ_for_all_readers():
    found = list(_drawn_together())
    assert {"grace_stream", "comeba_fig4", "serac_batches", "mend_sequence"} <= {name for name, _ in found}
    for name, methods in found:
        own = [method for method in methods if method in style.METHOD_COLOURS]
        for one, other in combinations(own, 2):
            far = _difference(style.METHOD_COLOURS[one], style.METHOD_COLOURS[other])
            # A near shade needs a mark or dashes of its own; one and the same shade is never right.
            same_look = (style.method_marker(*one), style.method_dashes(*one)) == (
                style.method_marker(*other), style.method_dashes(*other)
            )  # fmt: skip
            assert far > (15 if same_look else 9), (name, one, other, far)


def _figure(*lines):
    with style.house_style():
        figure = style.new_figure()
        axis = figure.subplots()
        for heights in lines:
            axis.plot([50, 100, 200], heights, marker="o")
        style.unit_axis(axis)
    return figure, axis


def test_lines_on_each_other_are_drawn_in_turns_and_others_are_left_alone():
    figure, axis = _figure([0, 0, 0.3], [0, 0, 0.9])
    assert overlaps.show(figure, [axis]) == overlaps.WORDS
    first, second, *added = axis.get_lines()
    assert first.get_markevery() == second.get_markevery() == [2]  # the two shared points stand aside
    pieces = [line for line in added if line.get_marker() == "None"]
    assert [line.get_color() for line in pieces] == [first.get_color(), second.get_color()]
    assert len([line for line in added if line.get_marker() == "o"]) == 4
    for line in added:
        assert set(line.get_ydata()) == {0}  # moved aside, never up or down

    figure, axis = _figure([0, 0, 0], [0.2, 0.2, 0.2])
    assert overlaps.show(figure, [axis]) == "" and len(axis.get_lines()) == 2


@pytest.mark.parametrize(("lowest", "start"), [(0.0, 0.0), (0.49, 0.0), (0.64, 0.6), (0.97, 0.8), (1.0, 0.8)])
def test_an_axis_that_does_not_begin_at_0_says_so(lowest, start):
    _, axis = _figure([1, 1, max(lowest, 0.5)])
    before = len(axis.get_lines())
    assert style.share_axis(axis, lowest) == (start > 0)
    assert len(axis.get_lines()) - before == (2 if start else 0)  # the strokes
    low, high = axis.get_ylim()
    assert low < start and low <= lowest and high > 1 and min(axis.get_yticks()) == pytest.approx(start)


def test_a_title_keeps_clear_of_its_panel_letter(tmp_path):
    with style.house_style():
        figure = style.new_figure(2.4, 2.0)
        axis = figure.subplots()
        axis.set_title("A title of its panel's width")
        style.panel_letters([axis])
        style.save_figure(figure, "it", tmp_path, pd.DataFrame({"x": [1]}), "words")
        figure.draw_without_rendering()
        assert axis._left_title.get_window_extent().x1 < axis.title.get_window_extent().x0


def test_rows_of_fewer_seeds_are_marked_in_every_form():
    rows = [("a", "Unedited", 4), ("a", "FT", 3), ("a", "SERAC", 1), ("b", "FT", 3), ("b", "not run", None)]
    points = pd.DataFrame(rows, columns=["model", "method", "seeds"])
    groups = [(model, [[name, "1"] for name in own["method"]]) for model, own in points.groupby("model")]
    plain = tables.Table(["Method", "ES"], groups, frozenset({(0, 2, 1)}))
    table = tables.mark_fewer_seeds(plain, points, ["model"])
    assert [row[0] for _, own in table.groups for row in own] == [
        "Unedited",
        "FT",
        "SERAC ‡",
        "FT",
        "not run",
    ]
    assert table.notes == ("‡ Fewer seeds: 1, where the other rows have 3.",)
    assert "| SERAC ‡ | **1** |" in tables.markdown(table) and table.notes[0] in tables.markdown(table)
    assert r"SERAC $^\ddagger$ & \textbf{1}" in tables.latex(table, "words")
    assert r"\footnotesize $^\ddagger$ Fewer seeds" in tables.latex(table, "words")
    with style.house_style():
        texts = [text.get_text() for text in tables.picture(table).axes[0].texts]
    assert table.notes[0] in texts and "SERAC ‡" in texts
    same = tables.mark_fewer_seeds(plain, points.assign(seeds=2), ["model"])
    assert same == plain


def test_what_is_compared_stands_under_one_heading():
    rows = pd.DataFrame(
        [
            ("MEMIT", 0.5, "equal, ratio"),
            ("COMEBA-HK", 0.375, "ratio"),
            ("COMEBA-HK", 0.5, "equal"),
            ("MEMIT", 1.0, ""),
        ],
        columns=["method", "lambda", "pair"],
    )
    found = [
        row if isinstance(row, str) else (row["method"], row["lambda"]) for row in lambdas._arranged(rows)
    ]
    assert found == [
        "the same λ", ("COMEBA-HK", 0.5), ("MEMIT", 0.5),
        "the paper's ratio, 15,000 : 20,000", ("COMEBA-HK", 0.375), ("MEMIT", 0.5),
        "no counterpart", ("MEMIT", 1.0),
    ]  # fmt: skip
