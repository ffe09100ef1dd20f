"""Single-round batch editing: each batch on a fresh model, judged on its own records, then discarded (Table
1).

All batches together make one set of rows at the end, whose step is the number of batches (spec 4.3).
"""

from __future__ import annotations

from dataclasses import asdict

from palimpsest.interruption import deferred
from palimpsest.metrics.evaluation import RecordValue
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.metrics.scores import mean
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.stream import Progress, Stream, add_metric, add_rows, begin, edit_batch, keep, look


def run(stream: Stream, checkpoints: Checkpoints | None = None) -> Progress:
    """Edit, judge and roll back batch after batch; the editor keeps the last batch's state."""
    progress = begin(stream, checkpoints)
    with stream.bar(progress.done) as bar, deferred():
        for step, orders in stream.batches():
            if step <= progress.step:
                continue
            progress.held_from = orders.start
            edit_batch(stream, progress, step, orders)
            progress.pending += [asdict(value) for value in look(stream, progress, orders)]
            if progress.done < len(stream.edits):
                stream.editor.reset()
                keep(stream, progress, checkpoints)
            bar.update(len(orders))
    _finish(stream, progress)
    return progress


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
