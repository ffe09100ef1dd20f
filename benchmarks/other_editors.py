"""Seconds per edit of the editors that only work edit by edit: `LanguageModel.lean` off against on, in one process.

Off, every block is run at every step by the network's own modules; on, they are as users have them. Operations are counted
in runs of their own (`measure.operations`). SERAC, retrieval and LU store an edit after at most one pass: they have one form.
"""

from __future__ import annotations

from typing import Any

from measure import Taken, operations, product_rate, taking
from shapes import blocks_and_layers, edits, random_model

STEPPING = ("defer", "memory", "ft_ewc", "ft_retrain")  # they are given a number of steps
TWO_FORMS = (*STEPPING, "mend")


def other(name: str, shape: str, count: int, steps: int, device: str, dtype: str) -> dict[str, Any]:
    """Both forms where there are two; learned editors as they start. No early stop. Of few blocks nothing is extrapolated."""
    blocks, rate = blocks_and_layers(shape, device)[0], product_rate(device, dtype)
    fast, found = _edited(name, shape, count, steps, device, dtype, lean=True)
    result = {
        "edits": count,
        "blocks": blocks,
        "fast": fast.plain(count),
        "rate": rate,
        "flops": {"fast": _counted(name, shape, count, steps, device, dtype, lean=True)},
    }
    if name in TWO_FORMS:
        slow, expected = _edited(name, shape, count, steps, device, dtype, lean=False)
        result |= {"plain": slow.plain(count), "plain_edits": count}
        result["flops"]["plain"] = _counted(name, shape, count, steps, device, dtype, lean=False)
        result["share_plain"] = result["flops"]["plain"] * count / slow.seconds / rate
        result["share_fast"] = result["flops"]["fast"] * count / fast.seconds / rate
        result["difference_of_losses"] = max(
            abs(a - b) / max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True)
        )
    if name in STEPPING:
        result["steps"] = steps
    return result


def _edited(
    name: str, shape: str, count: int, steps: int, device: str, dtype: str, lean: bool
) -> tuple[Taken, list[float]]:
    """(what a stream of edits took, one by one; a number of each edit that both forms must agree on)."""
    model = random_model(shape, device, dtype, lean=lean)
    editor = _made(name, shape, model, count, steps)
    _teach(editor, edits(count + 1)[count:])  # what the first edit alone pays: it is taken back
    editor.reset()
    with taking(device) as taken:
        reports = _teach(editor, edits(count))
    editor.remove()
    return taken, [_number(report) for report in reports]


def _counted(name: str, shape: str, count: int, steps: int, device: str, dtype: str, lean: bool) -> float:
    """Operations of an edit, the mean over the stream. The counter does not know fused attention, so it is switched off."""
    model = random_model(shape, device, dtype, lean=lean)
    model.network.config._attn_implementation = "eager"
    editor = _made(name, shape, model, count, steps)
    found = operations(lambda: _teach(editor, edits(count)))
    editor.remove()
    return found / count


def _made(name: str, shape: str, model: Any, count: int, steps: int) -> Any:
    from palimpsest.editors import make_editor

    blocks, more, settings = model.n_blocks, {}, {}
    if name in ("mend", "serac"):
        mend = {"layers": [blocks - 2, blocks - 1], "norm": False}
        settings = mend if name == "mend" else {"encoder": "scratch", "counterfactual": "scratch"}
        more = {"trained": _untrained(name, model, settings)}
    elif name in STEPPING:
        settings = {"layer": min(round(0.7 * blocks), blocks - 2), "steps": steps}
    if name.startswith("ft_"):
        settings |= {"learning_rate": 1e-3, "stop": "loss", "stop_loss": 0.0}
    if name == "ft_retrain":
        settings["retrain_frequency"] = max(1, count // 2)
    return make_editor(name, model, settings, **more)


def _teach(editor: Any, batch: list[Any]) -> list[Any]:
    reports = [editor.edit([edit], record=True) for edit in batch]
    for report in reports:
        if report.failed:
            raise SystemExit(f"{editor.name}: {report.failed[0].reason}")
    return reports


def _number(report: Any) -> float:
    """The last loss of an edit, or where nothing is descended the size of what it writes."""
    record = report.record or {}
    if "edits" in record:
        return float(record["edits"][-1]["losses"][-1])
    if "losses" in record:
        return float(record["losses"][-1])
    return float(sum(update.norm() for update in record.get("updates", {}).values()))


def _untrained(name: str, model: Any, settings: dict[str, Any]) -> Any:
    from palimpsest.editors import editor_class
    from palimpsest.learning.artefact import TrainedEditor, plain_settings

    learner = editor_class(name).learner(model, settings, 0)
    return TrainedEditor(
        editor=name, model=model.fingerprint, model_name=model.name, data="", seed=0, steps=0, best_step=0,
        settings=plain_settings(learner.settings), validation={}, tensors=learner.tensors(),
    )  # fmt: skip
