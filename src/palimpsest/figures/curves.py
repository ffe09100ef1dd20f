"""Metrics over the number of edits: Figures 4, 5, 6, 7 and 10 of COMEBA-HK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from palimpsest.errors import SettingsError
from palimpsest.figures import captions, overlaps, read, style
from palimpsest.figures.bootstrap import DRAWS, LEVEL
from palimpsest.figures.read import UNEDITED, Method, Run
from palimpsest.published import find_printed

METRICS = ("reliability", "generality", "locality")
ALIKE = METRICS[:2]  # what edits say and what their rephrasings say: on one axis
SWAP_TITLE = "Swap rate on\nlocality prompts"


@dataclass(frozen=True)
class Line:
    """One line: its name, look, and the runs (seeds, models, data sets) behind it."""

    title: str
    colour: Any
    marker: str
    dashes: str
    runs: tuple[Run, ...]
    published: str | None = None


def draw(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Rows: model and data set; columns: metrics; one line per method or value of a setting."""
    runs = read.select(spec, run_dirs)
    options = spec.get("options") or {}
    lines = lines_of(spec, runs)
    rows = [
        (model, dataset)
        for model in read.ordered(spec.get("models"), (run.spec["model"] for run in runs))
        for dataset in read.ordered(spec.get("datasets"), (run.spec["dataset"] for run in runs))
    ]
    columns = [*METRICS, *(["swap_rate"] if options.get("swap_rate") else [])]
    with style.house_style():
        legend = len(columns) > len(METRICS)  # not every line reaches the last column: names go on top
        whose = _whose(options, runs)
        extra = 0.55 * legend + 0.25 * bool(whose)
        figure = style.new_figure(style.WIDTH + 0.15, 0.55 + extra + 1.95 * len(rows))
        axes = figure.subplots(len(rows), len(columns), sharex=True, squeeze=False)
        points: list[dict[str, Any]] = []
        cut = False
        for row, (model, dataset) in enumerate(rows):
            shown = {
                metric: _panel(axis, lines, model, dataset, metric, options)
                for axis, metric in zip(axes[row], columns, strict=True)
            }
            for axis, metric in zip(axes[row], columns, strict=True):
                alike = ALIKE if metric in ALIKE else (metric,)
                cut |= style.share_axis(axis, min(_lowest(shown[name]) for name in alike))
            points += [point for own in shown.values() for point in own]
            _label_row(axes[row], model, dataset, len({m for m, _ in rows}) > 1)
            if not legend:
                style.end_labels(axes[row][-1], _line_ends(lines, model, dataset, columns[-1], points))
        if legend:
            _legend(figure, lines, whose)
        elif whose:
            figure.suptitle(whose, fontsize=9, fontweight="bold")
        for column, metric in enumerate(columns):
            axes[0][column].set_title(style.METRIC_TITLES.get(metric, SWAP_TITLE), pad=8)
            axes[-1][column].set_xlabel("edits made")
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        hidden = overlaps.show(figure, [axis for row in axes for axis in row])
        foot = style.CUT_WORDS if cut else ""
        caption = _caption(spec, runs, points, hidden, foot)
        return style.save_figure(figure, name, out, pd.DataFrame(points), caption)


def _whose(options: dict[str, Any], runs: Sequence[Run]) -> str:
    """The one method whose setting tells the lines apart, and its model; empty where lines are named for methods."""
    titles = read.ordered(None, (str(run.spec.get("title") or run.spec["editor"]) for run in runs))
    models = read.ordered(None, (run.spec["model"] for run in runs))
    if options.get("series", "method") == "method" or len({run.spec["editor"] for run in runs}) > 1:
        return ""
    return titles[0].partition(" (")[0] + (f" on {models[0]}" if len(models) == 1 else "")


def _lowest(points: Sequence[dict[str, Any]]) -> float:
    """The lowest thing drawn: an interval's end, a printed number, the unedited model."""
    return min((min(point["mean"], point.get("low", 1.0)) for point in points), default=0.0)


