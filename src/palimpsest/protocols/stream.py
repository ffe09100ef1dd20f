"""What all protocols share: the stream of edits, the rows so far, one batch, one look at the model."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self, TypeVar

from tqdm import tqdm

from palimpsest import interruption
from palimpsest.editors.base import Editor, EditorState, FailedEdit, edit_name
from palimpsest.edits import Edit
from palimpsest.errors import EditError, PalimpsestError, SettingsError
from palimpsest.files import proves_damage, unreadable_now
from palimpsest.metrics.evaluation import Evaluation, RecordValue, aggregate
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.metrics.success import counted
from palimpsest.protocols.checkpoints import (
    Checkpoint,
    Checkpoints,
    random_state,
    set_random_state,
)

log = logging.getLogger(__name__)

EDITOR_PREFIX = "editor."


class Streamed(Protocol):
    """What the functions below need of any protocol's inputs."""

    run: str
    seed: int
    editor: Editor

    @property
    def edits(self) -> list[Edit]:
        """Everything that arrives, in order."""
        ...


@dataclass
class Stream:
    """One run's inputs.

    Attributes:
        run, seed: name of the run and its seed, for the rows.
        editor: fresh, on the unedited model.
        evaluation: built on the unedited model, over the same edits in the same order.
        batch_size: edits made together; the last batch may be smaller.
        snapshot_every: a look after every so many edits (rounded up to whole batches); None = at the end
            only.
        text_loss: measures the text drift of the model as it is; None = not measured.
    """

    run: str
    seed: int
    editor: Editor
    evaluation: Evaluation
    batch_size: int
    snapshot_every: int | None = None
    text_loss: Callable[[], TextLoss] | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        if self.batch_size < 1 or (self.snapshot_every is not None and self.snapshot_every < 1):
            raise SettingsError(
                f"run {self.run}: batch_size and snapshot_every must be whole numbers above 0"
            )

    @property
    def edits(self) -> list[Edit]:
        """All edits, in order."""
        return self.evaluation.edits

    def batches(self) -> Iterator[tuple[int, range]]:
        """(step from 1, positions of the batch's edits)."""
        for step, first in enumerate(range(0, len(self.edits), self.batch_size), start=1):
            yield step, range(first, min(first + self.batch_size, len(self.edits)))

    def bar(self, done: int) -> tqdm:
        """Progress on stderr, in edits."""
        return progress_bar(self, done)


