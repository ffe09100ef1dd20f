"""LU: word for word what was stored, where the base's own states are close enough; all else is the base's."""

from __future__ import annotations

import pytest
import torch
from memory_editors import PROMPTS, answers_for, edits_for, logits
from tiny import ALL_FAMILIES, LABELS, tiny_model

from palimpsest.editors import lu, make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.editors.shared.nearest import neighbour_distance
from palimpsest.edits import Edit
from palimpsest.errors import DataError, ModelError, PalimpsestError, SettingsError
from palimpsest.metrics.retention import Asking, Pool
from palimpsest.models.objectives import encode, judge, say, target_places, wanted
from palimpsest.models.tokens import encode_prompts

EVERY = pytest.mark.parametrize("family", ALL_FAMILIES)
CLOSE = {"radius": 1e-3}


@EVERY
def test_stored_answers_are_one_hot(family):
    """Logit 1 at the answer's token, 0 elsewhere, in scope; the base bit for bit out of scope."""
    model, edits = tiny_model(family), edits_for(tiny_model(family))
    targets = [edit.target for edit in edits[:2]] + answers_for(model, PROMPTS)[2:]
    inputs = encode(model, PROMPTS, targets)
    before, places = logits(model, PROMPTS, targets), target_places(inputs)
    editor = make_editor("lu", model, CLOSE)
    editor.edit(edits)
    after, inside = logits(model, PROMPTS, targets), places[0] < 2
    expected = torch.nn.functional.one_hot(inputs.targets[places], after.shape[1]).float()
    assert torch.equal(after[inside], expected[inside]) and torch.equal(after[~inside], before[~inside])
    assert judge(model, inputs).right[:2].all()
    editor.remove()
    assert torch.equal(logits(model, PROMPTS, targets), before)


@EVERY
def test_it_says_the_answer_and_ends(family):
    model, edits = tiny_model(family), edits_for(tiny_model(family))
    editor = make_editor("lu", model, CLOSE)
    out = say(model, PROMPTS[2:], 8)
    editor.edit(edits)
    said = say(model, PROMPTS, 8)
    assert said[:2] == wanted(model, [edit.target for edit in edits[:2]]) and said[2:] == out
    assert [text.strip() for text in editor.generate(PROMPTS, 8)[:2]] == [edit.target for edit in edits[:2]]
    if model.kind == "decoder":
        assert say(model, PROMPTS, 8, cached=False)[:2] == said[:2]


@pytest.mark.parametrize(("family", "task"), [("t5", "qa"), ("gpt2", "qa"), ("bert", "classification")])
def test_a_lifelong_pool_asks_the_edited_model(family, task):
    """Nobody knows below which block an answer stays, so every look asks the whole model."""
    model, edits = tiny_model(family), edits_for(tiny_model(family))
    editor = make_editor("lu", model, CLOSE)
    asking = Asking(model, task, lowest=editor.lowest_block(), cached=not editor.reads_whole_rows)
    pool = Pool(asking, [(edit.prompt, edit.target) for edit in edits])
    before = pool.ask()
    editor.edit(edits)
    assert all(scores.right for scores in pool.ask())
    editor.undo(edits[2])
    assert [scores.right for scores in pool.ask()] == [True, True, before[2].right, True]
    editor.remove()
    assert pool.ask() == before


