"""`LanguageModel.lean` off (option `plain` of a run): every block is run every time, and every editor makes the same edits."""

from __future__ import annotations

import pytest
import torch
from every_editor import KEEP_TEXTS, build
from tiny import TEXTS, saved_world, some_edits, tiny_model
from transformers.activations import GELUTanh, NewGELUActivation

from palimpsest.editors import editor_names, make_editor
from palimpsest.editors.shared.nearest import nearest, squared_norms
from palimpsest.models.loading import load_model
from palimpsest.statistics.covariance import CovarianceSettings, collect_covariance

EDITORS = [name for name in editor_names() if name not in KEEP_TEXTS]
ONCE = ("mend",)  # a single gradient: nothing is run twice in either way


def edited(name: str, lean: bool) -> tuple[dict[str, torch.Tensor], int]:
    """(tensors of the state after three edits, tokens that the first block was given)."""
    model = tiny_model("gpt2", torch.float64)
    model.lean = lean
    editor = build(name, model, seed=3)
    seen = 0

    def count(_module, arguments, _output):
        nonlocal seen
        seen += arguments[0].shape[:2].numel()

    handle = model.block(0).register_forward_hook(count)
    try:
        for edit in some_edits(3):
            assert not editor.edit([edit]).failed
        return {key: tensor.clone() for key, tensor in editor.state().tensors.items()}, seen
    finally:
        handle.remove()
        editor.remove()


@pytest.mark.parametrize("name", EDITORS)
def test_the_switch_changes_the_work_and_not_the_edits(name):
    (found, few), (expected, many) = edited(name, True), edited(name, False)
    assert found.keys() == expected.keys() and any(tensor.abs().max() > 0 for tensor in found.values())
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-9)
    assert many > few or name in ONCE, "nothing was run that the lean way leaves out"


def test_a_look_up_without_shortlist_finds_the_same():
    """Of many keys, some of them equal; a query that is no number is near nothing."""
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(60, 5, generator=generator), torch.randn(20, 5, generator=generator)
    keys[40:] = keys[:20]
    queries[:3], queries[3] = keys[45:48], torch.nan
    found, every = nearest(keys, squared_norms(keys), queries), nearest(keys, None, queries)
    assert torch.equal(found[0], every[0]) and torch.equal(found[1], every[1])
    assert found[0][:4].tolist() == [5, 6, 7, -1]
    for lean in (True, False):
        model = tiny_model("gpt2")
        model.lean = lean
        assert make_editor("grace", model, {"layer": 1}).codebook.shortlist == lean


def test_activations_stay_as_they_are(tmp_path):
    """The network's own many-step function, and the same answers."""
    saved_world(tmp_path)
    lean, plain = (load_model(tmp_path / "model", lean=lean) for lean in (True, False))
    kinds = [{type(module) for module in model.network.modules()} for model in (lean, plain)]
    assert GELUTanh in kinds[0] and NewGELUActivation not in kinds[0] and not plain.lean
    assert NewGELUActivation in kinds[1] and GELUTanh not in kinds[1]
    tokens = torch.tensor([[5, 9, 14, 3]])
    torch.testing.assert_close(
        lean.network(tokens).logits, plain.network(tokens).logits, rtol=1e-5, atol=1e-5
    )


def test_statistics_without_an_early_end_are_the_same():
    """The last block is run, and the sums do not notice."""
    model, runs, found = tiny_model("gpt2"), [], []
    handle = model.block(model.n_blocks - 1).register_forward_hook(lambda *_: runs.append(1))
    for stop in (True, False):
        chosen = CovarianceSettings(layers=(0, 2), tokens=300, batch_tokens=128, stop_early=stop)
        found.append(collect_covariance(model, TEXTS, chosen, progress=False))
        assert bool(runs) != stop
    handle.remove()
    assert all(torch.equal(found[0].matrix(layer), found[1].matrix(layer)) for layer in (0, 2))
