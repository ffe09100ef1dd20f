"""MEND as an editor: what an edit does, batches, sequences, removal, training, and the faults that can be switched on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny import CITIES, LABELS, PEOPLE, some_edits, some_examples, tiny_model

from palimpsest import cli
from palimpsest.editors import editor_class, make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.edits import Edit, write_edits
from palimpsest.errors import DataError, PalimpsestError, SettingsError
from palimpsest.learning.artefact import Trained, TrainedError, plain_settings
from palimpsest.learning.examples import Sampler, write_examples
from palimpsest.learning.train import train_editor
from palimpsest.models.families import matrix_view
from palimpsest.models.objectives import row_losses
from palimpsest.runs import execute

FAMILIES = ("gpt2", "gptj", "t5", "bert")
PATHS = ["decoder.block.1.layer.2.DenseReluDense.wo"]
QUICK = {
    "layers": [2, 3], "rank": 8, "alpha0": 3e-3, "lr": 1e-3, "lr_lr": 1e-2, "c_edit": 1.0, "steps": 20, "k_train": 2,
    "accumulate": 1, "validate_every": 10, "validate_on": 4, "log_every": 5, "checkpoint_every": 10,
}  # fmt: skip


def settings_for(model, **changes):
    return {**QUICK, **({"paths": PATHS} if model.kind == "encoder_decoder" else {}), **changes}


def untrained(model, **changes):
    """An artefact whose networks are as they start; with norm: false they hand the gradient on."""
    learner = editor_class("mend").learner(model, settings_for(model, norm=False, **changes), 0)
    return Trained(
        editor="mend", model=model.fingerprint, model_name=model.name, data="", seed=0, steps=0, best_step=0,
        settings=plain_settings(learner.settings), validation={}, tensors=learner.tensors(),
    )  # fmt: skip


def edits(model, n=3):
    answers = LABELS if model.kind == "encoder" else CITIES
    return [
        Edit(f"Where does {person} live{', I say' * i}?", answers[(i + 1) % 4], identifier=f"e{i}")
        for i, person in enumerate(PEOPLE[:n])
    ]


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_identity_editor_takes_a_gradient_step(family):
    """With U = 0, no normalisation and alpha = eta, W' = W - eta grad: fine-tuning by one step (spec 10)."""
    model = tiny_model(family)
    editor, batch = make_editor("mend", model, trained=untrained(model, alpha0=1e-2)), edits(model)
    modules = [one.module for one in editor.matrices]
    inputs = editor_inputs(model, batch)
    for module in modules:
        module.weight.requires_grad_(True)
    losses = row_losses(model, inputs)
    gradients = torch.autograd.grad(losses.sum(), [module.weight for module in modules])
    expected = []
    for module, gradient in zip(modules, gradients, strict=True):
        module.weight.requires_grad_(False)
        expected.append(module.weight - 1e-2 * gradient)
    before = weights_of(model)
    report = editor.edit(batch, record=True)
    assert len(report.applied) == 3 and not report.failed
    for module, wanted in zip(modules, expected, strict=True):
        torch.testing.assert_close(module.weight, wanted, rtol=1e-4, atol=1e-5)
    notes = report.record["matrices"]
    assert all(note["cosine"] == pytest.approx(1.0, abs=1e-4) for note in notes.values())
    norms = zip(notes.values(), gradients, strict=True)
    assert all(
        note["update_norm"] == pytest.approx(1e-2 * float(gradient.norm()), rel=1e-3)
        for note, gradient in norms
    )
    assert report.record["losses"] == pytest.approx(losses.tolist(), rel=1e-3)
    editor.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def editor_inputs(model, batch):
    from palimpsest.editors.shared.mend_edit import edit_inputs

    return edit_inputs(model, [edit.prompt for edit in batch], [edit.target for edit in batch], False)


