"""Single-round batch editing: each batch on a fresh model, judged on its own records, then discarded (Table
1).

All batches together make one set of rows at the end, whose step is the number of batches (spec 4.3).
"""

from __future__ import annotations

import time
from dataclasses import asdict

from palimpsest.interruption import deferred
from palimpsest.metrics.evaluation import RecordValue
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.metrics.scores import mean
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.stream import Progress, Stream, add_metric, add_rows, begin, edit_batch, keep, look

AHEAD = 64  # edits


def run(stream: Stream, checkpoints: Checkpoints | None = None) -> Progress:
    """Edit, judge and roll back batch after batch; the editor keeps the last batch's state."""
    progress, prepared = begin(stream, checkpoints), None
    with stream.bar(progress.done) as bar, deferred():
        for step, orders in stream.batches():
            if step <= progress.step:
                continue
            prepared = _prepare(stream, progress, orders.start, prepared)
            progress.held_from = orders.start
            edit_batch(stream, progress, step, orders)
            progress.pending += [asdict(value) for value in look(stream, progress, orders)]
            if progress.done < len(stream.edits):
                stream.editor.reset()
                keep(stream, progress, checkpoints)
            bar.update(len(orders))
    _finish(stream, progress)
    return progress


def _prepare(stream: Stream, progress: Progress, first: int, prepared: int | None) -> int | None:
    """Let an editor compute together what batches of one edit need, 64 at a time; the first edit of those 64.

    They are the same 64 whether or not the run was broken in between: what shares a pass decides the last digits.
    """
    if stream.batch_size > 1 or not stream.editor.prepares_rounds or not stream.editor.model.lean:
        return None
    start = first - first % AHEAD
    if start != prepared:
        began = time.perf_counter()
        stream.editor.prepare(stream.edits[start : start + AHEAD])
        progress.seconds["edit"] += time.perf_counter() - began
    return start


def _finish(stream: Stream, progress: Progress) -> None:
    done = progress.done
    values = [RecordValue(**value) for value in progress.pending]
    add_rows(stream, progress, values, done, [TextLoss(loss, int(n)) for loss, n in progress.text_losses])
    for layer, series in progress.alpha_by_layer():
        known = [alpha for alpha in series if alpha is not None]
        add_metric(
            stream, progress, done, f"layer_{layer}", "alpha", mean(known) if known else None, len(known)
        )
    add_metric(stream, progress, done, "edit", "failed_edits", len(progress.failed), done)
    add_metric(stream, progress, done, "edit", "state_bytes", progress.state_bytes, 1)
