"""What every editor promises: it is taken off without a trace, its state goes round, in half precision too."""

from __future__ import annotations

import pytest
import torch
from every_editor import KEEP_TEXTS, SETTINGS, build
from tiny import some_edits, tiny_model

from palimpsest.editors import editor_names
from palimpsest.editors.base import load_state, save_state
from palimpsest.models.tokens import encode_prompts

EDITS = some_edits(6)
PROMPTS = [edit.prompt for edit in EDITS]


def answers(model):
    return model.logits(encode_prompts(model, PROMPTS))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def test_all_editors_are_there():
    assert sorted(SETTINGS) == editor_names(), "tests/every_editor.py has settings for each, and for no other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", editor_names())
def test_remove_gives_back_the_model_bit_for_bit(name, dtype):
    """After two batches, and what is learned is kept in float32 at least."""
    model = tiny_model("gpt2", dtype)
    before, said = weights(model), answers(model)
    editor = build(name, model)
    for batch in (EDITS[:3], EDITS[3:]):
        assert not editor.edit(batch).failed
    assert name in KEEP_TEXTS or not torch.equal(answers(model), said)
    learned = [one for one in editor.state().tensors.values() if one.is_floating_point()]
    assert all(tensor.dtype in (torch.float32, torch.float64) for tensor in learned)
    editor.remove()
    assert torch.equal(answers(model), said)
    after = weights(model)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", editor_names())
def test_a_state_goes_round(name, tmp_path):
    """Saved, and loaded on a fresh model into an editor of another seed: the same answers, and the same next edits."""
    models = tiny_model("gpt2"), tiny_model("gpt2")
    said = answers(models[0])
    first, second = build(name, models[0]), build(name, models[1], seed=1)
    assert not first.edit(EDITS[:4]).failed
    save_state(first, tmp_path)
    load_state(second, tmp_path)
    assert torch.equal(answers(models[0]), answers(models[1]))
    for editor in (first, second):
        assert not editor.edit(EDITS[4:]).failed
    assert torch.allclose(answers(models[0]), answers(models[1]), atol=1e-5), (
        "something that edits read is no part of the state"
    )
    assert second.state_bytes() == first.state_bytes() and second.editing_bytes() == first.editing_bytes()
    second.remove()
    assert torch.equal(answers(models[1]), said)
