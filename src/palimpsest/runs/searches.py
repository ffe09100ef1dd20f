"""One search of target vectors for all single-round runs that need the same (see editors/shared/stored_targets.py)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from palimpsest import interruption, provenance
from palimpsest.editors.shared.contexts import longest_context, sample_contexts
from palimpsest.editors.shared.key_value import SEARCHES, KeyValueSettings, check_fit
from palimpsest.editors.shared.stored_targets import DESCRIPTION, StoredTargets, about_targets, keys_of
from palimpsest.editors.shared.target_vectors import TargetVectors
from palimpsest.editors.shared.usable import why_not
from palimpsest.edits import Edit, read_edits
from palimpsest.errors import EditError, SettingsError
from palimpsest.models.loading import LanguageModel, load_model
from palimpsest.plain import build, suggest
from palimpsest.protocols.checkpoints import Checkpoint, Checkpoints
from palimpsest.protocols.sample import read_reserved
from palimpsest.runs.inputs import Options, check_parts, choose_edits, known_edits, set_threads

log = logging.getLogger(__name__)
KEYS = ("model", "dataset", "edits", "options", "settings")  # the first two are names, for people
EDITS_AT_ONCE = 64  # between two checkpoints


def search_targets(
    spec: Mapping[str, Any],
    seed: int,
    model_dir: Path | str,
    dataset_dir: Path | str,
    out: Path | str,
    known: Path | str | None = None,
) -> Path:
    """Search z of every edit of a run on the untouched model, and write them into `out`.

    Goes on from its last checkpoint after an interruption.

    Args:
        spec: `edits` (how many), `options` of the sample, and `settings` of the search (see `KeyValueSettings`).
        seed: of the sample and the contexts, as in the runs that will use them.

    Returns:
        The path of the description, written last.

    Raises:
        PalimpsestError: bad input; a finished search in `out` stays then.
    """
    clock = time.perf_counter()
    options, settings = check_search(spec)
    set_threads()
    out, edits_file = Path(out), Path(dataset_dir) / "edits.jsonl"
    known_names, there = known_edits(options, known), read_edits(edits_file)
    model = load_model(model_dir, dtype=options.dtype, device=options.device, lean=not options.plain)
    check_fit(settings, model)
    edits = choose_edits(
        spec,
        seed,
        options,
        there,
        model,
        known_names,
        str(edits_file),
        read_reserved(dataset_dir),  # the sample must be the runs' own
    ).edits
    groups = settings.context_texts or sample_contexts(model, settings.context_lengths, seed)
    edits = _usable(edits, model, longest_context(model, groups))
    about = about_targets(model.fingerprint, settings.search(), groups)
    key = {
        "about": about,
        "edits": keys_of(edits),
        "code": provenance.source_digest("palimpsest.runs.searches"),
    }
    checkpoints = Checkpoints(out / "checkpoints", key, every_batch=options.checkpoint_every_batch)
    (out / DESCRIPTION).unlink(
        missing_ok=True
    )  # only now: bad input, refused above, costs no finished search
    vectors = _search_all(model, edits, groups, settings, checkpoints)
    StoredTargets(vectors, keys_of(edits), about).save(out, seconds=time.perf_counter() - clock)
    checkpoints.clear()
    return out / DESCRIPTION


def check_search(spec: Mapping[str, Any]) -> tuple[Options, KeyValueSettings]:
    """The options and settings that a specification states, before anything is read.

    Raises:
        SettingsError: a missing or unknown key, or a value that no search could follow.
    """
    owner = "the search of target vectors"
    if unknown := sorted(set(spec) - set(KEYS), key=str):
        name = str(unknown[0])
        raise SettingsError(
            f"{owner} has no key {name!r:.60}{suggest(name, KEYS)}. It has: {', '.join(KEYS)}"
        )
    if missing := [name for name in ("edits", "settings") if spec.get(name) is None]:
        raise SettingsError(f"the specification of {owner} lacks {', '.join(missing)}")
    check_parts(spec, owner, ("edits",))
    options = Options.from_dict(spec.get("options") or {})
    return options, build(KeyValueSettings, spec["settings"], "a search of target vectors")


def _usable(edits: Sequence[Edit], model: LanguageModel, margin: int) -> list[Edit]:
    """Those that a run will try: the others are its failed edits, and never asked for here."""
    reasons = [why_not(edit, model, "a search of target vectors", True, margin) for edit in edits]
    usable = [edit for edit, reason in zip(edits, reasons, strict=True) if reason is None]
    if len(usable) < len(edits):
        first = next(reason for reason in reasons if reason is not None)
        log.warning(
            "%d of %d edits are not searched, the first: %s", len(edits) - len(usable), len(edits), first
        )
        if not usable:
            raise EditError(f"not one of {len(edits)} edits can be made, the first: {first}")
    return usable


def _search_all(
    model: LanguageModel,
    edits: Sequence[Edit],
    groups: Sequence[Sequence[str]],
    settings: KeyValueSettings,
    checkpoints: Checkpoints,
) -> TargetVectors:
    """Part after part, each as many edits as share a pass."""
    search, flat = settings.search(), [context for group in groups for context in group]
    parts = [] if (found := checkpoints.latest()) is None else [_part(found)]
    done = sum(len(part.z) for part in parts)
    pause = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
    bar = tqdm(total=len(edits), initial=done, unit="edit", desc="target vectors", mininterval=pause)
    with bar, interruption.deferred():
        for start in range(done, len(edits), EDITS_AT_ONCE):
            batch = edits[start : start + EDITS_AT_ONCE]
            parts.append(SEARCHES[settings.target_search](model, batch, flat, search))
            parts = [_joined(parts)]
            bar.update(len(batch))
            leaving = interruption.requested()
            if (leaving or checkpoints.due()) and start + len(batch) < len(edits):
                checkpoints.save(_checkpoint(parts[0]))
                if leaving:
                    interruption.leave(f"{len(parts[0].z)} of {len(edits)} target vectors are kept")
    return parts[0]


def _joined(parts: Sequence[TargetVectors]) -> TargetVectors:
    return TargetVectors(
        z=torch.cat([part.z.cpu() for part in parts]),
        initial=torch.cat([part.initial.cpu() for part in parts]),
        losses=[losses for part in parts for losses in part.losses],
        finite=torch.cat([part.finite.cpu() for part in parts]),
    )


def _checkpoint(part: TargetVectors) -> Checkpoint:
    tensors = {"z": part.z, "initial": part.initial, "finite": part.finite}
    return Checkpoint(len(part.z), tensors, {"losses": [[repr(loss) for loss in row] for row in part.losses]})


def _part(checkpoint: Checkpoint) -> TargetVectors:
    losses = [[float(loss) for loss in row] for row in checkpoint.plain["losses"]]
    found = checkpoint.tensors
    return TargetVectors(found["z"], found["initial"], losses, found["finite"])