def lines_of(spec: dict[str, Any], runs: Sequence[Run]) -> list[Line]:
    """What tells lines apart: the method, or one setting of one editor."""
    series = (spec.get("options") or {}).get("series", "method")
    methods = read.methods_of(spec, runs)
    if series == "method":
        return [_method_line(method, runs) for method in methods if any(method.fits(run) for run in runs)]
    if series not in SERIES:
        raise SettingsError(
            f"figure '{spec.get('name')}': options.series is '{series}', expected method, {', '.join(SERIES)}"
        )
    keyed: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        keyed.setdefault((*SERIES[series](run), run.spec["editor"]), []).append(run)
    keys = sorted(keyed)
    colours = dict(
        zip(
            [key for key in keys if not key[0]],
            style.sequence_colours(sum(not key[0] for key in keys)),
            strict=True,
        )
    )
    several = len({run.spec["editor"] for run in runs}) > 1
    lines = []
    for number, key in enumerate(keys):
        odd = bool(key[0])  # a value of another kind, such as a fixed alpha, stands apart from the sequence
        title = series_title(series, key, keys)
        if several:
            title = f"{keyed[key][0].spec.get('title')}, {title}"
        lines.append(
            Line(
                title,
                style.INK if odd else colours[key],
                "osD^vPX*"[number % 8],
                "--" if odd else "-",
                tuple(keyed[key]),
            )
        )
    return lines


def _method_line(method: Method, runs: Sequence[Run]) -> Line:
    own = tuple(run for run in runs if method.fits(run))
    marker = style.method_marker(method.editor, method.variant)
    dashes = style.method_dashes(method.editor, method.variant)
    return Line(
        method.title,
        style.method_colour(method.editor, method.variant),
        marker,
        dashes,
        own,
        method.published,
    )


def lambda_of(run: Run) -> float:
    """lambda as a multiple of the key width where the run says so, else the absolute lambda."""
    ratio = run.settings.get("lam_ratio")
    value = ratio if ratio is not None else run.settings.get("lam")
    return float(value) if value is not None else float("nan")


def _lambda_key(run: Run) -> tuple[Any, ...]:
    return False, run.settings.get("lam_ratio") is None, lambda_of(run)


def _alpha_key(run: Run) -> tuple[Any, ...]:
    return bool(run.settings.get("fixed_alpha")), float(run.settings.get("alpha_z", float("nan")))


def _layers_key(run: Run) -> tuple[Any, ...]:
    return False, len(run.settings.get("layers") or ())


def _batch_key(run: Run) -> tuple[Any, ...]:
    return False, int(run.spec["batch_size"])


SERIES: dict[str, Callable[[Run], tuple[Any, ...]]] = {
    "lambda": _lambda_key,
    "alpha": _alpha_key,
    "layers": _layers_key,
    "batch_size": _batch_key,
}


def series_title(series: str, key: tuple[Any, ...], keys: Sequence[tuple[Any, ...]]) -> str:
    """How a value of a setting is written at the line's end."""
    if series == "lambda":
        return f"λ = {key[2]:g}" if key[1] else f"λ = {key[2]:.3g} $d_k$"
    if series == "alpha":
        return f"α = {key[1]:g} fixed" if key[0] else f"$α_0$ = {key[1]:g}"
    if series == "layers":
        count = key[1]
        if count == 1:
            return "last layer"
        largest = max(other[1] for other in keys)
        return f"all {count} layers" if count == largest else f"last {count} layers"
    return f"batches of {key[1]:,}"


def _panel(
    axis: Axes, lines: Sequence[Line], model: str, dataset: str, metric: str, options: dict[str, Any]
) -> list[dict[str, Any]]:
    points = []
    for line in lines:
        own = [run for run in line.runs if run.spec["model"] == model and run.spec["dataset"] == dataset]
        measured = _measure_line(own, metric, options)
        if not measured:
            continue
        table = pd.DataFrame(measured)
        axis.fill_between(table["n_edits"], table["low"], table["high"], color=line.colour, alpha=0.16, lw=0)
        axis.plot(
            table["n_edits"],
            table["mean"],
            color=line.colour,
            marker=line.marker,
            ls=line.dashes,
            mec="white",
            mew=0.6,
        )
        identity = {
            "model": model,
            "dataset": dataset,
            "line": line.title,
            "metric": metric,
            "source": "measured",
        }
        points += [{**identity, **row} for row in measured]
        points += _printed(axis, line, model, dataset, metric, table["n_edits"].max(), options)
    points += _unedited(axis, lines, model, dataset, metric)
    return points


