"""What a lifelong run notes beside its tables: the codebook at every look, what an answer costs by then, and checks.

None of it is a row: times differ from run to run, and quantiles of radii have no split to stand in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from palimpsest.editors.base import Editor, EditorState, edit_name
from palimpsest.editors.shared.keyed import Keyed
from palimpsest.edits import Edit
from palimpsest.metrics.retention import Asking
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, encode, row_losses, say, target_logits, target_places, wanted
from palimpsest.results import RADIUS_QUANTILES

TIMED_ROWS = 8
TIMED_PASSES = 3
MEASURED, PHRASINGS = 200, 5  # questions whose distances are measured, and rephrasings of each
EXAMPLES, EXAMPLES_LOOKED_AT = (
    3,
    12,
)  # shown of edits and of upstream; items among which the first edits are looked for
SHARED_KEYS, SHARED_PROMPTS = 5, 6  # entries that are noted, and prompts of each


def keys_of(editor: Editor) -> int | None:
    """Number of keys of an editor that has a codebook, else None."""
    keyed = editor.keyed()
    return None if keyed is None else len(keyed.codebook)


def codebook_note(editor: Editor) -> dict[str, Any] | None:
    """Keys, quantiles of the radii (`RADIUS_QUANTILES`) and how often each rule was used; None without a codebook.

    `first_radius` is that of a new key (eps_init), also where the settings give a ratio of distances.
    """
    keyed = editor.keyed()
    if keyed is None:
        return None
    codebook = keyed.codebook
    radii = codebook.radii.double().cpu()
    quantiles = torch.tensor(RADIUS_QUANTILES, dtype=torch.float64)
    return {
        "keys": len(codebook),
        "first_radius": keyed.radius,
        "radii": torch.quantile(radii, quantiles).tolist() if len(radii) else [],
        "events": dict(codebook.actions),
    }


def shared_keys(editor: Editor, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The entries that most edits rely on: what inputs share a key (GRACE's paragraph on it).

    Each has its `key` (number of the entry, from 0), `radius`, `answer`, `edits` (how many rely on it) and `prompts` (of the
    first of these). Only entries with several edits; empty without a codebook.
    """
    keyed = editor.keyed()
    if keyed is None:
        return []
    prompts = {edit_name(edit): edit.prompt for edit in edits}
    entries = [entry for entry in enumerate(keyed.codebook.taught) if len(entry[1].edits) > 1]
    largest = sorted(entries, key=lambda entry: -len(entry[1].edits))[:SHARED_KEYS]
    return [
        {
            "key": number,
            "radius": float(keyed.codebook.radii[number]),
            "answer": taught.text,
            "edits": len(taught.edits),
            "prompts": [prompts[name] for name in taught.edits if name in prompts][:SHARED_PROMPTS],
        }
        for number, taught in largest
    ]


