"""Values that are trained before their turn: the same edits, the same rows, and nothing taken that does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import LABELS, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.editors.shared.values_ahead import SHORT, SPREAD, alike

FAMILIES = ("t5", "bert", "gpt2")


def edits_for(model, n: int = 4):
    edits = some_edits(n)
    if model.kind == "encoder":
        return [replace(edit, target=LABELS[i % 4]) for i, edit in enumerate(edits)]
    return edits


def grace(family, **more):
    model = tiny_model(family, torch.float64)
    return make_editor("grace", model, {"layer": 1, "steps": 12, "radius": 1e-3, **more})


def entries(editor):
    return editor.codebook.tensors()


@pytest.mark.parametrize("compat", ["corrected", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_edits_are_the_edits(family, compat):
    """Keys, values, radii and losses; the values are taken, not trained again."""
    more = {"compat": compat, "split": "half"} if compat == "official" else {}
    plain, prepared = grace(family, **more), grace(family, **more)
    edits = edits_for(plain.model)
    alone = [plain.edit([edit], record=True).record["edits"][0] for edit in edits]
    prepared.prepare(edits)
    assert not len(prepared.codebook) and not any(prepared.codebook.actions.values())
    prepared._train = lambda *_: pytest.fail("a prepared value was trained again")
    together = [prepared.edit([edit], record=True).record["edits"][0] for edit in edits]
    for name, tensor in entries(plain).items():
        assert torch.allclose(tensor, entries(prepared)[name], atol=1e-7), name
    for mine, theirs in zip(together, alone, strict=True):
        assert mine["action"] == theirs["action"] and mine["key"] == theirs["key"]
        assert torch.allclose(torch.tensor(mine["losses"]), torch.tensor(theirs["losses"]), atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_longer_fits_is_not_taken(family):
    """One entry serves all, so each edit starts where the one before it ended."""
    plain, prepared = grace(family, radius=1e9), grace(family, radius=1e9)
    edits = [replace(edit, target=edits_for(plain.model)[0].target) for edit in edits_for(plain.model)]
    trained = []
    train = prepared._train
    prepared._train = lambda value, inputs: trained.append(1) or train(value, inputs)
    prepared.prepare(edits)
    for edit in edits:
        plain.edit([edit])
        prepared.edit([edit])
    assert len(trained) == 3 and len(prepared.codebook) == 1
    for name, tensor in entries(plain).items():
        assert torch.allclose(tensor, entries(prepared)[name], atol=1e-7), name


def test_prepared_values_travel_with_the_state(tmp_path):
    """A run that goes on from a state makes the same edits, bit for bit."""
    first, second = grace("t5"), grace("t5")
    edits = edits_for(first.model)
    first.prepare(edits)
    first.edit(edits[:2])
    save_state(first, tmp_path)
    load_state(second, tmp_path)
    second._train = lambda *_: pytest.fail("the prepared values are lost")
    for editor in (first, second):
        editor.edit(edits[2:])
    for name, tensor in entries(first).items():
        assert torch.equal(tensor, entries(second)[name]), name
    first.remove()
    assert not first._ahead.plain()


def test_bad_edits_do_not_spoil_the_others(monkeypatch):
    """What cannot be made, or runs to infinity, waits for nobody; its turn says why."""
    editor = grace("t5")
    edits = edits_for(editor.model)
    monkeypatch.setattr(
        "palimpsest.editors.grace.own_start",
        lambda seed, name, width: torch.full((width,), torch.nan if name == edits[0].identifier else 0.5),
    )
    long = replace(edits[1], prompt="word " * 100, subject=None)
    editor.prepare([edits[0], long, *edits[2:]])
    assert sorted(prompt for prompt, _ in editor._ahead.plain()) == sorted(edit.prompt for edit in edits[2:])
    failed = {failure.edit for failure in editor.edit([edits[0], long]).failed}
    assert failed == {edits[0].identifier, long.identifier}


def test_rows_of_about_the_same_length_share_a_pass():
    lengths = [90, 21, 10, 24, 80, 40, 12, 100, 45]
    groups = alike(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[row] for row in group]
        assert max(sizes) <= max(SHORT, SPREAD * min(sizes))
    assert len(groups) == 3  # 10 to 24, 40 and 45, 80 to 100 together