def change_of(editor, batch):
    """What a batch does to each matrix, on the untouched model."""
    editor.remove()
    before = [matrix_view(one.module).clone() for one in editor.matrices]
    editor.edit(batch)
    found = [matrix_view(one.module) - old for one, old in zip(editor.matrices, before, strict=True)]
    editor.remove()
    return found


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_a_batch_is_the_sum_of_its_edits(family):
    """Section 3.2: edits are computed apart and summed; the released mean over tokens shrinks with k (Q6)."""
    model = tiny_model(family)
    trained = train_editor("mend", model, some_examples(family), settings_for(model, steps=10))
    editor, batch = make_editor("mend", model, trained=trained), edits(model)
    together = change_of(editor, batch)
    singly = [change_of(editor, [edit]) for edit in batch]
    for found, *parts in zip(together, *singly, strict=True):
        total = sum(parts)
        torch.testing.assert_close(found, total, rtol=1e-2, atol=1e-3 * float(total.abs().max()))
    mean = make_editor("mend", model, {"reduction": "mean"}, trained=untrained(model))
    summed = make_editor("mend", model, trained=untrained(model))
    if family == "bert":  # every row has one target, so the mean is a third of the sum
        for small, large in zip(change_of(mean, batch), change_of(summed, batch), strict=True):
            torch.testing.assert_close(3 * small, large, rtol=1e-3, atol=1e-5)
    for one, other in zip(change_of(mean, batch[:1]), change_of(summed, batch[:1]), strict=True):
        torch.testing.assert_close(one, other)


def test_a_sequence_takes_each_gradient_at_the_edited_weights():
    model = tiny_model("gpt2")
    editor, (first, second, _) = make_editor("mend", model, trained=untrained(model)), edits(model)
    editor.edit([first])
    here = float(row_losses(model, editor_inputs(model, [second]))[0])
    report = editor.edit([second], record=True)
    assert report.record["losses"] == pytest.approx([here], rel=1e-4)
    after = weights_of(model)
    editor.remove()
    fresh = editor.edit([second], record=True).record["losses"][0]
    assert fresh != pytest.approx(here, rel=1e-4)
    editor.remove()
    editor.edit([first])
    editor.edit([second])
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights_of(model).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_states_come_back_and_belong_to_their_networks(family, tmp_path):
    model = tiny_model(family)
    editor = make_editor("mend", model, trained=untrained(model))
    untouched = weights_of(model)
    editor.edit(edits(model, 2))
    edited = weights_of(model)
    save_state(editor, tmp_path)
    editor.remove()
    load_state(editor, tmp_path)
    assert all(torch.equal(tensor, edited[name]) for name, tensor in weights_of(model).items())
    assert editor.state_bytes() == sum(4 * one.module.weight.numel() for one in editor.matrices)
    editor.remove()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in weights_of(model).items())
    other = make_editor("mend", model, trained=untrained(model, alpha0=0.5))
    with pytest.raises(PalimpsestError, match="made by a MEND with trained weights"):
        load_state(other, tmp_path)


