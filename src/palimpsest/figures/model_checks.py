"""Are the models fit to be edited? Target-vector ceiling per block, recall, and loss of pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from palimpsest.errors import DataError
from palimpsest.figures import captions, style
from palimpsest.figures.bootstrap import share_limits
from palimpsest.files import read_json

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#117733", "#661100")
_MARKERS = "osD^vP"


def draw_critical_path(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Ceiling and state swap per block, and recall, of every model and data set that has a gate file."""
    del run_dirs  # gates are properties of models, not of runs
    gates = [_gate(Path(path)) for path in spec.get("gates") or ()]
    if not gates:
        raise DataError("no gate files are given", field="gates", remedy="List them in the figure's spec")
    datasets = list(dict.fromkeys(gate["dataset"] for gate in gates))
    models = list(dict.fromkeys(gate["model"] for gate in gates))
    points: list[dict[str, Any]] = []
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 0.75 + 2.15 * len(datasets))
        axes = figure.subplots(len(datasets), 2, width_ratios=[1.9, 1], squeeze=False)
        for row, dataset in enumerate(datasets):
            own = [gate for gate in gates if gate["dataset"] == dataset]
            for gate in own:
                points += _ceiling_lines(axes[row][0], gate, models.index(gate["model"]))
            points += _recall_bars(axes[row][1], own, models)
            axes[row][0].set_ylabel(f"{captions.dataset_title(dataset)}\nshare of facts", labelpad=6)
            style.unit_axis(axes[row][0])
        axes[-1][0].set_xlabel("block")
        axes[-1][1].set_xlabel("share of facts")
        axes[0][0].set_title("Target-vector ceiling and state swap", pad=6)
        axes[0][1].set_title("Recall", pad=6)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
        style.panel_letters([axis for row in axes for axis in row])
        style.stamp(figure, captions.stamp_text(spec))
        caption = captions.caption(spec, _gate_words(gates), metrics=False)
        return style.save_figure(figure, name, out, pd.DataFrame(points), caption)


def _gate(path: Path) -> dict[str, Any]:
    gate: dict[str, Any] = read_json(path)
    gate["model"] = gate["model"] if isinstance(gate.get("model"), str) else path.parent.name
    gate["dataset"] = (
        gate["dataset"] if isinstance(gate.get("dataset"), str) else path.stem.removeprefix("gate-")
    )
    return gate


def _interval(share: float, n: int | None) -> dict[str, Any]:
    """Number of facts and 95 % limits, where the gate's file says how many were tried."""
    if not n:
        return {}
    low, high = share_limits(share, n)
    return {"n": n, "low": low, "high": high}


def _ceiling_lines(axis: Axes, gate: dict[str, Any], number: int) -> list[dict[str, Any]]:
    points = []
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    for field, dashes, words, tried in (
        ("ceiling", "-", "ceiling", "probed"),
        ("state_swap", ":", "state swap", "swapped"),
    ):
        blocks = sorted(
            (int(block), float(value))
            for block, value in (gate.get(field) or {}).items()
            if value is not None
        )
        if not blocks:
            continue
        axis.plot(
            *zip(*blocks, strict=True),
            color=colour,
            ls=dashes,
            marker=marker,
            mec="white",
            mew=0.6,
            label=f"{gate['model']}, {words}",
        )
        own = [
            {
                "model": gate["model"],
                "dataset": gate["dataset"],
                "measure": field,
                "block": block,
                "value": value,
                **_interval(value, gate.get(tried)),
            }
            for block, value in blocks
        ]
        points += own
        # Bands of the swaps are in the csv alone: six of them would hide each other.
        if gate.get(tried) and field == "ceiling":
            low, high = ([point[end] for point in own] for end in ("low", "high"))
            axis.fill_between([block for block, _ in blocks], low, high, color=colour, alpha=0.1, lw=0)
    if isinstance(gate.get("threshold"), int | float):
        axis.axhline(float(gate["threshold"]), color=style.FAINT, lw=0.9, ls="--", zorder=1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return points


def _recall_bars(axis: Axes, gates: list[dict[str, Any]], models: list[str]) -> list[dict[str, Any]]:
    points = []
    names: list[str] = []
    fields = (("recall", "seen phrasing", 1.0), ("recall_rephrased", "new phrasing", 0.55))
    for gate in gates:
        colour = _COLOURS[models.index(gate["model"]) % len(_COLOURS)]
        for field, words, strength in fields:
            if gate.get(field) is None:
                continue
            axis.barh(len(names), gate[field], color=colour, alpha=strength, height=0.66)
            axis.text(
                gate[field] - 0.02 if gate[field] > 0.3 else gate[field] + 0.02,
                len(names),
                f"{gate[field]:.2f}",
                va="center",
                ha="right" if gate[field] > 0.3 else "left",
                fontsize=7.5,
                color="white" if gate[field] > 0.3 else style.INK,
            )
            names.append(f"{gate['model']}, {words}")
            points.append(
                {
                    "model": gate["model"],
                    "dataset": gate["dataset"],
                    "measure": field,
                    "value": gate[field],
                    **_interval(gate[field], gate.get("n")),
                }
            )
        if gate.get("majority_baseline") is not None:
            axis.axvline(gate["majority_baseline"], color=style.FAINT, lw=0.9, ls=":")
            points.append(
                {
                    "model": gate["model"],
                    "dataset": gate["dataset"],
                    "measure": "majority_baseline",
                    "value": gate["majority_baseline"],
                }
            )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1.0)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    return points


