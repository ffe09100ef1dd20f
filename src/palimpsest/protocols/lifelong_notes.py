"""What a lifelong run notes beside its tables: the codebook at every look, what an answer costs by then, and checks.

None of it is a row: times differ from run to run, and quantiles of radii have no split to stand in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from palimpsest.editors.base import Editor, EditorState, edit_name
from palimpsest.edits import Edit
from palimpsest.metrics.retention import Asking
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode, row_losses, say, wanted

RADIUS_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
TIMED_ROWS = 8
TIMED_PASSES = 3
EXAMPLES, EXAMPLES_LOOKED_AT = (
    3,
    12,
)  # shown of edits and of upstream; items among which the first edits are looked for


def keys_of(editor: Editor) -> int | None:
    """Number of keys of an editor that has a codebook, else None."""
    codebook = getattr(editor, "codebook", None)
    return None if codebook is None else len(codebook)


def codebook_note(editor: Editor) -> dict[str, Any] | None:
    """Keys, quantiles of the radii (`RADIUS_QUANTILES`) and how often each rule was used; None without a codebook.

    `first_radius` is that of a new key (eps_init), also where the settings give a ratio of distances.
    """
    codebook = getattr(editor, "codebook", None)
    if codebook is None:
        return None
    radii = codebook.radii.double().cpu()
    quantiles = torch.tensor(RADIUS_QUANTILES, dtype=torch.float64)
    return {
        "keys": len(codebook),
        "first_radius": getattr(editor, "radius", None),
        "radii": torch.quantile(radii, quantiles).tolist() if len(radii) else [],
        "events": dict(codebook.actions),
    }


class Examples:
    """What the model says to a few prompts before any edit and at the end: the first edits, and upstream beside them."""

    def __init__(self, asking: Asking, edits: Sequence[Edit], upstream: Sequence[tuple[str, str]]):
        self.asking = asking
        asked = [(edit.prompt, edit.target) for edit in edits[:EXAMPLES_LOOKED_AT]]
        self.first_upstream = len(asked)
        self.pairs = asked + list(upstream[:EXAMPLES])

    def say(self) -> list[str]:
        """To every pair's prompt, as many tokens as its answer may need."""
        asking, model = self.asking, self.asking.model
        tokens = asking.said_tokens
        if model.kind == "decoder":
            tokens = max(len(said.ids) for said in wanted(model, [answer for _, answer in self.pairs]))
        prompts = [prompt for prompt, _ in self.pairs]
        return [said.text for said in say(model, prompts, tokens, asking.batching, asking.cached)]

    def note(self, before: Sequence[str], made: Sequence[int]) -> list[dict[str, Any]]:
        """At the end of the stream; `made` are the places of the edits."""
        chosen = [place for place in made if place < self.first_upstream][:EXAMPLES]
        upstream = range(self.first_upstream, len(self.pairs))
        after = self.say()
        return [
            {
                "split": "edit" if place < self.first_upstream else "upstream",
                "prompt": self.pairs[place][0],
                "answer": self.pairs[place][1],
                "before": before[place],
                "after": after[place],
            }
            for place in (*chosen, *upstream)
        ]


class ForwardTimer:
    """Seconds of one teacher-forced pass over a few fixed rows, by the whole model: the least of several tries."""

    def __init__(self, model: LanguageModel, pairs: Sequence[tuple[str, str]]):
        self.model = model
        prompts, answers = zip(*pairs[:TIMED_ROWS], strict=True)
        self.inputs = encode(model, list(prompts), list(answers))

    @torch.no_grad()
    def losses(self) -> list[float]:
        """Of each row, by the model as it is now."""
        return [float(loss) for loss in row_losses(self.model, self.inputs)]

    @torch.no_grad()
    def seconds(self) -> float:
        """Of one pass, by the model as it is now."""
        found = []
        for _ in range(TIMED_PASSES):
            start = time.perf_counter()
            row_losses(self.model, self.inputs).sum().item()
            found.append(time.perf_counter() - start)
        return min(found)


class Checks:
    """Whether the model answers as it did while there is no edit, keeps its weights, and is given back as it was.

    Attributes:
        found: `identity` (claim C1), `weights_unchanged` and `unwrapping_restores` (C2), `reversible` (C24), as far as
            they were looked at; methods that write into weights do not keep them unchanged, and may.
    """

    def __init__(self, model: LanguageModel, edits: Sequence[Edit]):
        """Before the editor is built; the first edits of the stream are looked at."""
        self.model, self.edits = model, list(edits[:TIMED_ROWS])
        self.timer = ForwardTimer(model, [(edit.prompt, edit.target) for edit in self.edits])
        self.losses = self.timer.losses()
        self.found: dict[str, bool] = {}

    def built(self, editor: Editor) -> None:
        """After the editor is built and before the first edit, its adapter (if any) in place: the same losses, bit for bit."""
        adapter = getattr(editor, "adapter", None)
        if (
            adapter is not None
        ):  # otherwise it hangs from the first edit on, and this would look at the model alone
            adapter.attach()
        self.found["identity"] = self.timer.losses() == self.losses

    def edited(self, editor: Editor) -> None:
        """After the stream: the weights are those of the unedited model, and entries can be taken out one by one."""
        self.found["weights_unchanged"] = self.model.take_fingerprint() == self.model.fingerprint
        codebook = getattr(editor, "codebook", None)
        if codebook is not None and len(codebook):
            found = self._reversible(editor, codebook)
            if found is not None:
                self.found["reversible"] = found

    def removed(self) -> None:
        """After the editor was taken off: weights and answers are those of the unedited model."""
        same = self.model.take_fingerprint() == self.model.fingerprint
        self.found["unwrapping_restores"] = same and self.timer.losses() == self.losses

    def _reversible(self, editor: Any, codebook: Any) -> bool | None:
        """Undone, an edit has its old answer again unless another entry covers it; answers of other entries stay.

        None when none of the edits that are looked at has an entry.
        """
        saved = editor.state()
        saved = EditorState({name: tensor.clone() for name, tensor in saved.tensors.items()}, saved.plain)
        edited, looked, fine = self.timer.losses(), False, True
        answering = codebook.look_up(editor.queries([edit.prompt for edit in self.edits])).entry.tolist()
        for row, edit in enumerate(self.edits):
            holding = [
                number for number, taught in enumerate(codebook.taught) if edit_name(edit) in taught.edits
            ]
            if not holding:
                continue
            looked = True
            editor.undo(edit_name(edit))
            now = self.timer.losses()
            covered = bool(codebook.look_up(editor.queries([edit.prompt])).fired[0])
            fine &= covered or now[row] == self.losses[row]
            others = [place for place, entry in enumerate(answering) if entry != holding[-1]]
            fine &= all(now[place] == edited[place] for place in others)
            editor.load_state(saved)
        return fine if looked else None