def key_distances(editor: Editor, edits: Sequence[Edit]) -> dict[str, Any] | None:
    """How close phrasings of one question lie where the codebook is asked, against different questions (spec 8.3).

    Medians over the distances [units of the states] between the prompt and its rephrasings, `paraphrases`, and between
    prompts, `different`, of the first questions of the stream; their `ratio`, and how many `questions`. None for editors
    without a codebook, and for streams without rephrasings.
    """
    # Edits of one question have the same held-out rephrasings.
    questions = list({edit.rephrasings: edit for edit in reversed(edits) if edit.rephrasings}.values())
    questions = questions[::-1][:MEASURED]
    keyed = editor.keyed()
    if keyed is None or len(questions) < 2:
        return None
    prompts = [prompt for edit in questions for prompt in (edit.prompt, *edit.rephrasings[:PHRASINGS])]
    states: Tensor = keyed.queries(prompts).double()
    starts = [0]
    for edit in questions:
        starts.append(starts[-1] + 1 + len(edit.rephrasings[:PHRASINGS]))
    own = [states[first + 1 : end] - states[first] for first, end in pairwise(starts)]
    close = float(torch.cat(own).norm(dim=1).median())
    far = float(torch.pdist(states[starts[:-1]]).median())
    if far <= 0:
        return None
    return {"paraphrases": close, "different": far, "ratio": close / far, "questions": len(questions)}


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
        distances: `key_distances` before the first edit.
    """

    def __init__(self, model: LanguageModel, edits: Sequence[Edit]):
        """Before the editor is built; the first edits of the stream are asked."""
        self.model, self.edits = model, list(edits)
        self.rows = self._rows(self.edits[:TIMED_ROWS])
        self.logits = self._logits(self.rows)
        self.found: dict[str, bool] = {}
        self.distances: dict[str, Any] | None = None

    def built(self, editor: Editor) -> None:
        """After the editor is built and before the first edit, what it hangs in in place: the same logits, bit for bit."""
        editor.put_in_place()  # otherwise this would look at the model alone
        self.distances = key_distances(editor, self.edits)
        self.found["identity"] = torch.equal(self._logits(self.rows), self.logits)

    def edited(self, editor: Editor) -> None:
        """After the stream: the weights are those of the unedited model, and entries can be taken out one by one."""
        self.found["weights_unchanged"] = self.model.take_fingerprint() == self.model.fingerprint
        keyed = editor.keyed()
        if keyed is not None and len(keyed.codebook):
            found = self._reversible(editor, keyed)
            if found is not None:
                self.found["reversible"] = found

    def removed(self) -> None:
        """After the editor was taken off: weights and logits are those of the unedited model."""
        same = self.model.take_fingerprint() == self.model.fingerprint
        self.found["unwrapping_restores"] = same and torch.equal(self._logits(self.rows), self.logits)

    def _rows(self, edits: Sequence[Edit]) -> Inputs:
        return encode(self.model, [edit.prompt for edit in edits], [edit.target for edit in edits])

    @torch.no_grad()
    def _logits(self, rows: Inputs) -> Tensor:
        """All logits from which the rows' targets are predicted [k, v], by the model as it is now."""
        return target_logits(self.model, rows).clone()

    def _reversible(self, editor: Editor, keyed: Keyed) -> bool | None:
        """Whether taking an entry back changes nothing but what it answered, for entries from all over the codebook.

        When all edits of an entry are undone, the prompt it was made for has its unedited logits again unless another
        entry covers it, the logits of prompts that other entries answer stay, and so do all other entries' keys,
        radii, values and labels; bit for bit. None when no edit of the stream is held by any entry.
        """
        codebook, adapter = keyed.codebook, keyed.adapter
        by_name = {edit_name(edit): edit for edit in self.edits}
        held = [number for number, taught in enumerate(codebook.taught) if set(taught.edits) & set(by_name)]
        chosen = [held[place * len(held) // TIMED_ROWS] for place in range(TIMED_ROWS)] if held else []
        chosen = list(dict.fromkeys(chosen))
        if not chosen:
            return None
        first = [next(name for name in codebook.taught[number].edits if name in by_name) for number in chosen]
        rows = self._rows([by_name[name] for name in first])
        of_row = target_places(rows)[0]
        adapter.detach()
        unedited = self._logits(rows)
        adapter.attach()
        edited, answers = self._logits(rows), adapter.latest
        saved, fine = _copy(editor.state()), True
        for row, number in enumerate(chosen):
            value, names = codebook.values[number].clone(), list(codebook.taught[number].edits)
            own = torch.zeros(len(chosen), dtype=torch.bool, device=of_row.device)
            if answers is not None:  # rows that this entry answers, by its value
                own = answers.fired & (answers.value == value).all(dim=1)
            for name in reversed(names):
                keyed.undo(name)
            fine &= _without(saved, number, editor.state())
            now, left = self._logits(rows), adapter.latest
            covered = left is not None and bool(left.fired[row])
            fine &= covered or torch.equal(now[of_row == row], unedited[of_row == row])
            fine &= torch.equal(now[~own[of_row]], edited[~own[of_row]])
            editor.load_state(_copy(saved))
        return fine


def _copy(state: EditorState) -> EditorState:
    return EditorState({name: tensor.clone() for name, tensor in state.tensors.items()}, state.plain)


def _without(before: EditorState, number: int, after: EditorState) -> bool:
    """Whether a codebook's state is what it was but for one entry: keys, radii, values, labels and their edits."""
    entries = before.plain["entries"]
    same = after.plain["entries"] == entries[:number] + entries[number + 1 :]
    for name in ("keys", "radii", "values"):
        table = before.tensors[name]
        same &= torch.equal(after.tensors[name], torch.cat([table[:number], table[number + 1 :]]))
    return same
