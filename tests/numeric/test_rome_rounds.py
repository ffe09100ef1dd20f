"""ROME in single rounds: edits that each start from the untouched model share their search, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared import key_value
from palimpsest.metrics.evaluation import Evaluation
from palimpsest.metrics.retention import Asking
from palimpsest.protocols import lifelong, single_round
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.lifelong_inputs import LifelongStream
from palimpsest.protocols.stream import Stream

SETTINGS = {"layers": [1], "steps": 5, "learning_rate": 0.4, "context_texts": [[""], ["Because I"]]}


@pytest.fixture
def searched(monkeypatch):
    """How many edits each search was for."""
    sizes, plain = [], key_value.SEARCHES["fast"]
    monkeypatch.setitem(
        key_value.SEARCHES, "fast", lambda *given: (sizes.append(len(given[1])), plain(*given))[1]
    )
    return sizes


def rome():
    model = tiny_model("gpt2")
    return make_editor("rome", model, SETTINGS, random_statistics(model, (1,)))


def update_of(editor, edit):
    editor.reset()
    assert not editor.edit([edit]).failed
    return editor.weights.updates[1].clone()


def test_prepared_edits_are_the_edits(searched):
    """Each on the untouched model: as alone, from one search for all."""
    alone, together = rome(), rome()
    wanted = [update_of(alone, edit) for edit in some_edits(5)]
    assert searched == [1] * 5
    searched.clear()
    together.prepare(some_edits(5))
    found = [update_of(together, edit) for edit in some_edits(5)]
    assert searched == [5]
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
    together.remove()
    assert torch.equal(together.model.mlp_weight(1), alone.model.mlp_weight(1)) is False
    alone.remove()
    assert torch.equal(together.model.mlp_weight(1), alone.model.mlp_weight(1))


def test_on_an_edited_model_nothing_prepared_is_used(searched):
    """The second edit of a sequence is searched on the model that the first one left, also after a state was loaded."""
    plain, prepared = rome(), rome()
    plain.edit(some_edits(2))
    searched.clear()
    prepared.prepare(some_edits(2))
    prepared.edit(some_edits(2))
    assert searched == [2, 1]
    assert torch.allclose(plain.weights.updates[1], prepared.weights.updates[1], atol=1e-4)
    state = prepared.state()
    prepared.remove()
    prepared.load_state(state)
    searched.clear()
    prepared.prepare(some_edits(4))  # not the untouched model: nothing is prepared
    prepared.edit(some_edits(3)[2:])
    assert searched == [1]


def rows(folder=None, dies_at=None, monkeypatch=None):
    """A single-round run of batches of one, killed before an edit or whole."""
    editor = rome()
    stream = Stream("run", 0, editor, Evaluation(editor.model, some_edits(6)), 1)
    checkpoints = None if folder is None else Checkpoints(folder, {"key": 1}, every_batch=True)
    if dies_at is not None:
        plain, made = editor.edit, []

        def edit(batch, record=False):
            made.append(batch)
            if len(made) == dies_at:
                raise KeyboardInterrupt
            return plain(batch, record)

        monkeypatch.setattr(editor, "edit", edit)
    progress = single_round.run(stream, checkpoints)
    return progress.metrics, progress.records


def test_a_broken_run_prepares_the_same_edits_again(tmp_path, monkeypatch, searched):
    """What shares a search decides the last digits: the same 4 (here) before and after the interruption."""
    monkeypatch.setattr(single_round, "AHEAD", 4)
    unbroken = rows()
    assert searched == [4, 2]
    with pytest.raises(KeyboardInterrupt):
        rows(tmp_path, 3, monkeypatch)
    searched.clear()
    assert rows(tmp_path) == unbroken
    assert searched == [4, 2]


def test_a_stream_searches_each_edit_once_and_alone(searched):
    """Nothing is rolled back there: what was prepared on the untouched model would be thrown away with the first edit."""
    editor = rome()
    how = Asking(editor.model, "qa", editor.lowest_block())
    lifelong.run(LifelongStream("run", 0, editor, how, some_edits(4), edit_always=True))
    assert searched == [1] * 4