def _gate_words(gates: list[dict[str, Any]]) -> str:
    verdicts = "; ".join(
        f"{gate['model']} on {captions.dataset_title(gate['dataset'])}: {gate.get('verdict', 'no verdict')}"
        for gate in gates
    )

    def counts(field: str) -> str:
        found = sorted({int(gate[field]) for gate in gates if gate.get(field)})
        return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1]))) if found else "unstated"

    return (
        f"Facts tried per model and data set: {counts('probed')} for the ceiling, {counts('swapped')} for the swap, "
        f"{counts('n')} for recall; one pre-trained model each. Bands of the ceiling: 95 % interval "
        "of a share (Wilson); for all shares it is in the csv. "
        "Ceiling: share of facts whose new answer becomes the top prediction when the output of one block at "
        "the last subject token may be chosen freely within the clamp. State swap: share in which "
        "another subject's state at that token carries its own answer along. Dashed: the gate's "
        "threshold of the ceiling. Dotted in the right panels: the most frequent answer's share. "
        f"{_thresholds(gates)}"
        f"Gate verdicts: {verdicts}."
    )


def _thresholds(gates: list[dict[str, Any]]) -> str:
    """What a model must reach, as the gates' files have it; nothing where they do not say."""
    found: dict[str, set[float]] = {}
    for gate in gates:
        for name, value in (gate.get("thresholds") or {}).items():
            found.setdefault(name, set()).add(float(value))
    said = [
        f"{name.replace('_', ' ')} {' or '.join(f'{value:g}' for value in sorted(found[name]))}"
        for name in ("ceiling", "recall", "state_swap")
        if name in found
    ]
    return f"Thresholds of the gate: {', '.join(said)}. " if said else ""


def draw_training_curves(name: str, spec: dict[str, Any], run_dirs: list[Path], out: Path) -> list[Path]:
    """Loss of pre-training against tokens seen, and the learning rate, for every model trained here."""
    del run_dirs
    frames = []
    for path in map(Path, spec.get("training") or ()):
        try:
            frames.append(pd.read_csv(path).assign(model=path.parent.name))
        except (OSError, ValueError) as error:
            raise DataError(
                f"not a training record ({error})", file=path, remedy="Run the rule 'pretrain' again"
            ) from error
    if not frames:
        raise DataError(
            "no training records are given", field="training", remedy="List them in the figure's spec"
        )
    with style.house_style():
        figure = style.new_figure(style.WIDTH, 2.7)
        left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
        for number, frame in enumerate(frames):
            colour = _COLOURS[number % len(_COLOURS)]
            smooth = frame["loss"].ewm(span=max(len(frame) // 25, 1)).mean()
            left.plot(frame["tokens"] / 1e6, frame["loss"], color=colour, lw=0.6, alpha=0.3)
            # The same schedule as another's: broken, so that both are seen.
            again = any(frame["learning_rate"].equals(other["learning_rate"]) for other in frames[:number])
            dashes = "--" if again else "-"
            left.plot(frame["tokens"] / 1e6, smooth, color=colour, ls=dashes, label=frame["model"].iloc[0])
            right.plot(frame["tokens"] / 1e6, frame["learning_rate"] * 1e3, color=colour, ls=dashes)
        left.set_ylabel("loss (nats per token)")
        left.set_ylim(bottom=0)
        right.set_ylabel("learning rate × 1000")
        for axis in (left, right):
            axis.set_xlabel("million tokens seen")
        left.legend(loc="upper right")
        style.panel_letters([left, right])
        style.stamp(figure, captions.stamp_text(spec))
        words = "; ".join(
            f"{frame['model'].iloc[0]}: {int(frame['step'].iloc[-1]):,} steps, "
            f"{frame['tokens'].iloc[-1] / 1e6:.2f} million tokens, "
            f"{frame['seconds'].iloc[-1] / 60:.1f} minutes, last loss {frame['loss'].iloc[-1]:.2f}"
            for frame in frames
        )
        caption = captions.caption(
            spec,
            f"Pre-training of the models made here, one training each: no bands. {words}.",
            "Pale: as logged; strong: smoothed.",
            metrics=False,
        )
        return style.save_figure(figure, name, out, pd.concat(frames, ignore_index=True), caption)
