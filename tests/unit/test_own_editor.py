"""The editor that docs/adding_an_editor.md shows is a whole one."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import breaking_off, some_edits, tiny_model

from palimpsest.editors.base import Editor

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
    given = {"build", "edit", "generate", "read_inputs", "stored_targets"}
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


def test_what_it_carries_comes_back_with_a_batch_that_breaks_off(shown, monkeypatch):
    """`carried`: taken back with the weights, and forgotten by `remove`."""

    class Counting(shown):
        carried = ("seen",)

        def _solve(self, layer, keys, residuals):
            self.seen[layer] = self.seen.get(layer, 0) + len(keys)
            return super()._solve(layer, keys, residuals)

    model = tiny_model("gpt2")
    editor = Counting.build(model, QUICK, None, 0)
    editor.edit(some_edits(2))
    assert editor.seen == {1: 2, 2: 2}
    after = weights(model)
    monkeypatch.setattr(editor.weights, "add", breaking_off(editor.weights.add, 1))
    with pytest.raises(KeyboardInterrupt):
        editor.edit(some_edits(4)[2:])
    assert editor.seen == {1: 2, 2: 2}
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(model).items())
    editor.remove()
    assert editor.seen == {}
