"""Lifelong editing: a stream of inputs, an edit for each that the model gets wrong, and no roll-back (GRACE, section 4).

For each item x_t of the stream, in order: ask the model; where it errs, edit it with the right answer (one edit a
batch) and score that edit at once (ES). Every `snapshot_every` items (edits, where the stream ends after so many:
`until_edits`) and at the end, the last item edited or not (spec Q10): TRR on upstream, ERR on all edits so far, hold-out,
ARR on accurate sentences. An item is never asked ahead of its turn, because every edit before it may change
the answer; what `_prepare` asks only says which edits will probably be made, so that an editor can compute what they need
together.

Rows: `step` counts items seen, `n_edits` edits made. An edit that could not be made counts, and is judged, as one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from palimpsest.editors.base import Editor, edit_name
from palimpsest.interruption import deferred
from palimpsest.metrics.retention import MAIN_SCORE, Scores, averages
from palimpsest.metrics.scores import mean
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.lifelong_inputs import AskedProbe, LifelongStream
from palimpsest.protocols.lifelong_notes import codebook_note, keys_of, shared_keys
from palimpsest.protocols.stream import Progress, add_metric, edit_batch, keep, progress_bar, resumed

log = logging.getLogger(__name__)

# Items whose edits are prepared together, from fixed places, so that a resumed run has the same rows.
AHEAD = 16


@dataclass
class LifelongProgress(Progress):
    """Everything measured so far.

    Attributes:
        made: positions in the stream of all edits, in the order they were made.
        wrong, asked: items answered wrongly when their turn came, and items asked at all.
        successes: main score of each edit since the last look, right after it was made.
        edit_seconds: of each edit, with its share of what was prepared for several.
        owed: seconds of preparing that no edit has taken its share of yet, and edits that were prepared and not made.
        looks: at each look, step and the seconds it took by split.
        codebook: at each look, what `codebook_note` tells, where the editor has one.
        said: what the unedited model says to the prompts of `Examples`; examples: with what it says at the end.
        shared_keys: at the end, what `shared_keys` tells.
        forward: at each look, seconds of a pass of the model as it was then and before any edit.
    """

    made: list[int] = field(default_factory=list)
    wrong: int = 0
    asked: int = 0
    successes: list[float] = field(default_factory=list)
    edit_seconds: list[float] = field(default_factory=list)
    owed: tuple[float, int] = (0.0, 0)
    looks: list[dict[str, Any]] = field(default_factory=list)
    codebook: list[dict[str, Any]] = field(default_factory=list)
    forward: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    shared_keys: list[dict[str, Any]] = field(default_factory=list)

    def history(self) -> dict[str, Any]:
        """For `run.json`, since no table holds a time: `edited` is each edit's position in the stream."""
        names = ("edit_seconds", "looks", "codebook", "forward", "examples", "shared_keys")
        return {**super().history(), "edited": self.made, **{name: getattr(self, name) for name in names}}


def run(stream: LifelongStream, checkpoints: Checkpoints | None = None) -> LifelongProgress:
    """Go through the stream; rows at step 0, at looks and at the end. The editor keeps its last state."""
    progress = resumed(stream, checkpoints, LifelongProgress)
    if progress is None:
        progress = LifelongProgress(seconds={"ask": 0.0, "edit": 0.0, "evaluate": 0.0})
        progress.said = stream.examples.say()
        _look(stream, progress)
    with progress_bar(stream, progress.done, unit="item") as bar, deferred():
        for place in range(progress.done, len(stream.edits)):
            if stream.ended(place, len(progress.made)):
                break
            if place % AHEAD == 0:
                _prepare(stream, progress, range(place, min(place + AHEAD, len(stream.edits))))
            made = len(progress.made)
            _meet(stream, progress, place)
            if stream.due(place + 1, len(progress.made), edited=len(progress.made) > made):
                _look(stream, progress)
            keep(stream, progress, checkpoints)
            bar.update(1)
    if stream.until_edits is not None and len(progress.made) < stream.until_edits:
        log.warning(
            "%s: %d edits were asked for, the %d items of the stream needed %d. Give more items (`edits`)",
            stream.run,
            stream.until_edits,
            len(stream.edits),
            len(progress.made),
        )
    progress.examples = stream.examples.note(progress.said, progress.made)
    progress.shared_keys = shared_keys(stream.editor, stream.edits)
    return progress


