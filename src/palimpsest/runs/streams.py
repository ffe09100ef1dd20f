"""What a protocol is given of a run: its stream, built on the unedited model, which is asked everything now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.editors.base import Editor
from palimpsest.metrics.evaluation import Evaluation
from palimpsest.metrics.unedited import Unedited
from palimpsest.protocols import protocol_part
from palimpsest.protocols.sample import Sample
from palimpsest.protocols.stream import Stream
from palimpsest.runs.inputs import Options, RunFiles, batching_of, text_meter


@dataclass(frozen=True)
class PreparedRun:
    """A run whose editor is built and has edited nothing yet.

    Attributes:
        spec, seed, options, files: what it was told; of a lifelong run the options with their task.
        editor: fresh, on the unedited model.
        sample: the edits, in order.
        reserved: identifiers of facts that learned editors were trained with.
        unedited: where the unedited model's answers are kept for other runs; None = they are not.
    """

    spec: Mapping[str, Any]
    seed: int
    options: Options
    files: RunFiles
    editor: Editor
    sample: Sample
    reserved: Collection[str] = ()
    unedited: Unedited | None = None

    def stream(self) -> Any:
        """The stream of the run's protocol.

        Raises:
            DataError: a question that the model cannot read.
        """
        builders = {"lifelong": _lifelong, "simultaneous": _simultaneous}
        return builders.get(self.spec["protocol"], _batches)(self)


def _batches(run: PreparedRun) -> Stream:
    """Edits in batches, consecutive or each from the untouched model."""
    spec, editor, edits = run.spec, run.editor, run.sample.edits
    batching = batching_of(editor, run.options)
    editor.calibrate([probe.prompt for edit in edits for probe in edit.locality])
    return Stream(
        run=spec["run"],
        seed=run.seed,
        editor=editor,
        evaluation=Evaluation(editor.model, edits, run.options.generation, batching, run.unedited),
        batch_size=spec["batch_size"],
        snapshot_every=spec.get("snapshot_every"),
        text_loss=text_meter(editor, run.options, run.files.text),
    )


def _lifelong(run: PreparedRun) -> Any:
    """Edits one by one; encodes every question, so that bad records are refused now."""
    spec, options, editor = run.spec, run.options, run.editor
    return protocol_part("lifelong_inputs").lifelong_stream(
        editor,
        run.sample.edits,
        run.files.dataset,
        task=options.task,
        batching=batching_of(editor, options),
        said_tokens=options.said_tokens,
        room=options.kept_mb << 20,
        unedited=run.unedited,
        run=spec["run"],
        seed=run.seed,
        snapshot_every=spec.get("snapshot_every"),
        edit_always=options.edit_always,
        until_edits=options.until_edits,
        text_loss=text_meter(editor, options, run.files.text) if editor.model.kind == "decoder" else None,
    )


def _simultaneous(run: PreparedRun) -> Any:
    """Edits that are made together. What learned editors were trained with is not asked out of scope either."""
    spec, options, edits = run.spec, run.options, run.sample.edits
    others = [edit for edit in run.sample.others if edit.identifier not in run.reserved]
    asked = [edit.prompt for edit in others] or [probe.prompt for edit in edits for probe in edit.locality]
    run.editor.calibrate(asked)
    return protocol_part("simultaneous_inputs").Simultaneous(
        run=spec["run"],
        seed=run.seed,
        editor=run.editor,
        chosen=edits,
        others=others,
        batch_sizes=options.batch_sizes or [spec["batch_size"]],
        draws=options.draws,
        outside=options.outside,
        rephrasings=options.rephrasings,
        batching=batching_of(run.editor, options),
        unedited=run.unedited,
    )
