"""Seconds per edit: plain form against the form the editors use, side by side in one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flops import (
    count_search,
    search_fast,
    search_plain,
    sizes,
    solve,
    tuning_fast,
    tuning_plain,
)
from measure import Taken, clock, product_rate, taking
from plain_forms import fine_tune, grace_value
from shapes import SHAPES, blocks_and_layers, contexts_of, edits, random_model, statistics

LEARNING = 0.025  # step of Adam, as a multiple of |h_0|
PAPER_STEPS = 20


def difference(ours, theirs) -> float:
    """Largest difference, relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def writer(name: str, shape: str, count: int, plain_count: int, steps: int, device: str, dtype: str) -> dict:
    """MEMIT, COMEBA-HK or ROME; "rome_rounds" is ROME on the untouched model at every edit, 64 prepared together.

    Plain: `plain_count` target vectors one by one, in padded rows through the whole model; then the batch is written with
    a new factor of the whole matrix for each layer. Fast: the editor as it is. No early stop in either. The factor of C_0,
    which all later batches and runs share, is timed for itself.
    """
    from palimpsest.editors import make_editor
    from palimpsest.editors.shared import key_value

    model, (blocks, layers) = random_model(shape, device, dtype), blocks_and_layers(shape, device)
    own = random_model(shape, device, dtype, lean=False)  # the same weights, with the library's activations
    rounds, name = name == "rome_rounds", name.removesuffix("_rounds")
    layers = layers[-1:] if name == "rome" else layers
    batch, groups, known = edits(count), contexts_of(shape), statistics(model, layers)
    flat = [text for group in groups for text in group]
    common = {
        "layers": list(layers),
        "steps": steps,
        "context_texts": groups,
        "stop_loss": 0.0,
    }
    common |= {} if name == "rome" else {"lam": 15000.0}
    common |= {"learning_rate_ratio": LEARNING, "clamp": 0.75}
    start = make_editor(name, model, common, known)
    search = start.settings.search("mlp" if name == "rome" else "block")
    rate, wide_rate = product_rate(device, dtype), product_rate(device, "float64")
    warm_up = replace(search, steps=2)
    key_value.SEARCHES["fast"](model, batch[:2], flat, warm_up)

    spent: list[float] = []
    searches, found = dict(key_value.SEARCHES), {}

    def timed(model_, edits_, contexts_, search_):
        began = clock(device)
        result = searches["fast"](model_, edits_, contexts_, search_)
        spent.append(clock(device) - began)
        found.update({edit.identifier: (result, i) for i, edit in enumerate(edits_)})
        return result

    def given(model_, edits_, contexts_, search_):
        return _stack([found[edit.identifier] for edit in edits_])

    with taking(device) as slow:
        expected = searches["plain"](own, batch[:plain_count], flat, search)
    del own
    with taking(device) as factor:
        for layer in layers:
            assert start.covariance(layer).factor is not None
    key_value.SEARCHES["fast"], updates, takings = timed, [], []
    try:
        solvers = ({"solver": "woodbury"}, {"solver": "cholesky"})
        for solver in ({},) if name == "rome" else solvers:  # ROME has no batch to solve
            editor = make_editor(name, model, common | solver, known)
            with taking(device) as taken:
                if rounds:
                    editor.prepare(batch)
                for part in [[edit] for edit in batch] if rounds else [batch]:
                    if rounds:
                        editor.reset()
                    report = editor.edit(part)
                    if report.failed:
                        raise SystemExit(f"{name}: {report.failed[0].reason}")
            takings.append(taken)
            state = editor.state().tensors
            updates.append({key: state[key] for key in state if key.startswith(("update", "difference"))})
            editor.remove()
            key_value.SEARCHES["fast"] = given
    finally:
        key_value.SEARCHES.update(searches)
    quick, searched = takings[0], sum(spent)
    rest = takings[1].seconds if len(takings) > 1 else quick.seconds - searched
    size = sizes(SHAPES[shape], blocks, layers[-1])
    same = (
        1 if name == "rome" and not rounds else plain_count
    )  # ROME's later edits are searched on an edited model
    rows, longest = len(flat) + 1, _longest(model, batch[:plain_count], flat)
    counts = count_search(model, batch, flat, layers[-1], 1 if name == "rome" and not rounds else 64)
    work = {
        "plain_search": search_plain(size, rows, longest, steps),
        "fast_search": search_fast(size, counts, steps) / count,
        "plain_solve": len(layers) * solve(size.inner, count, "cholesky") / count,
        "fast_solve": len(layers) * solve(size.inner, count, "woodbury") / count,
    }
    result = {
        "edits": count,
        "plain_edits": plain_count,
        "steps": steps,
        "blocks": blocks,
        "layers": len(layers),
        "plain": Taken(
            slow.seconds / plain_count + rest / count, slow.wall / plain_count, slow.peak_bytes
        ).plain(),
        "fast": quick.plain(count) | {"peak_bytes": quick.peak_bytes},
        "plain_search": slow.seconds / plain_count,
        "fast_search": searched / count,
        "plain_write": rest / count,
        "fast_write": (quick.seconds - searched) / count,
        "factor_of_c0": factor.seconds,
        "flops": work,
        "rate": rate,
        "rate_float64": wide_rate,
        "share_plain": work["plain_search"] / (slow.seconds / plain_count) / rate,
        "share_fast": work["fast_search"] / (searched / count) / rate,
        "difference_of_z": difference(
            _stack([found[e.identifier] for e in batch[:same]]).z, expected.z[:same]
        ),
        "difference_of_updates": max(
            (difference(updates[0][key], updates[1][key]) for key in updates[0]), default=None
        )
        if len(updates) > 1
        else None,
    }
    if not rounds and device == "cpu":
        result["stopping"] = _stopping(name, model, batch, common, known, device)
    if blocks != SHAPES[shape]["blocks"] or steps != PAPER_STEPS:
        result["extrapolated"] = _extrapolated(result, shape, counts, rows, longest)
    return result


