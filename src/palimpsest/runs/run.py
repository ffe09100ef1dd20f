"""One run from end to end: load, choose the edits, edit and judge by a protocol, write the result files."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from palimpsest import provenance, results
from palimpsest.editors import editor_class, make_editor
from palimpsest.editors.base import edit_name
from palimpsest.edits import read_edits
from palimpsest.errors import SettingsError
from palimpsest.files import only_one
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.loading import LanguageModel, load_model
from palimpsest.models.memory import peak_on_gpu
from palimpsest.plain import unwritable
from palimpsest.protocols import protocol, protocol_part
from palimpsest.protocols.checkpoints import Checkpoints, seed_everything
from palimpsest.protocols.inspection import inspection_rows
from palimpsest.protocols.sample import Sample, read_reserved
from palimpsest.protocols.stream import Progress, Stream
from palimpsest.runs.inputs import (
    Options,
    RunFiles,
    check_gate,
    check_parts,
    choose_edits,
    known_edits,
    set_threads,
)
from palimpsest.runs.streams import PreparedRun

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
REQUIRED = ("run", "protocol", "dataset", "model", "editor", "edits", "batch_size")


def execute(
    spec: Mapping[str, Any], seed: int, files: RunFiles, out: Path | str, code: str | None = None
) -> Path:
    """Carry out one run and write metrics, records and inspection tables and, last, `run.json` into `out`.

    A run that was broken off goes on from its last checkpoint and ends with the same rows.

    Args:
        spec: the resolved run (experiments/resolve.py); kept whole in `run.json`.
        seed: of the sample, the order, and everything the editor draws.
        files: what it reads.
        code: `provenance.digest_of_run`, where it is known already; to work it out takes a quarter of a second.

    Returns:
        The path of `run.json`.

    Raises:
        PalimpsestError: bad input; nothing is written then.
    """
    with only_one(out):
        return _execute(spec, seed, files, Path(out), code)


def _execute(spec: Mapping[str, Any], seed: int, files: RunFiles, out: Path, code: str | None) -> Path:
    started, clock = datetime.now(UTC), time.perf_counter()
    options = _check_spec(spec)
    set_threads()
    verdict = check_gate(spec, options, files.gate)
    knows = known_edits(options, files.known)
    edits_file = Path(files.dataset) / "edits.jsonl"
    edits = read_edits(edits_file)
    model = load_model(files.model, dtype=options.dtype, device=options.device, lean=not options.plain)
    lifelong = spec["protocol"] == "lifelong"
    if lifelong:
        inputs = protocol_part("lifelong_inputs")
        options = replace(options, task=inputs.task_of(files.dataset, options.task, model))
        edits = inputs.cut_edits(model, edits, options.task)
    elif spec["protocol"] != "simultaneous":
        model.need_decoder(f"the protocol {spec['protocol']}")
    reserved = read_reserved(files.dataset)
    sample = choose_edits(
        spec, seed, options, edits, model, knows, f"{spec['dataset']} ({edits_file})", reserved
    )
    checks = protocol_part("lifelong_notes").Checks(model, sample.edits) if lifelong else None
    seed_everything(seed)
    editor = make_editor(
        spec["editor"],
        model,
        dict(spec.get("settings") or {}),
        statistics=files.statistics,
        seed=seed,
        trained=files.trained,
    )
    if editor.trained is not None:
        editor.trained.refuse_learned(sample.edits)
    if files.targets is not None:
        _use_targets(editor, spec, files.targets)
    identity = _identity(spec, seed, model, edits_file, editor, sample)
    identity["code"] = code or provenance.digest_of_run(spec)
    alone = options.plain or editor.acts_unedited()
    unedited = Unedited(Path(files.answers)) if files.answers and not alone else None
    stream = PreparedRun(spec, seed, options, files, editor, sample, reserved, unedited).stream()
    if checks is not None:
        checks.built(editor)
    checkpoints = Checkpoints(out / CHECKPOINTS, identity, every_batch=options.checkpoint_every_batch)
    # An old result must not outlive a new attempt; nor may a mistyped path or setting, refused above, cost one.
    (out / results.RUN_FILE).unlink(missing_ok=True)
    try:
        progress = protocol(spec["protocol"])(stream, checkpoints)
        inspects = options.inspect and spec["protocol"] in ("single_round", "consecutive")
        inspected = _inspect(stream, progress, sample) if inspects else []
        if checks is not None:
            checks.edited(editor)
    finally:
        editor.remove()
    if checks is not None:
        checks.removed()
    content = {
        **_outcome(spec, seed, sample, progress, len(edits)),
        **_circumstances(model, identity, verdict),
        **({"checks": checks.found} if checks is not None else {}),
        **({"key_distances": checks.distances} if checks is not None and checks.distances else {}),
        "started": started.isoformat(timespec="seconds"),
        "seconds": {**progress.seconds, "total": time.perf_counter() - clock},
    }
    _write(out, progress, inspected, content)
    checkpoints.clear()
    return out / results.RUN_FILE


def _use_targets(editor: Any, spec: Mapping[str, Any], folder: Path | str) -> None:
    if spec["protocol"] != "single_round":
        raise SettingsError(
            f"run {spec['run']}: stored target vectors are for single-round runs of key-value editors; leave out --targets"
        )
    editor.use_targets(folder)


def _write(out: Path, progress: Progress, inspected: list[dict[str, Any]], content: dict[str, Any]) -> None:
    """The three tables, then `run.json`, whose presence says that all is there."""
    results.write_metrics(out / results.METRICS_FILE, progress.metrics)
    results.write_records(out / results.RECORDS_FILE, progress.records)
    results.write_inspection(out / results.INSPECTION_FILE, inspected)
    results.write_run(out / results.RUN_FILE, content)


def _check_spec(spec: Mapping[str, Any]) -> Options:
    missing = [name for name in REQUIRED if spec.get(name) is None]
    if missing:
        raise SettingsError(f"the specification of the run lacks {', '.join(missing)}")
    for name in ("run", "protocol", "dataset", "model", "editor"):
        if not isinstance(spec[name], str):
            raise SettingsError(
                f"the specification of the run: {name!r} is {spec[name]!r:.60}; expected a text"
            )
    if wrong := next(unwritable(spec), None):
        raise SettingsError(f"the specification of the run: {wrong}")
    if not results.RUN_NAME.fullmatch(spec["run"]):
        raise SettingsError(f"the run name {spec['run']!r:.60} does not match {results.RUN_NAME.pattern}")
    every = spec.get("snapshot_every")
    counts = ("edits", "batch_size", *(() if every is None else ("snapshot_every",)))
    check_parts(spec, f"run {spec['run']}", counts)
    protocol(spec["protocol"])
    if spec["protocol"] == "lifelong" and spec["batch_size"] != 1:
        raise SettingsError(
            f"run {spec['run']}: 'batch_size' is {spec['batch_size']}; a lifelong stream is edited one by one, give 1"
        )
    editor_class(spec["editor"])
    return Options.from_dict(spec.get("options") or {})


def _inspect(stream: Stream, progress: Progress, sample: Sample) -> list[dict[str, Any]]:
    """Rows about the edits the editor holds now: all, or in a single round those of the last batch."""
    base = {"run": stream.run, "seed": stream.seed, "step": progress.step}
    failed = {failure["edit"] for failure in progress.failed}
    made = [edit for edit in stream.edits[progress.held_from :] if edit_name(edit) not in failed]
    others = [edit for edit in sample.others if edit.subject]  # z-scores are of subjects
    return inspection_rows(stream.editor, made, others, stream.evaluation.batching, base)


def _identity(
    spec: Mapping[str, Any], seed: int, model: LanguageModel, edits_file: Path, editor: Any, sample: Sample
) -> dict[str, Any]:
    """What this run is, but for its code: checkpoints of anything else are not resumed."""
    chosen = hashlib.sha256("\n".join(edit_name(edit) for edit in sample.edits).encode()).hexdigest()
    used = editor.statistics if editor.trained is None else editor.trained
    return {
        "spec": dict(spec),
        "seed": seed,
        "model": {"name": spec["model"], "fingerprint": model.fingerprint},
        "dataset": {"name": spec["dataset"], "fingerprint": _data_fingerprint(spec, edits_file)},
        "statistics": used.describe() if hasattr(used, "describe") else None,
        "sample": chosen[:16],
        "targets": editor.stored_targets is not None,
    }


def _data_fingerprint(spec: Mapping[str, Any], edits_file: Path) -> str:
    """Of the edits, and in a lifelong run of the probes too."""
    probes = edits_file.parent / "probes.jsonl"
    found = provenance.file_fingerprint(edits_file)
    if spec["protocol"] == "lifelong" and probes.is_file():
        found += f"+{provenance.file_fingerprint(probes)}"
    return found


def _outcome(
    spec: Mapping[str, Any], seed: int, sample: Sample, progress: Progress, available: int
) -> dict[str, Any]:
    return {
        "spec": dict(spec),
        "seed": seed,
        "status": "complete",
        "edits_requested": len(sample.edits),
        "edits_applied": len(progress.applied),
        "edits_failed": progress.failed,
        "failure_reasons": _reasons(spec["run"], progress),
        "edits_available": available,
        "edits_dropped": dict(sample.dropped),
        "state_bytes": progress.state_bytes,
        "history": progress.history(),
    }


def _reasons(run: str, progress: Progress) -> dict[str, int]:
    """How many edits failed for each reason, the most frequent first; a run that made no edit at all says so in its log."""
    reasons = Counter(failure["reason"] for failure in progress.failed)
    if reasons and not progress.applied:
        reason, number = reasons.most_common(1)[0]
        log.warning(
            "run %s: not one of %d edits could be made, so its rows are those of the unedited model; %d of them: %s",
            run,
            len(progress.failed),
            number,
            reason,
        )
    return dict(reasons.most_common())


def _circumstances(model: LanguageModel, identity: Mapping[str, Any], gate: dict[str, Any]) -> dict[str, Any]:
    return {
        "peak_rss_bytes": peak_memory(),
        "gpu_peak_bytes": peak_on_gpu(model.device),
        "versions": provenance.versions(),
        "git": provenance.git_state(),
        "code": identity["code"],
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "model": identity["model"],
        "dataset": identity["dataset"],
        "statistics": identity["statistics"],
        "targets": "searched once for several runs" if identity["targets"] else "searched in this run",
        "gate": gate,
    }


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
