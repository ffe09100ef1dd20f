"""FT in GRACE's sense, FT+EWC and FT+Retrain: the stop rule, the penalty and its Fisher information, the replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import CITIES, LABELS, PEOPLE, tiny_model

from palimpsest.command_line.commands import run_statistics
from palimpsest.editors import make_editor
from palimpsest.editors.base import EditorState
from palimpsest.editors.ft import FineTuning
from palimpsest.edits import Edit
from palimpsest.errors import DataError, DivergedEdit, ModelError, SettingsError, StatisticsError
from palimpsest.models.families import as_stored, matrix_view
from palimpsest.models.objectives import encode, judge, row_losses
from palimpsest.models.upper import Upper
from palimpsest.statistics.fisher import (
    FisherSettings,
    FisherStatistics,
    collect_fisher,
    read_pairs,
    squared_gradients,
)

KINDS = ("t5", "bert", "gpt2")
SETTINGS = {"layer": 2, "learning_rate": 1e-2}


def edits(family, n=3):
    answers = LABELS if family == "bert" else CITIES
    return [
        Edit(
            prompt=f"Where does {person} live{', I say' * i}?",
            target=answers[(i + 1) % 4],
            identifier=f"e{i}",
        )
        for i, person in enumerate(PEOPLE[:n])
    ]


def pairs(family, n=3):
    return [(edit.prompt, edit.target) for edit in edits(family, n)]


def tuned(name, model, **settings):
    own = {"loss": "own", "stop": "argmax", "epsilon": None, "steps": 100} if name == "ft" else {}
    return make_editor(name, model, {**SETTINGS, **own, **settings})


def judged(model, edit):
    return judge(model, encode(model, [edit.prompt], [edit.target]))


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_ft_stops_as_soon_as_the_answer_is_given(family, site):
    model = tiny_model(family)
    editor, edit = tuned("ft", model, site=site), edits(family, 1)[0]
    assert not judged(model, edit).right.item()
    before = matrix_view(model.linear(2, site)).clone()
    report = editor.edit([edit], record=True)
    losses = report.record["losses"]
    assert 1 < len(losses) < 100 and judged(model, edit).right.item()
    # Told to stop one step earlier, the answer is not given yet: no step was taken after it was.
    editor.remove()
    shorter = replace(editor.settings, steps=len(losses) - 2)
    if shorter.steps:
        editor.settings = shorter
        editor.edit([edit])
        assert not judged(model, edit).right.item()
        editor.remove()
    assert torch.equal(matrix_view(model.linear(2, site)), before)
    assert editor.lowest_block() == 2


def test_an_edit_that_is_right_already_changes_nothing():
    model = tiny_model("bert")
    (said,) = (
        model.labels[int(model.network(**model.tokenizer("Where?", return_tensors="pt")).logits.argmax())],
    )
    before = model.linear(2, "mlp_out").weight.clone()
    tuned("ft", model).edit([Edit(prompt="Where?", target=said)])
    assert torch.equal(model.linear(2, "mlp_out").weight, before)


@pytest.mark.parametrize("family", KINDS)
def test_squared_gradients_are_those_of_each_row_alone(family):
    model = tiny_model(family)
    for site in ("mlp_in", "mlp_out"):
        inputs = encode(model, *zip(*pairs(family), strict=True))
        fast = squared_gradients(model, Upper(model, inputs, 2), 2, site)
        module = model.linear(2, site)
        plain = torch.zeros_like(fast)
        module.weight.requires_grad_(True)
        for prompt, answer in pairs(family):
            loss = row_losses(model, encode(model, [prompt], [answer])).sum()
            (gradient,) = torch.autograd.grad(loss, module.weight)
            plain += as_stored(module, gradient).double() ** 2
        module.weight.requires_grad_(False)
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-9 * float(plain.max()))


def test_the_penalty_is_that_of_the_formula():
    """One step by hand: gradient of the loss plus 2 lambda F (W - W*), which is zero at first, so two steps."""
    model = tiny_model("t5")
    editor, batch = tuned("ft_ewc", model, steps=2, lam=1e4, stop="loss", stop_loss=1e-9), edits("t5", 2)
    editor.edit(batch[:1])
    module = model.linear(2, "mlp_out")
    anchor = module.weight.detach().clone()
    inputs = encode(model, *zip(*pairs("t5", 2), strict=True))
    fisher = (squared_gradients(model, Upper(model, inputs, 2), 2, "mlp_out") / 2).float()
    weight = anchor.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=1e-2)
    for _ in range(2):
        module.weight.data.copy_(weight.detach())
        module.weight.requires_grad_(True)
        loss = row_losses(model, encode(model, [batch[1].prompt], [batch[1].target])).mean()
        (gradient,) = torch.autograd.grad(loss, module.weight)
        module.weight.requires_grad_(False)
        weight.grad = gradient + 2 * 1e4 * fisher * (weight.detach() - anchor)
        optimiser.step()
    module.weight.data.copy_(anchor)
    editor.edit(batch[1:])
    torch.testing.assert_close(module.weight, weight.detach(), rtol=1e-3, atol=2e-5)


def test_a_strong_penalty_holds_the_weights_back():
    moved = []
    for lam in (0.0, 1e6):
        model = tiny_model("t5")
        start = model.linear(2, "mlp_out").weight.clone()
        editor = tuned("ft_ewc", model, lam=lam, steps=20)
        editor.edit(edits("t5", 1))
        moved.append(float((model.linear(2, "mlp_out").weight - start).norm()))
    free = tiny_model("t5")
    tuned("ft", free, steps=20).edit(edits("t5", 1))
    assert moved[0] == pytest.approx(float((free.linear(2, "mlp_out").weight - start).norm()), rel=1e-4)
    assert moved[1] < 0.8 * moved[0]


def test_upstream_fisher_is_collected_once_and_used(tmp_path):
    model = tiny_model("t5")
    settings = FisherSettings((2,), batch_tokens=40)
    found = collect_fisher(model, pairs("t5"), settings, tmp_path)
    inputs = encode(model, *zip(*pairs("t5"), strict=True))
    expected = (squared_gradients(model, Upper(model, inputs, 2), 2, "mlp_out") / 3).float()
    torch.testing.assert_close(found.matrix(2), expected, rtol=1e-3, atol=1e-8)
    stamp = (tmp_path / "fisher.safetensors").stat().st_mtime_ns
    again = collect_fisher(model, pairs("t5"), settings, tmp_path)
    assert (tmp_path / "fisher.safetensors").stat().st_mtime_ns == stamp
    assert again.describe() == found.describe() == FisherStatistics.load(tmp_path).describe()
    wider = collect_fisher(model, pairs("t5"), FisherSettings((1, 2)), tmp_path)
    assert wider.layers == (1, 2) and torch.equal(wider.matrix(2), found.matrix(2))
    editor = make_editor("ft_ewc", model, {**SETTINGS, "fisher": "upstream"}, statistics=tmp_path)
    assert editor.edit(edits("t5", 1)).applied == ["e0"]
    editor.remove()
    with pytest.raises(SettingsError, match="fisher: upstream needs Fisher statistics"):
        make_editor("ft_ewc", model, {**SETTINGS, "fisher": "upstream"})
    with pytest.raises(StatisticsError, match="belong to model"):
        make_editor("ft_ewc", tiny_model("t5", seed=3), {**SETTINGS, "fisher": "upstream"}, statistics=found)
    with pytest.raises(StatisticsError, match="of site 'mlp_out', not 'mlp_in'"):
        found.check(model, 2, "mlp_in")
    with pytest.raises(StatisticsError, match="no Fisher information of layer 3"):
        found.check(model, 3, "mlp_out")
    with pytest.raises(ModelError, match="layer 9 does not exist"):
        collect_fisher(model, pairs("t5"), FisherSettings((9,)))
    with pytest.raises(StatisticsError, match="no upstream examples"):
        collect_fisher(model, [], settings)


def test_fisher_statistics_of_a_model_folder(tmp_path):
    model = tiny_model("t5")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "probes.jsonl"
    file.write_text(
        '{"set": "upstream", "prompt": "Who is Ada?", "answer": "Mira"}\n'
        '{"set": "holdout", "prompt": "Who is Ben?", "answer": "Mira"}\n'
    )
    assert read_pairs(file) == [("Who is Ada?", "Mira")]
    spec = {"kind": "fisher", "layers": [2], "dtype": "float32"}
    run_statistics(spec, tmp_path / "model", file, tmp_path / "out")
    found = FisherStatistics.load(tmp_path / "out")
    assert found.examples == 1 and (tmp_path / "out" / "fisher.json").is_file()
    file.write_text("{}\n")
    with pytest.raises(DataError, match=r"probes\.jsonl, record line 1"):
        read_pairs(file)
    with pytest.raises(SettingsError, match="name at least one block"):
        FisherSettings.from_dict({"layers": []})
    with pytest.raises(SettingsError, match="has no setting 'tokens'"):
        FisherSettings.from_dict({"layers": [1], "tokens": 3})


def test_replay_trains_on_everything_in_order_and_then_the_edit_is_made():
    batch = edits("t5")
    model, plain = tiny_model("t5"), tiny_model("t5")
    editor = tuned("ft_retrain", model, retrain_frequency=3, retrain_epochs=2, steps=10)
    reports = [editor.edit([edit], record=True) for edit in batch]
    assert ["retrain_losses" in report.record for report in reports] == [False, False, True]
    by_hand = tuned("ft", plain, steps=10)
    by_hand.edit(batch[:1])
    by_hand.edit(batch[1:2])
    by_hand.fit(by_hand.mini_batches(batch, 1), 2, stop=False)
    by_hand.edit(batch[2:])
    torch.testing.assert_close(
        model.linear(2, "mlp_out").weight, plain.linear(2, "mlp_out").weight, rtol=1e-3, atol=5e-5
    )


def test_replay_from_the_initial_weights():
    batch = edits("t5")
    model, plain = tiny_model("t5"), tiny_model("t5")
    editor = tuned("ft_retrain", model, retrain_frequency=2, retrain_from="initial", steps=5)
    editor.edit(batch[:1])
    editor.edit(batch[1:2])
    by_hand = tuned("ft", plain, steps=5)
    by_hand.fit(by_hand.mini_batches(batch[:2], 1), 5, stop=False)
    by_hand.edit(batch[1:2])
    torch.testing.assert_close(
        model.linear(2, "mlp_out").weight, plain.linear(2, "mlp_out").weight, rtol=1e-3, atol=5e-5
    )


@pytest.mark.parametrize("name", ["ft", "ft_ewc", "ft_retrain"])
def test_state_goes_on_where_it_was(name):
    batch = edits("t5")
    extra = {"retrain_frequency": 2} if name == "ft_retrain" else {}
    model, other = tiny_model("t5"), tiny_model("t5")
    untouched = model.linear(2, "mlp_out").weight.clone()
    editor = tuned(name, model, steps=10, **extra)
    for edit in batch[:2]:
        editor.edit([edit])
    state = editor.state()
    state = EditorState({key: tensor.clone() for key, tensor in state.tensors.items()}, state.plain)
    fresh = tuned(name, other, steps=10, **extra)
    fresh.load_state(state)
    for one in (editor, fresh):
        one.edit(batch[2:])
    assert torch.equal(model.linear(2, "mlp_out").weight, other.linear(2, "mlp_out").weight)
    editor.remove()
    assert torch.equal(model.linear(2, "mlp_out").weight, untouched)


def test_an_edit_that_diverges_after_its_replay_leaves_the_model_as_it_was(monkeypatch):
    model = tiny_model("t5")
    editor = tuned("ft_retrain", model, retrain_frequency=2, steps=5)
    editor.edit(edits("t5", 1))
    before = model.linear(2, "mlp_out").weight.clone()

    def diverging(self, batch, record):
        assert not torch.equal(self.weights.updates[2], updates)  # the replay is done
        raise DivergedEdit("not finite")

    updates = editor.weights.updates[2].clone()
    monkeypatch.setattr(FineTuning, "apply", diverging)
    report = editor.edit(edits("t5", 2)[1:])
    assert report.failed and torch.equal(model.linear(2, "mlp_out").weight, before)
    assert len(editor.past) == 1


def test_settings_are_checked():
    for name, settings, message in (
        ("ft", {"loss": "mine"}, "prompt_last, target_new or own"),
        ("ft", {"stop": "argmax"}, "argmax needs loss: own"),
        ("ft", {"stop": "soon"}, "loss or argmax"),
        ("ft_ewc", {"loss": "target_new", "stop": "loss"}, "own, whose Fisher"),
        ("ft_ewc", {"lam": -1.0}, "must not be negative"),
        ("ft_ewc", {"fisher": "all"}, "edits or upstream"),
        ("ft_ewc", {"fisher_mem": 0}, "at least one"),
        ("ft_retrain", {"retrain_epochs": 0}, "at least one"),
        ("ft_retrain", {"retrain_from": "scratch"}, "current or initial"),
        ("ft_retrain", {"retrain_memory": 0}, "or null for all"),
    ):
        with pytest.raises(SettingsError, match=message):
            make_editor(name, tiny_model("gpt2"), settings)
    with pytest.raises(ModelError, match="decoder-only"):
        make_editor("ft", tiny_model("t5"))