@dataclass
class Progress:
    """Everything measured so far; plain data, so that a checkpoint can hold it."""

    step: int = 0
    done: int = 0
    held_from: int = 0  # the editor holds the edits from here to `done`
    metrics: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)  # edit, order, step, reason
    alpha: dict[str, list[float | None]] = field(default_factory=dict)
    state_bytes: int = 0
    text_losses: list[list[float]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"edit": 0.0, "evaluate": 0.0})

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """From what `to_plain` gave."""
        return cls(**{part.name: plain[part.name] for part in fields(cls)})

    def to_plain(self) -> dict[str, Any]:
        """Its parts by name, not copied (`asdict` would copy every row): write it at once or copy it."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def history(self) -> dict[str, Any]:
        """What `run.json` keeps beside the tables."""
        return {"alpha": self.alpha}

    def reasons(self) -> dict[int, str]:
        """Why edits could not be made, by their position in the stream."""
        return {failure["order"]: failure["reason"] for failure in self.failed}

    def alpha_by_layer(self) -> list[tuple[str, list[float | None]]]:
        """History of each hook layer, in the order of the layers (JSON sorts them as text)."""
        return sorted(self.alpha.items(), key=lambda item: int(item[0]))


SomeProgress = TypeVar("SomeProgress", bound=Progress)


def progress_bar(stream: Streamed, done: int, unit: str = "edit") -> tqdm:
    """Progress on stderr."""
    pause = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
    return tqdm(total=len(stream.edits), initial=done, unit=unit, desc=stream.editor.name, mininterval=pause)


def begin(stream: Stream, checkpoints: Checkpoints | None) -> Progress:
    """Go on from the newest checkpoint, or start with the rows of the unedited model (step 0)."""
    progress = resumed(stream, checkpoints, Progress)
    if progress is None:
        progress = Progress()
        progress.seconds["evaluate"] += stream.evaluation.seconds_before
        values = stream.evaluation.before()
        losses = [stream.text_loss()] if stream.text_loss is not None else []
        add_rows(stream, progress, values, n_edits=0, losses=losses)
    return progress


def resumed(
    stream: Streamed, checkpoints: Checkpoints | None, kind: type[SomeProgress]
) -> SomeProgress | None:
    """Put editor and random sources back to the newest checkpoint that serves; None when there is none.

    Raises:
        PalimpsestError: memory, a disk or a device failed while one was taken over: it is kept.
    """
    device = stream.editor.model.device
    tensors, plain = random_state(device)
    while checkpoints is not None and (found := checkpoints.latest()) is not None:
        try:
            progress = _restored(stream, found, kind)
        except (
            PalimpsestError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
            OSError,
            MemoryError,
        ) as error:
            if not proves_damage(error):
                raise unreadable_now(checkpoints.place(found.step), error) from error
            log.warning("checkpoint of step %d is not used, it is of another form: %r", found.step, error)
            checkpoints.drop(found.step)
            stream.editor.reset()
            set_random_state(tensors, plain, device)
            continue
        log.info("%s goes on after %d edits", stream.run, progress.done)
        return progress
    return None


def _restored(stream: Streamed, found: Checkpoint, kind: type[SomeProgress]) -> SomeProgress:
    progress = kind.from_plain(found.plain["progress"])
    tensors = {
        name.removeprefix(EDITOR_PREFIX): tensor
        for name, tensor in found.tensors.items()
        if name.startswith(EDITOR_PREFIX)
    }
    stream.editor.load_state(EditorState(tensors, found.plain["editor"]))
    # Last: loading may draw random numbers.
    set_random_state(found.tensors, found.plain["random"], stream.editor.model.device)
    return progress


def keep(stream: Streamed, progress: Progress, checkpoints: Checkpoints | None) -> None:
    """Save a checkpoint when one is due, or when the command is asked to end: then it ends here. Call it between batches only."""
    leaving = interruption.requested()
    if checkpoints is None or not (leaving or checkpoints.due()) or progress.done >= len(stream.edits):
        return
    state = stream.editor.state()
    tensors, random_plain = random_state(stream.editor.model.device)
    tensors.update({f"{EDITOR_PREFIX}{name}": tensor for name, tensor in state.tensors.items()})
    plain = {"progress": progress.to_plain(), "editor": state.plain, "random": random_plain}
    checkpoints.save(Checkpoint(progress.step, tensors, plain))
    if leaving:
        interruption.leave(f"{stream.run} is kept after {progress.done} of {len(stream.edits)} edits")


def edit_batch(stream: Streamed, progress: Progress, step: int, orders: range) -> None:
    """Make the edits at these positions as one batch. Those that cannot be made are noted with their reason; the run goes on."""
    batch = stream.edits[orders.start : orders.stop]
    start = time.perf_counter()
    try:
        report = stream.editor.edit(batch)
        applied, failed = report.applied, report.failed
    except EditError as error:
        log.warning("step %d: the whole batch failed: %s", step, error)
        applied, failed = [], [FailedEdit(edit_name(edit), str(error)) for edit in batch]
    progress.seconds["edit"] += time.perf_counter() - start
    progress.step, progress.done = step, progress.done + len(batch)
    progress.applied += applied
    reasons = defaultdict(
        list
    )  # an edit without identifier is called by its prompt, which may be edited twice
    for failure in failed:
        reasons[failure.edit].append(failure.reason)
    progress.failed += [
        {"edit": edit_name(edit), "order": order, "step": step, "reason": reasons[edit_name(edit)].pop(0)}
        for order, edit in zip(orders, batch, strict=True)
        if reasons[edit_name(edit)]
    ]
    progress.state_bytes = max(progress.state_bytes, int(stream.editor.state_bytes()))
    for layer, alpha in current_alpha(stream.editor).items():
        series = progress.alpha.setdefault(str(layer), [])
        series += [None] * (step - 1 - len(series))
        series.append(alpha)


def look(stream: Stream, progress: Progress, orders: Iterable[int]) -> list[RecordValue]:
    """Scores of the edits at `orders` on the model as it is; its text loss goes to `progress.text_losses`."""
    start = time.perf_counter()
    values = stream.evaluation.after(orders, stream.editor.watching)
    if stream.text_loss is not None:
        measured = stream.text_loss()
        progress.text_losses.append([counted(measured.loss), measured.tokens])
    progress.seconds["evaluate"] += time.perf_counter() - start
    return values


def current_alpha(editor: Editor) -> dict[int, float | None]:
    """Threshold alpha of every hook layer, None where it is not finite; empty for other editors."""
    found = editor.thresholds().items()
    return {layer: float(value) if math.isfinite(value) else None for layer, value in found}


def add_rows(
    stream: Streamed,
    progress: Progress,
    values: Sequence[RecordValue],
    n_edits: int,
    losses: Sequence[TextLoss] = (),
) -> None:
    """Rows of one look: the mean of every score, and every record's own score."""
    base = {"run": stream.run, "seed": stream.seed, "step": progress.step, "n_edits": n_edits}
    reasons = progress.reasons()
    for split, metric, mean_value, count in aggregate(values):
        progress.metrics.append({**base, "split": split, "metric": metric, "value": mean_value, "n": count})
    for value in values:
        identity = {"edit": edit_name(stream.edits[value.order]), "order": value.order}
        score = {"split": value.split, "metric": value.metric, "value": value.value}
        score["failed"] = reasons.get(value.order)
        progress.records.append({**base, **identity, **score})
    if losses:
        mean_loss = TextLoss(math.fsum(found.loss for found in losses) / len(losses), losses[0].tokens)
        add_metric(stream, progress, n_edits, "text", "perplexity", mean_loss.perplexity, mean_loss.tokens)


def add_metric(
    stream: Streamed,
    progress: Progress,
    n_edits: int,
    split: str,
    metric: str,
    value: float | None,
    count: int,
) -> None:
    """One row of `metrics`, unless the value was not measured or is not finite."""
    if value is not None and math.isfinite(value):
        row = {"run": stream.run, "seed": stream.seed, "step": progress.step, "n_edits": n_edits}
        progress.metrics.append({**row, "split": split, "metric": metric, "value": float(value), "n": count})