def _prepare(stream: LifelongStream, progress: LifelongProgress, places: range) -> None:
    """Let the editor prepare the edits that these items need as things stand now.

    Not an editor that prepares rounds: all but the first edit of a stream start from an edited model, for which nothing would
    have been prepared, and its state does not carry what is.
    """
    editor = stream.editor
    prepares = type(editor).prepare is not Editor.prepare and not editor.prepares_rounds
    if not prepares or not stream.asking.model.lean:
        return
    start = time.perf_counter()
    coming = list(places)
    if not stream.edit_always:
        scores = stream.items.ask(coming)
        coming = [place for place, one in zip(coming, scores, strict=True) if not one.right]
    asked = time.perf_counter()
    stream.editor.prepare([stream.edits[place] for place in coming])
    progress.seconds["ask"] += asked - start
    seconds = time.perf_counter() - asked
    progress.seconds["edit"] += seconds
    progress.owed = (progress.owed[0] + seconds, len(coming))


def _share(progress: LifelongProgress) -> float:
    """What one edit pays of the preparing."""
    seconds, edits = progress.owed
    share = seconds / max(1, edits)
    progress.owed = (seconds - share, max(0, edits - 1))
    return share


def _meet(stream: LifelongStream, progress: LifelongProgress, place: int) -> None:
    """Ask one item, and edit where the answer is wrong."""
    step = place + 1
    if not _answered(stream, progress, place) or stream.edit_always:
        before = progress.seconds["edit"]
        edit_batch(stream, progress, step, range(place, place + 1))
        progress.made.append(place)
        progress.edit_seconds.append(progress.seconds["edit"] - before + _share(progress))
        start = time.perf_counter()
        (scores,) = stream.items.ask([place])
        progress.seconds["ask"] += time.perf_counter() - start
        success = scores.values[MAIN_SCORE[stream.asking.task]]
        if success is not None:
            progress.successes.append(success)
            failure = progress.failed[-1] if progress.failed else {"order": None}
            reason = failure["reason"] if failure["order"] == place else None
            _add_record(stream, progress, "stream", place, "edit_success", success, reason=reason)
    progress.step = progress.done = step


def _answered(stream: LifelongStream, progress: LifelongProgress, place: int) -> bool:
    """Whether the model, as it is now, gives the right answer; not asked where every sentence counts as wrong."""
    generation = stream.asking.task == "generation"
    if generation and stream.edit_always:
        return False
    start = time.perf_counter()
    right = stream.items.says_right(place) if generation else bool(stream.items.ask([place])[0].right)
    progress.seconds["ask"] += time.perf_counter() - start
    progress.asked += 1
    progress.wrong += not right
    return right


def _look(stream: LifelongStream, progress: LifelongProgress) -> None:
    """Rows of everything retained, on the model as it is. Before the first edit the whole stream stands for the edits."""
    first, last = progress.step == 0, stream.ended(progress.step, len(progress.made))
    seconds: dict[str, float] = {}
    for split, (probes, pool) in stream.pools.items():
        scores = _timed(seconds, split, pool.ask_unedited if first else pool.ask)
        _add_averages(stream, progress, split, scores)
        if first or last:
            _add_probe_records(stream, progress, probes, scores)
    if first or progress.made:
        split, places = ("stream", list(range(len(stream.edits)))) if first else ("edit", progress.made)
        ask = stream.items.ask_unedited if first else partial(stream.items.ask, places)
        scores = _timed(seconds, split, ask)
        _add_averages(stream, progress, split, scores)
        reasons = progress.reasons()
        for place, one in zip(places, scores, strict=True):
            for name, value in one.values.items():
                _add_record(stream, progress, split, place, name, value, reason=reasons.get(place))
    _add_counts(stream, progress)
    if stream.text_loss is not None:
        start = time.perf_counter()
        measured = stream.text_loss()
        seconds["text"] = time.perf_counter() - start
        _add(stream, progress, "text", "perplexity", measured.perplexity, measured.tokens)
    progress.seconds["evaluate"] += math.fsum(seconds.values())
    here = {"step": progress.step, "n_edits": len(progress.made)}
    progress.looks.append({**here, "seconds": seconds})
    _note_inside(stream, progress, here)
    progress.successes = []


