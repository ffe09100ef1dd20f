"""The editor that docs/adding_an_editor.md shows is a whole one."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import breaking_off, some_edits, tiny_model

from palimpsest.editors.base import Editor, load_state, save_state
from palimpsest.editors.shared.factors import FactoredCovariance
from palimpsest.editors.shared.key_system import NOTHING, KeySystem
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.errors import PalimpsestError

PAGE = Path(__file__).parents[2] / "docs" / "adding_an_editor.md"
QUICK = {"layers": [1, 2], "steps": 4, "learning_rate": 0.4, "clamp": 2.0, "context_texts": [[""], ["So"]]}


@pytest.fixture(scope="module")
def shown():
    [block] = re.findall(
        r"^ *```python\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    names: dict = {"__name__": "mine"}
    exec(compile(textwrap.dedent(block), str(PAGE), "exec", dont_inherit=True), names)
    return names["EDITOR"]


def test_the_page_names_what_an_editor_may_override():
    """Every member of the base class that is not one of the five steps, nor what every editor gets."""
    steps = {"apply", "state", "load_state", "remove", "state_bytes"}
    given = {"build", "edit", "generate", "read_inputs", "stored_targets", "trained"}
    members = {name for name in vars(Editor) if not name.startswith("_")} - steps - given
    page = PAGE.read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.lstrip().startswith("| `"))
    assert [name for name in sorted(members) if f"`{name}`" not in rows] == []


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def test_it_edits_by_its_formula_and_gives_the_model_back(shown):
    model = tiny_model("gpt2")
    before = weights(model)
    editor = shown.build(model, QUICK, None, 0)
    report = editor.edit(some_edits(3), record=True)
    assert len(report.applied) == 3
    for layer in (1, 2):
        k, r = report.record["keys"][layer].double(), report.record["residuals"][layer].double()
        expected = r.T @ k @ torch.linalg.inv(torch.eye(k.shape[1], dtype=k.dtype) + k.T @ k)
        torch.testing.assert_close(report.record["updates"][layer].double(), expected, rtol=1e-4, atol=1e-6)
        assert expected.abs().max() > 1e-3
    state = editor.state()
    editor.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    editor.load_state(state)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize(
    "cut", [lambda update: update.T, lambda update: update[0], lambda update: update.sum()]
)
def test_an_update_of_another_shape_is_refused_and_leaves_no_trace(shown, monkeypatch, cut):
    """By the code itself, too: that tests check every shape on the way is no help to a user."""

    class Wrong(shown):
        def _solve(self, layer, keys, residuals):
            return cut(super()._solve(layer, keys, residuals))

    model = tiny_model("gpt2")
    before, editor = weights(model), Wrong.build(model, QUICK, None, 0)
    monkeypatch.setattr(EditedWeights, "add", inspect.unwrap(EditedWeights.add))
    words = r"the update of the matrix mlp_out of layer 1 is .*the matrix 32 x 48 \(out x in\)"
    with pytest.raises(PalimpsestError, match=words):
        editor.edit(some_edits(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def carrying(shown):
    """It adds up keys and residuals (a tensor by layer), and keeps its keys for a solve (a `Past` by layer)."""

    class Carrying(shown):
        carried = ("seen", "past")

        def _solve(self, layer, keys, residuals):
            own = torch.eye(keys.shape[1], dtype=torch.float64)
            system = KeySystem(FactoredCovariance(own), 1.0)
            update, self.past[layer] = system.solve(keys, residuals, self.past.get(layer, NOTHING))
            self.seen[layer] = self.seen.get(layer, 0) + keys.sum(dim=0)
            return update

    return Carrying


def told(editor):
    """All that is carried, as lists."""
    seen = {layer: kept.tolist() for layer, kept in editor.seen.items()}
    past = {
        layer: {part: one.tolist() for part, one in kept.tensors().items()}
        for layer, kept in editor.past.items()
    }
    return seen, past


def test_what_it_carries_comes_back_with_a_batch_that_breaks_off(shown, monkeypatch):
    """`carried`: taken back with the weights, and forgotten by `remove`."""
    model = tiny_model("gpt2")
    editor = carrying(shown).build(model, QUICK, None, 0)
    editor.edit(some_edits(2))
    carried, after = told(editor), weights(model)
    assert set(carried[0]) == set(carried[1]) == {1, 2}
    monkeypatch.setattr(editor.weights, "add", breaking_off(editor.weights.add, 1))
    with pytest.raises(KeyboardInterrupt):
        editor.edit(some_edits(4)[2:])
    assert told(editor) == carried
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(model).items())
    editor.remove()
    assert told(editor) == ({}, {})


def test_what_it_carries_goes_into_the_state(shown, tmp_path):
    """Saved, loaded on a fresh model: the next batch gives the same weights; a state without it would not."""
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    editor = carrying(shown).build(model, QUICK, None, 0)
    assert editor.editing_bytes() == 0
    assert not editor.edit(some_edits(2)).failed
    assert editor.editing_bytes() > 0
    save_state(editor, tmp_path)
    resumed = carrying(shown).build(other, QUICK, None, 0)
    load_state(resumed, tmp_path)
    assert told(resumed) == told(editor)
    for one in (editor, resumed):
        assert not one.edit(some_edits(4)[2:]).failed
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(model).items())