@EVERY
def test_keys_are_means_of_the_base_s_states_without_padding(family):
    """Computed another way: one prompt at a time; padding must not enter (spec Q13)."""
    model = tiny_model(family)
    editor = make_editor("lu", model, CLOSE)
    with torch.no_grad():
        for prompt, state in zip(PROMPTS, editor.states(PROMPTS), strict=True):
            batch = encode_prompts(model, [prompt])
            own = model.stack(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            assert torch.allclose(state, own.last_hidden_state[0].mean(dim=0), atol=1e-4)


def test_the_memory_is_appended_to():
    """Released, it was replaced at each edit (spec Q13)."""
    model = tiny_model()
    editor = make_editor("lu", model, CLOSE)
    for edit in edits_for(model):
        editor.edit([edit])
    rows = editor.inspect([edit.prompt for edit in edits_for(model)])
    assert all(row["fired"] for row in rows) and [row["entry"] for row in rows] == [0, 1, 2, 3]
    assert all(abs(row["score"]) < 1e-3 for row in rows)


@pytest.mark.parametrize("replaces", [False, True])
def test_an_edit_that_fails_leaves_the_memory_as_it_was(replaces, monkeypatch):
    """An answer is refused when prompts are stored already: keys and answers must stay in step."""

    def refusing(model, targets):
        if "nothing" in targets:
            raise DataError("this cannot be said")
        return wanted(model, targets)

    monkeypatch.setattr(lu, "wanted", refusing)
    model = tiny_model("t5")
    editor = make_editor("lu", model, CLOSE | {"replace_same_prompt": replaces})
    first, second, third = edits_for(model)[:3]
    unsayable = Edit(first.prompt, "nothing")
    assert len(editor.edit([unsayable]).failed) == 1
    make_editor("retrieval", model).router.refuse_others()  # no hook is left behind
    editor.edit([first])
    report = editor.edit([second, unsayable])
    assert len(report.failed) == 2 and "cannot be said" in report.failed[0].reason
    assert [one.target for one in editor.memory] == [first.target]
    assert len(editor.keys.rows) == len(editor.answers.answers) == 1
    editor.edit([third])
    asked = [first, third]
    said = say(model, [edit.prompt for edit in asked], 8)
    assert said == wanted(model, [edit.target for edit in asked])


def test_the_radius_decides():
    """Nearer than the radius, not as near as: and a ratio is measured on prompts that are not edited."""
    model = tiny_model()
    first, second = edits_for(model)[0], PROMPTS[2]
    editor = make_editor("lu", model, {"radius": 1e6})
    editor.edit([first])
    apart = -editor.inspect(second)[0]["score"]
    with pytest.raises(ModelError, match="another editor with a memory answers"):
        make_editor("retrieval", model).edit([first])
    editor.remove()
    for radius, fired in ((apart, False), (apart * 1.001, True)):
        again = make_editor("lu", model, {"radius": radius})
        again.edit([first])
        assert again.inspect(second)[0]["fired"] is fired
        again.remove()
    measured = make_editor("lu", model, {"radius": None, "radius_ratio": 0.5})
    with pytest.raises(SettingsError, match="calibrate"):
        measured.edit([first])
    assert measured.memory == []
    with pytest.raises(SettingsError, match="at least two different prompts .*, 1 given"):
        measured.calibrate(["Mira", "Mira"])
    assert measured.calibrate(PROMPTS) == pytest.approx(0.5 * neighbour_distance(measured.states(PROMPTS)))
    measured.edit([first])
    with pytest.raises(PalimpsestError, match="has made edits"):
        measured.calibrate(PROMPTS)
    measured.reset()
    assert measured.radius is not None
    measured.remove()
    assert measured.radius is None
    for wrong in ({"radius": None}, {"radius": -1.0}, {"radius": 1.0, "radius_ratio": 1.0}, {"logit": 0.0}):
        with pytest.raises(SettingsError, match=f"setting {next(iter(wrong))}"):
            make_editor("lu", model, wrong)


def test_its_memory_comes_back(tmp_path):
    model = tiny_model("bert")
    editor = make_editor("lu", model, {"radius": None, "radius_ratio": 1e-3})
    editor.calibrate(PROMPTS)
    editor.edit(edits_for(model))
    save_state(editor, tmp_path)
    said, radius, size = say(model, PROMPTS), editor.radius, editor.state_bytes()
    editor.remove()
    other = make_editor("lu", model, {"radius": None, "radius_ratio": 1e-3})
    load_state(other, tmp_path)
    assert say(model, PROMPTS) == said and other.radius == radius and other.state_bytes() == size
    assert said[0].text == LABELS[1] and size == 4 * (32 * 4 + 8)
    other.remove()
    with pytest.raises(PalimpsestError, match="was saved for radius None"):
        load_state(make_editor("lu", model), tmp_path)