def _timed(seconds: dict[str, float], split: str, ask: Callable[[], list[Scores]]) -> list[Scores]:
    start = time.perf_counter()
    scores = ask()
    seconds[split] = time.perf_counter() - start
    return scores


def _note_inside(stream: LifelongStream, progress: LifelongProgress, here: dict[str, Any]) -> None:
    now = stream.timer.seconds()
    unedited = progress.forward[0]["seconds"] if progress.forward else now
    keys = keys_of(stream.editor)
    progress.forward.append({**here, "keys": keys, "seconds": now, "seconds_unedited": unedited})
    note = codebook_note(stream.editor)
    if note is not None:
        progress.codebook.append({**here, **note})


def _add_counts(stream: LifelongStream, progress: LifelongProgress) -> None:
    made = len(progress.made)
    _add(stream, progress, "stream", "items_seen", progress.step, 1)
    _add(stream, progress, "stream", "edits_made", made, 1)
    if progress.asked:
        _add(stream, progress, "stream", "errors", progress.wrong, progress.asked)
    if progress.successes:
        _add(stream, progress, "stream", "edit_success", mean(progress.successes), len(progress.successes))
    _add(stream, progress, "stream", "keys", keys_of(stream.editor), 1)
    _add(stream, progress, "edit", "failed_edits", len(progress.failed), made)
    _add(stream, progress, "edit", "state_bytes", stream.editor.state_bytes(), 1)
    for layer, series in progress.alpha_by_layer():
        _add(stream, progress, f"layer_{layer}", "alpha", series[-1], 1)


def _add_averages(
    stream: LifelongStream, progress: LifelongProgress, split: str, scores: Sequence[Scores]
) -> None:
    for name, value, count in averages(scores):
        _add(stream, progress, split, name, value, count)


def _add(
    stream: LifelongStream,
    progress: LifelongProgress,
    split: str,
    metric: str,
    value: float | None,
    count: int,
) -> None:
    add_metric(stream, progress, len(progress.made), split, metric, value, count)


def _add_record(
    stream: LifelongStream,
    progress: LifelongProgress,
    split: str,
    place: int,
    metric: str,
    value: float | None,
    name: str | None = None,
    reason: str | None = None,
) -> None:
    """One row of `records`, unless the value is not a number; `reason` says why its edit could not be made."""
    if value is None:
        return
    base = {"run": stream.run, "seed": stream.seed, "step": progress.step, "n_edits": len(progress.made)}
    identity = {"edit": name or edit_name(stream.edits[place]), "order": place}
    score = {"split": split, "metric": metric, "value": float(value)}
    progress.records.append({**base, **identity, **score, "failed": reason})


def _add_probe_records(
    stream: LifelongStream, progress: LifelongProgress, probes: Sequence[AskedProbe], scores: Sequence[Scores]
) -> None:
    """One row per probe and score; `order` is the number of the probe in its set, `edit` the edit it belongs to."""
    for number, (probe, one) in enumerate(zip(probes, scores, strict=True)):
        for name, value in one.values.items():
            _add_record(
                stream, progress, probe.split, number, name, value, probe.edit or f"{probe.split}-{number}"
            )