def _stopping(name: str, model, batch, settings, known, device: str) -> dict[str, float]:
    """Seconds per edit of the editor as papers and presets have it: a row leaves the search when its loss is below .05.

    How many steps that saves depends on the weights; these are random.
    """
    from palimpsest.editors import make_editor
    from palimpsest.editors.shared import key_value

    search, steps = key_value.SEARCHES["fast"], list[int]()

    def counted(*arguments):
        result = search(*arguments)
        steps.extend(len(losses) for losses in result.losses)
        return result

    editor = make_editor(name, model, settings | {"stop_loss": 0.05}, known)
    key_value.SEARCHES["fast"] = counted
    try:
        with taking(device) as taken:
            editor.edit(batch)
    finally:
        key_value.SEARCHES["fast"] = search
        editor.remove()
    return {"seconds": taken.seconds / len(batch), "mean_steps": sum(steps) / len(steps)}


def _extrapolated(result: dict[str, Any], shape: str, counts, rows: int, longest: int) -> dict[str, float]:
    """Seconds per edit of the whole model and 20 steps: search by the formulas, writing by the number of layers."""
    whole = SHAPES[shape]
    size = sizes(whole, whole["blocks"], whole["layers"][-1])
    more = (
        1.0
        if result["layers"] == 1 and len(whole["layers"]) == 1
        else len(whole["layers"]) / result["layers"]
    )
    work = result["flops"]
    plain = search_plain(size, rows, longest, PAPER_STEPS) / work["plain_search"]
    fast = search_fast(size, counts, PAPER_STEPS) / result["edits"] / work["fast_search"]
    return {
        "plain": result["plain_search"] * plain + result["plain_write"] * more,
        "fast": result["fast_search"] * fast + result["fast_write"] * more,
    }


def _longest(model, batch, contexts) -> int:
    """Padded length of one edit's rows, on average."""
    from palimpsest.editors.shared.target_sequences import build_sequences

    lengths = [build_sequences(model, [edit], contexts).tokens.input_ids.shape[1] for edit in batch]
    return round(sum(lengths) / len(lengths))


