"""Consecutive batch editing: batch after batch on one model, no roll-back (COMEBA-HK Section 4, Table 2).

Judged at snapshots on the way and at the end, each time on *all* edits so far, the old ones too (spec 4.3).
"""

from __future__ import annotations

from palimpsest.interruption import deferred
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.stream import Progress, Stream, add_metric, add_rows, begin, edit_batch, keep, look


def run(stream: Stream, checkpoints: Checkpoints | None = None) -> Progress:
    """Edit the whole stream; rows at step 0, at snapshots and at the end. The editor keeps its last state."""
    progress = begin(stream, checkpoints)
    with stream.bar(progress.done) as bar, deferred():
        for step, orders in stream.batches():
            if step <= progress.step:
                continue
            before = progress.done
            edit_batch(stream, progress, step, orders)
            if _due(stream, before, progress.done):
                _snapshot(stream, progress)
            keep(stream, progress, checkpoints)
            bar.update(len(orders))
    return progress


def _due(stream: Stream, before: int, done: int) -> bool:
    """A snapshot is due at the end, and whenever a multiple of `snapshot_every` was reached or passed."""
    if done == len(stream.edits):
        return True
    return (
        stream.snapshot_every is not None and done // stream.snapshot_every > before // stream.snapshot_every
    )


def _snapshot(stream: Stream, progress: Progress) -> None:
    done = progress.done
    progress.text_losses = []
    values = look(stream, progress, range(done))
    add_rows(stream, progress, values, done, [TextLoss(loss, int(n)) for loss, n in progress.text_losses])
    for layer, series in progress.alpha_by_layer():
        add_metric(stream, progress, done, f"layer_{layer}", "alpha", series[-1], 1)
    add_metric(stream, progress, done, "edit", "failed_edits", len(progress.failed), done)
    add_metric(stream, progress, done, "edit", "state_bytes", stream.editor.state_bytes(), 1)
    if more := stream.editor.editing_bytes():
        add_metric(stream, progress, done, "edit", "editing_bytes", more, 1)