def test_what_lies_below_the_lowest_block_is_kept():
    model = tiny_model("gpt2")
    editor = make_editor("mend", model, trained=untrained(model))
    assert editor.lowest_block() == 2
    before = model.network.transformer(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states[2]
    editor.edit(edits(model))
    after = model.network.transformer(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    assert torch.equal(before, after[2]) and not torch.equal(after[3], before)


def test_an_edit_that_is_not_finite_touches_nothing():
    model = tiny_model("gpt2")
    trained = untrained(model)
    trained.tensors = {**trained.tensors, "alpha": torch.tensor([1.0, 1.0, 1.0, float("inf")])}
    editor, before = make_editor("mend", model, trained=trained), weights_of(model)
    report = editor.edit(edits(model))
    assert len(report.failed) == 3 and "update of 3.mlp_in is not finite" in report.failed[0].reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def test_what_other_code_does_can_be_switched_on(caplog):
    """M1: only the last chunk of a batch is edited. M2: the step sizes of c_proj and c_fc change places. E5: padding counts."""
    model = tiny_model("gpt2")
    trained, batch = untrained(model), edits(model, 5)
    trained.tensors = {**trained.tensors, "alpha": torch.tensor([1e-3, 2e-3, 3e-3, 4e-3])}
    plain = make_editor("mend", model, trained=trained)
    chunked = make_editor("mend", model, {"last_chunk_only": 2}, trained=trained)
    for found, last in zip(change_of(chunked, batch), change_of(plain, batch[4:]), strict=True):
        assert torch.equal(found, last)
    assert "4 of 5 edits are lost" in caplog.text
    for found, whole in zip(change_of(chunked, batch[:2]), change_of(plain, batch[:2]), strict=True):
        assert torch.equal(found, whole)
    swapped = change_of(make_editor("mend", model, {"alpha_order": "network"}, trained=trained), batch)
    shares = zip(swapped, change_of(plain, batch), (2.0, 0.5, 4 / 3, 0.75), strict=True)
    for found, one, ratio in shares:
        torch.testing.assert_close(found, ratio * one, rtol=1e-3, atol=1e-6)
    unmasked = make_editor("mend", model, {"mask_padding": False}, trained=trained)
    lengths = {len(model.tokenizer(edit.target)["input_ids"]) for edit in batch}
    assert len(lengths) > 1
    assert not torch.allclose(change_of(unmasked, batch)[0], change_of(plain, batch)[0])
    assert torch.equal(change_of(unmasked, batch[:1])[0], change_of(plain, batch[:1])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_and_leaves_the_model_alone(family, tmp_path):
    model = tiny_model(family)
    before, examples = weights_of(model), some_examples(family)
    trained = train_editor("mend", model, examples, settings_for(model), tmp_path, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())
    lines = [line.split(",") for line in (tmp_path / "training.csv").read_text().splitlines()[1:]]
    losses = [float(value) for step, split, name, value in lines if (split, name) == ("train", "total")]
    assert losses[-1] < losses[0]
    assert trained.learned == [f"fact-{i}" for i in range(6)] and trained.best_step > 0
    assert {"edit success", "rephrase success", "drawdown", "right before"} <= set(trained.validation)
    assert trained.fingerprint == Trained.load(tmp_path).fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "trained.json",
        "training.csv",
        "weights.safetensors",
    ]


def test_training_is_repeated_only_when_something_changed(tmp_path, monkeypatch):
    model, examples = tiny_model("gpt2"), some_examples()
    first = train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "a")
    again = train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "b")
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1] and first.fingerprint == again.fingerprint
    other = train_editor("mend", model, examples, settings_for(model, steps=6), seed=1)
    assert other.fingerprint != first.fingerprint
    monkeypatch.setattr("palimpsest.learning.train.train", lambda *_: pytest.fail("trained again"))
    train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "a")
    with pytest.raises(pytest.fail.Exception):
        train_editor("mend", model, examples, settings_for(model, steps=7), tmp_path / "a")


def test_step_sizes_alone():
    """The control: with lr 0 the networks stay where they start."""
    model = tiny_model("gpt2")
    start = editor_class("mend").learner(model, settings_for(model, lr=0, steps=10), 0).tensors()
    trained = train_editor("mend", model, some_examples(), settings_for(model, lr=0, steps=10))
    moved = {name for name, tensor in trained.tensors.items() if not torch.equal(tensor, start[name])}
    assert "alpha" in moved and all("norm_" in name for name in moved - {"alpha"})


def test_the_losses_of_a_step():
    """L = c_edit L_e + L_loc; without a change of the weights L_loc is 0 and L_e is that of the untouched model."""
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model, alpha0=0.0, c_edit=0.3), 0)
    draws = Sampler(some_examples(), 0).draw(2)
    losses = learner.step(draws)
    queries = [Edit(draw.query, draw.query_answer) for draw in draws]
    expected = row_losses(model, editor_inputs(model, queries)).mean()
    assert float(losses["locality"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(losses["edit"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(losses["total"].detach()) == pytest.approx(0.3 * float(expected), rel=1e-4)
    losses["total"].backward()
    assert learner.network.alpha.grad.abs().min() > 0


def test_where_the_divergence_is_taken():
    """All tokens of x_loc, its answer, or one place too late (E7)."""
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model), 0)
    inputs = editor_inputs(model, [Edit("Mira lives in the city of", "Port Velden Bay")])
    start, count = int(inputs.query[0]), int((inputs.targets >= 0).sum())
    columns = {"all": range(start + count), "answer": range(start, start + count)}
    columns["answer_unshifted"] = range(start + 1, start + count + 1)
    for where, wanted in columns.items():
        learner.settings = replace(learner.settings, locality_over=where)
        assert learner._locality_places(inputs)[1].tolist() == list(wanted)


def test_a_gradient_that_is_not_finite_spoils_no_statistics():
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model), 0)
    draws = Sampler(some_examples(), 0).draw(2)
    learner.step(draws)
    kept = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    norm = model.network.transformer.ln_f.weight
    norm.data.mul_(float("nan"))
    loss = learner.step(draws)["total"]
    assert torch.isnan(loss) and loss.requires_grad
    assert all(torch.equal(tensor, kept[name]) for name, tensor in learner.tensors().items())


