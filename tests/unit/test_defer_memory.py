"""Defer and the memory network: GRACE's baselines that act beside the same linear map."""

from __future__ import annotations

import pytest
import torch
from test_grace import OTHERS, edits_for, losses
from tiny import tiny_model

from palimpsest.editors import make_editor
from palimpsest.errors import SettingsError
from palimpsest.models.objectives import asking, encode_prompts_only, say
from palimpsest.models.upper import Upper

FAMILIES = ("t5", "bert", "gpt2")


def asked(model, prompts) -> torch.Tensor:
    """The map's outputs [b, n, d_out] for prompts, as the rest of the model sees them."""
    seen = []
    handle = model.linear(1, "mlp_out").register_forward_hook(
        lambda _, inputs, out: seen.append((inputs[0], out))
    )
    inputs = encode_prompts_only(model, prompts)
    with torch.no_grad(), asking(model, inputs):
        model.stack(**inputs.named)
    handle.remove()
    states, outputs = seen[0]
    return states[torch.arange(len(prompts)), inputs.query], outputs


@pytest.mark.parametrize("name", ["defer", "memory"])
@pytest.mark.parametrize("family", FAMILIES)
def test_untouched_until_the_first_edit_and_after_remove(family, name):
    model = tiny_model(family)
    edits, weights = edits_for(model, 3), {k: v.clone() for k, v in model.network.state_dict().items()}
    before = losses(model, edits)
    used = make_editor(
        name, model, {"layer": 1, "steps": 30, "learning_rate": 1e-3 if name == "defer" else 0.1}
    )
    drawn = {key: value.clone() for key, value in used.parameters.items()}
    assert torch.equal(losses(model, edits), before)
    report = used.edit(edits, record=True)
    assert not report.failed and used.edits_made == 3
    if name == "memory":  # Defer's gate may have closed while it mixed, and then the edit does not act
        assert losses(model, edits)[2] < before[2]  # the latest edit; nothing keeps the others
    first = report.record["edits"][0]["losses"]
    assert min(first) < first[0]
    size = used.state_bytes()
    used.remove()
    assert torch.equal(losses(model, edits), before)
    assert all(torch.equal(weights[k], v) for k, v in model.network.state_dict().items())
    assert all(torch.equal(drawn[key], value) for key, value in used.parameters.items())
    assert used.state_bytes() == size


@pytest.mark.parametrize("name", ["defer", "memory"])
@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_batches_give_what_one_by_one_gives(family, name):
    """Q9, which the released wrappers cannot do."""
    model = tiny_model(family)
    edits = edits_for(model, 4)
    used = make_editor(name, model, {"layer": 1, "steps": 5})
    used.edit(edits[:2])
    alone = torch.cat([losses(model, [edit]) for edit in edits])
    assert torch.allclose(losses(model, edits), alone, atol=1e-4)
    prompts = [edit.prompt for edit in edits] + OTHERS
    assert say(model, prompts, 4) == Upper(model, encode_prompts_only(model, prompts), 1).say(4)
    if model.kind == "decoder":
        assert say(model, prompts, 4) == say(model, prompts, 4, cached=False)
    used.remove()


def test_defer_by_hand(gpt2):
    """Gate and value from their definition: mixed in training, all or nothing afterwards."""
    edits = edits_for(gpt2, 2)
    used = make_editor("defer", gpt2, {"layer": 1, "steps": 10})
    used.edit(edits)
    prompts = [edit.prompt for edit in edits] + OTHERS
    p = used.parameters
    used.adapter.detach()
    states, own = asked(gpt2, prompts)
    gate = torch.sigmoid(states @ p["gate.weight"][0] + p["gate.bias"])
    used.parameters["gate.bias"] -= torch.logit(gate.median())  # so that some rows are open and some closed
    gate = torch.sigmoid(states @ p["gate.weight"][0] + p["gate.bias"])
    value = states @ p["value.weight"].T + p["value.bias"]
    used.adapter.attach()
    with used.watching() as acted:
        _, outputs = asked(gpt2, prompts)
        assert acted().tolist() == (gate >= 0.5).tolist()
    assert 0 < int((gate >= 0.5).sum()) < len(prompts)
    for row in range(len(prompts)):
        expected = value[row].expand_as(own[row]) if gate[row] >= 0.5 else own[row]
        assert torch.allclose(outputs[row], expected, atol=1e-4)
    used.training = True
    _, outputs = asked(gpt2, prompts)
    share = gate[:, None, None]
    assert torch.allclose(outputs, share * value[:, None] + (1 - share) * own, atol=1e-4)
    used.remove()


def test_memory_by_hand_and_from_the_start(gpt2):
    """Every position of every row is a mixture of the values; as released, before any edit too (Q16)."""
    edits = edits_for(gpt2, 3)
    prompts, before = [edit.prompt for edit in edits], losses(gpt2, edits)
    used = make_editor("memory", gpt2, {"layer": 1, "steps": 10, "entries": 7, "from_start": True})
    assert (losses(gpt2, edits) != before).all()
    p = used.parameters
    states, outputs = asked(gpt2, prompts)
    weights = (states @ p["attention.weight"].T + p["attention.bias"]).softmax(dim=1)
    assert weights.shape == (3, 7) and p["values"].min() >= 0 and p["values"].max() < 1
    expected = (weights @ p["values"])[:, None].expand_as(outputs)
    assert torch.allclose(outputs, expected, atol=1e-4)
    used.remove()
    assert torch.equal(losses(gpt2, edits), before)


def test_the_gate_s_seed_and_a_failed_edit(gpt2, monkeypatch):
    drawn = [make_editor("defer", gpt2, {"layer": 1}, seed=seed).parameters for seed in (0, 0, 1)]
    assert torch.equal(drawn[0]["value.weight"], drawn[1]["value.weight"])
    assert not torch.equal(drawn[0]["value.weight"], drawn[2]["value.weight"])
    edits = edits_for(gpt2, 2)
    used = make_editor("defer", gpt2, {"layer": 1, "steps": 3})
    used.edit(edits[:1])
    before, kept = losses(gpt2, edits), {key: value.clone() for key, value in used.parameters.items()}
    monkeypatch.setattr("palimpsest.models.upper.Upper.row_losses", lambda _: torch.tensor([torch.inf]))
    assert "loss is inf" in used.edit(edits[1:]).failed[0].reason
    monkeypatch.undo()
    assert all(torch.equal(kept[key], value) for key, value in used.parameters.items())
    assert torch.equal(losses(gpt2, edits), before) and used.edits_made == 1
    other = make_editor("memory", gpt2, {"layer": 1, "entries": 5})
    wrong = make_editor("memory", gpt2, {"layer": 1, "entries": 6}).state()
    with pytest.raises(Exception, match="attention.weight of shape"):
        other.load_state(wrong)
    used.remove()


def test_settings_that_make_no_sense(gpt2):
    for name, settings in (
        ("defer", {"threshold": 1.0}),
        ("memory", {"entries": 0}),
        ("defer", {"stop_loss": 0.0}),
    ):
        with pytest.raises(SettingsError, match=next(iter(settings))):
            make_editor(name, gpt2, {"layer": 1, **settings})
