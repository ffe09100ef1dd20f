"""MEND as an editor: what an edit does, batches, sequences, removal, training, and the faults that can be switched on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny import some_edits, some_examples, tiny_model, write_examples
from untrained_mend import editor_inputs, edits, settings_for, untrained, weights_of

from palimpsest import cli
from palimpsest.editors import make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.edits import Edit, write_edits
from palimpsest.errors import DataError, PalimpsestError
from palimpsest.learning.train import train_editor
from palimpsest.models.families import matrix_view
from palimpsest.models.objectives import row_losses
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute

FAMILIES = ("gpt2", "gptj", "t5", "bert")


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
    """Section 5.3: edits are computed apart and summed; the released mean over tokens shrinks with k (Q6)."""
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
    before = model.network.transformer(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    editor.edit(edits(model))
    after = model.network.transformer(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    assert torch.equal(before[2], after[2]) and not torch.equal(before[3], after[3])


def test_an_edit_that_fills_the_context_fails_alone():
    """Its end token does not fit; the other edits of the batch are made."""
    model = tiny_model("gpt2")
    editor, short = make_editor("mend", model, trained=untrained(model)), edits(model, 1)[0]
    prompt = "so"
    while len(model.tokenizer(f"{prompt} Velden")["input_ids"]) < model.context:
        prompt += "o"
    assert len(model.tokenizer(f"{prompt} Velden")["input_ids"]) == model.context
    report = editor.edit([Edit(prompt, "Velden", identifier="long"), short])
    assert report.applied == ["e0"] and [failure.edit for failure in report.failed] == ["long"]


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
    report = chunked.edit(batch)
    assert report.applied == ["e4"] and not report.failed
    assert [one.edit for one in report.lost] == ["e0", "e1", "e2", "e3"]
    assert "only the last 1 of the batch's 5 edits" in report.lost[0].reason
    assert chunked.edit(batch[:2]).applied == ["e0", "e1"] and not chunked.edit(batch[:2]).lost
    chunked.remove()
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
    files = RunFiles(tmp_path / "model", tmp_path / "data", trained=tmp_path / "mend")
    path = execute(run, 0, files, tmp_path / "run")
    content = json.loads(path.read_text())
    assert content["edits_applied"] == 4 and content["statistics"]["kind"] == "trained editor"
    write_edits(
        tmp_path / "data" / "edits.jsonl", [replace(edit, identifier="fact-1") for edit in some_edits(1)]
    )
    with pytest.raises(DataError, match="used to train mend.*fact-1"):
        execute({**run, "edits": 1, "batch_size": 1}, 0, files, tmp_path / "run")