def test_bad_input_is_refused_before_anything_starts(tmp_path):
    model = tiny_model("gpt2")
    trained = untrained(model)
    for arguments, error, words in (
        (("mend", model, None), SettingsError, "learns before it edits.*train-editor.*trained="),
        (("mend", model, {"layers": [1]}), TrainedError, r"trained with layers = \[2, 3\], but \[1\]"),
        (("mend", model, {"size": 1}), SettingsError, "no setting 'size'"),
        (("mend", tiny_model("gpt2", seed=2), None), TrainedError, "Train it for this model"),
        (("ft", model, None), SettingsError, "ft needs no training"),
    ):
        with pytest.raises(error, match=words):
            make_editor(*arguments, trained=None if "learns before" in words else trained)
    with pytest.raises(TrainedError, match="holds no trained editor"):
        make_editor("mend", model, trained=tmp_path)
    unseen = editor_class("mend").learner(model, settings_for(model), 0)
    fresh = replace(trained, settings=plain_settings(unseen.settings), tensors=unseen.tensors())
    with pytest.raises(TrainedError, match="has seen no token.*train-editor"):
        make_editor("mend", model, trained=fresh)
    with pytest.raises(TrainedError, match="do not fit the matrices 2.mlp_out"):
        make_editor("mend", model, trained=replace(trained, tensors={"alpha": torch.ones(4)}))
    for changes, words in (
        ({"init": "zero"}, "init"), ({"sign": "up"}, "sign"), ({"rank": 0}, "rank"), ({"lr": -1}, "lr"),
        ({"c_edit": 0}, "c_edit"), ({"reduction": "max"}, "reduction"), ({"last_chunk_only": 0}, "last_chunk"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=words):
            editor_class("mend").learner(model, settings_for(model, **changes), 0)
    examples = some_examples()
    for changed, settings, error, words in (
        (examples[:4], {}, DataError, "'split': no learning example of the split 'valid'"),
        ([replace(one, rephrasings=()) for one in examples], {}, DataError, "no record has a rephrasing"),
        (examples, {"k_train": 5}, SettingsError, "k_train = 5, but the split 'train' has 4"),
    ):
        with pytest.raises(error, match=words):
            train_editor("mend", model, changed, settings_for(model, **settings))
    with pytest.raises(SettingsError, match="ft needs no training"):
        train_editor("ft", model, examples)


def test_the_command_line_and_a_run(tmp_path, capsys):
    """train-editor, then edit --trained, then a run; a run on facts that were learned from is refused."""
    model = tiny_model("gpt2")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    write_edits(tmp_path / "data" / "edits.jsonl", some_edits(4))
    write_examples(tmp_path / "data" / "learning.jsonl", some_examples())
    spec = {"editor": "mend", "settings": settings_for(model, steps=4), "dtype": "float32"}
    where = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data")]
    words = ["train-editor", "--spec", json.dumps(spec), *where, "--out", str(tmp_path / "mend")]
    assert cli.main(words) == 0 and (tmp_path / "mend" / "trained.json").exists()
    trained = ["--trained", str(tmp_path / "mend")]
    edit = ["edit", *where[:2], "--editor", "mend", "--prompt", "Ada Tolvek lives in", "--target", "Velden"]
    assert cli.main([*edit, *trained, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["applied"] == ["Ada Tolvek lives in"]
    assert cli.main(["train-editor", "--spec", '{"size": 1}', *where, "--out", "x"]) == 1
    assert "unknown key 'size'" in capsys.readouterr().err
    run = {
        "run": "toy-mend", "protocol": "consecutive", "dataset": "toy", "model": "tiny", "editor": "mend", "edits": 4,
        "batch_size": 2, "snapshot_every": 2, "options": {"conflicts": "keep"}, "settings": {},
    }  # fmt: skip
    folders = (tmp_path / "model", tmp_path / "data", tmp_path / "run")
    path = execute(run, 0, *folders, trained=tmp_path / "mend")
    content = json.loads(path.read_text())
    assert content["edits_applied"] == 4 and content["statistics"]["kind"] == "trained editor"
    write_edits(
        tmp_path / "data" / "edits.jsonl", [replace(edit, identifier="fact-1") for edit in some_edits(1)]
    )
    with pytest.raises(DataError, match="used to train mend.*fact-1"):
        execute({**run, "edits": 1, "batch_size": 1}, 0, *folders, trained=tmp_path / "mend")