def _unedited(
    axis: Axes, lines: Sequence[Line], model: str, dataset: str, metric: str
) -> list[dict[str, Any]]:
    """A dotted line at the score before any edit, of what can rise; locality is 1 there by definition."""
    if metric not in ("reliability", "generality"):
        return []
    runs = [run for line in lines for run in line.runs]
    here = [run for run in runs if (run.spec["model"], run.spec["dataset"]) == (model, dataset)]
    before = read.before_editing(read.one_per_seed(here), metric)
    if before is None:
        return []
    style.unedited_line(axis, before)
    same = {"model": model, "dataset": dataset, "line": "unedited", "metric": metric}
    return [{**same, "source": UNEDITED.editor, "n_edits": 0, "mean": before}]


def _measure_line(runs: Sequence[Run], metric: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    split = options.get("locality_split", "locality") if metric in ("locality", "swap_rate") else None
    snapshots = sorted({n_edits for run in runs for n_edits in run.snapshots(metric, split)})
    rows = []
    for n_edits in snapshots:
        found = read.measure(
            runs, metric, split, n_edits, options.get("draws", DRAWS), options.get("level", LEVEL)
        )
        if found:
            rows.append({"n_edits": n_edits, **found._asdict()})
    return rows


def _printed(
    axis: Axes, line: Line, model: str, dataset: str, metric: str, reached: float, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The paper's number as a hollow mark, where it gives one at a number of edits that this run reaches."""
    published = options.get("published") or {}
    at = published.get("at")
    printed_model = (published.get("models") or {}).get(model)
    printed_dataset = captions.printed_dataset(dataset, published)
    if not (
        at and printed_model and printed_dataset and line.published and reached >= at and metric in METRICS
    ):
        return []
    cell = find_printed(
        published["table"], dataset=printed_dataset, model=printed_model, method=line.published, metric=metric
    )
    if cell is None:
        return []
    axis.plot(
        [at],
        [cell.value],
        marker=line.marker,
        mfc="none",
        mec=line.colour,
        mew=1.2,
        ms=7,
        ls="none",
        zorder=5,
    )
    return [
        {
            "model": model,
            "dataset": dataset,
            "line": line.title,
            "metric": metric,
            "source": f"printed, {cell.location}",
            "n_edits": at,
            "mean": cell.value,
        }
    ]


def _label_row(axes: Sequence[Axes], model: str, dataset: str, name_model: bool) -> None:
    title = captions.dataset_title(dataset)
    axes[0].set_ylabel(f"{title}\n{model}" if name_model else title, fontweight="bold", labelpad=6)
    for axis in axes:
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _line_ends(
    lines: Sequence[Line], model: str, dataset: str, metric: str, points: Sequence[dict[str, Any]]
) -> list[tuple[float, float, str, Any]]:
    """Last measured point of every line in one panel."""
    ends = []
    for line in lines:
        wanted = (model, dataset, metric, "measured", line.title)
        own = [p for p in points if (p["model"], p["dataset"], p["metric"], p["source"], p["line"]) == wanted]
        if own:
            ends.append((own[-1]["n_edits"], own[-1]["mean"], line.title, line.colour))
    return ends


def _legend(figure: Figure, lines: Sequence[Line], title: str) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=line.colour,
            marker=line.marker,
            ls=line.dashes,
            mec="white",
            mew=0.6,
            label=line.title,
        )
        for line in lines
    ]
    columns = min(len(handles), 7 if max(len(line.title) for line in lines) < 14 else 4)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.4, handlelength=2.6,
        title=title or None, title_fontproperties={"size": 9, "weight": "bold"},
    )  # fmt: skip


def _caption(spec: dict[str, Any], runs: Sequence[Run], points: Sequence[dict[str, Any]], *seen: str) -> str:
    options = spec.get("options") or {}
    words = [
        captions.counts(runs),
        "Every point judges all edits made so far.",
        captions.intervals(options.get("level", LEVEL)),
        captions.trained_once(runs),
    ]
    if any(str(point["source"]).startswith("printed") for point in points):
        words.append("Hollow marks: the number printed in the paper.")
    elif options.get("published"):
        words.append(
            f"The paper prints numbers only at {options['published'].get('at', 1000):,} edits, "
            "beyond these runs."
        )
    if options.get("swap_rate"):
        words.append(
            "Swap rate: share of locality prompts in which a hook layer swaps any token; a swap away from the subject may "
            "change no answer."
        )
    if any(point["source"] == UNEDITED.editor for point in points):
        words.append("Dotted: the unedited model, on all of a run's edits.")
    if options.get("series") == "alpha":
        words += [captions.alpha_words(runs), "Where lines lie on each other, their α₀ made no difference."]
    return captions.caption(spec, *words, *seen)