def _stack(found):
    """Results of single edits as one."""
    import torch

    from palimpsest.editors.shared.target_vectors import TargetVectors

    return TargetVectors(
        z=torch.stack([result.z[i] for result, i in found]),
        initial=torch.stack([result.initial[i] for result, i in found]),
        losses=[result.losses[i] for result, i in found],
        finite=torch.stack([result.finite[i] for result, i in found]),
    )


def tuner(name: str, shape: str, count: int, plain_count: int, steps: int, device: str, dtype: str) -> dict:
    """GRACE (edit by edit, prepared 16 at a time) or FT (one batch), against the whole network at every step."""
    from palimpsest.editors import make_editor
    from palimpsest.models.objectives import encode

    model, (blocks, layers) = random_model(shape, device, dtype), blocks_and_layers(shape, device)
    own = random_model(shape, device, dtype, lean=False)
    layer = min(round(0.7 * blocks), blocks - 2) if name == "grace" else layers[0]
    batch, rate = edits(count), product_rate(device, dtype)
    if name == "grace":
        settings = {"layer": layer, "site": "mlp_in", "radius": 1e-3, "steps": steps}
    else:
        settings = {
            "layer": layer,
            "loss": "own",
            "steps": steps,
            "learning_rate": 1e-3,
            "epsilon": None,
            "stop_loss": 0.0,
        }
    editor, slow_editors = make_editor(name, model, settings), [make_editor(name, own, settings)]
    del own

    def plain() -> list[float]:
        if name == "grace":
            return [grace_value(slow_editors[0], edit, steps)[-1] for edit in batch[:plain_count]]
        return fine_tune(slow_editors[0].model, batch, layer, steps, 1e-3)[-1:]

    def fast() -> list[float]:
        if name == "ft":
            return editor.edit(batch, record=True).record["losses"][-1:]
        notes = []
        for start in range(0, count, 16):
            editor.prepare(batch[start : start + 16])
            for edit in batch[start : start + 16]:
                notes.append(editor.edit([edit], record=True).record["edits"][0])
        return [note["losses"][-1] for note in notes[:plain_count]]

    with taking(device) as slow:
        expected = plain()
    slow_editors.pop().remove()  # its model is not in the other form's peak
    with taking(device) as quick:
        found = fast()
    editor.remove()
    per_plain = plain_count if name == "grace" else count
    inputs = encode(model, [edit.prompt for edit in batch], [edit.target for edit in batch])
    tokens, length = inputs.padding.numel() / count, inputs.padding.shape[1]
    places = float((inputs.targets >= 0).sum()) / count
    size = sizes(SHAPES[shape], blocks, layer)
    work = {
        "plain": tuning_plain(size, tokens, length, steps),
        "fast": tuning_fast(size, tokens, length, places, steps),
    }
    result = {
        "edits": count,
        "plain_edits": per_plain,
        "steps": steps,
        "blocks": blocks,
        "layers": 1,
        "plain": slow.plain(per_plain),
        "fast": quick.plain(count),
        "flops": work,
        "rate": rate,
        "share_plain": work["plain"] * per_plain / slow.seconds / rate,
        "share_fast": work["fast"] * count / quick.seconds / rate,
        "difference_of_losses": max(
            abs(a - b) / max(abs(a), 1e-3) for a, b in zip(expected, found, strict=True)
        ),
    }
    if blocks != SHAPES[shape]["blocks"]:
        whole = sizes(SHAPES[shape], SHAPES[shape]["blocks"], round(layer / blocks * SHAPES[shape]["blocks"]))
        result["extrapolated"] = {
            "plain": result["plain"]["seconds"] * tuning_plain(whole, tokens, length, steps) / work["plain"],
            "fast": result["fast"]["seconds"]
            * tuning_fast(whole, tokens, length, places, steps)
            / work["fast"],
        }
    return result
