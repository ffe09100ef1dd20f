"""Edits that leave the finite numbers: each is a failed edit with its reason, the model is as before, and the run goes on."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import torch
from every_editor import KEEP_TEXTS, SETTINGS, build
from tiny import random_statistics, saved_world, some_edits, tiny_model

from palimpsest import Edit, results
from palimpsest.editors import editor_class, editor_names, make_editor
from palimpsest.editors.base import EditorState
from palimpsest.editors.shared.adapter_editor import AdapterEditor
from palimpsest.editors.shared.aftermath import refuse_broken
from palimpsest.errors import DivergedEdit
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute
from palimpsest.statistics.covariance import CovarianceStatistics

GOOD = [name for name in editor_names() if name not in KEEP_TEXTS] + ["comeba_hk without hooks"]
# A first step so long that what it leads to is no number; nothing is wrong with the loss before it.
TOO_FAR = {
    **{name: {"learning_rate": 1e36, "epsilon": None, "steps": 1} for name in ("ft", "ft_ewc", "ft_retrain")},
    **{name: {"layer": 1, "learning_rate": 1e36, "steps": 1} for name in ("grace", "memory")},
}


def class_of(name):
    return editor_class(name.split()[0])


def built(name, model, **changes):
    kind, _, other = name.partition(" without ")
    return build(kind, model, **changes, **({other: False} if other else {}))


def content_of(editor):
    """Weights and state, for comparison."""
    state: EditorState = editor.state()
    weights = {name: tensor.clone() for name, tensor in editor.model.network.state_dict().items()}
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items() if not name.startswith("ahead")}
    return {**weights, **{f"state {name}": tensor for name, tensor in tensors.items()}}, state.plain


def same(first, second):
    assert set(first[0]) == set(second[0]) and first[1] == second[1]
    for name, tensor in first[0].items():
        torch.testing.assert_close(tensor, second[0][name], rtol=0, atol=0, equal_nan=True, msg=name)


def poisoned():
    """A model to which one word is no number (its head has its own words), and an edit in which the word occurs."""
    model = tiny_model("gptj")
    word = model.tokenizer("Zanzibar")["input_ids"][0]
    with torch.no_grad():
        model.network.get_input_embeddings().weight[word] = torch.nan
    return model, Edit("Zanzibar, I say", "Velden", subject="Zanzibar", identifier="bad")


@pytest.mark.parametrize("name", GOOD)
def test_an_edit_that_is_no_number_fails_and_leaves_no_trace(name):
    model, bad = poisoned()
    assert torch.isnan(model.network.get_input_embeddings().weight).any(dim=1).sum() == 1
    first, second = some_edits(2)
    editor = built(name, model)
    assert editor.edit([first]).applied == ["edit-0"]
    before = content_of(editor)
    report = editor.edit([bad])
    assert report.applied == [] and [failure.edit for failure in report.failed] == ["bad"]
    assert "finite" in report.failed[0].reason or "nan" in report.failed[0].reason
    same(before, content_of(editor))
    assert editor.edit([second]).applied == ["edit-1"]  # and what comes next is as if it had not been there
    after = content_of(editor)
    other = built(name, poisoned()[0])
    for edit in (first, second):
        other.edit([edit])
    same(after, content_of(other))


@pytest.mark.parametrize("name", TOO_FAR)
def test_a_step_too_far_fails_and_leaves_no_trace(name):
    """The last step is followed by no loss: whether the edited model still gives numbers is asked all the same."""
    model = tiny_model("gpt2")
    editor = built(name, model, **TOO_FAR[name])
    before = model.take_fingerprint()
    report = editor.edit(some_edits(1))
    assert report.applied == [] and report.failed[0].reason
    assert model.take_fingerprint() == before
    refuse_broken(model, some_edits(2))


def test_one_bad_edit_of_a_batch_does_not_take_the_others_along():
    model, bad = poisoned()
    report = built("memit", model).edit([some_edits(2)[0], bad, some_edits(2)[1]])
    assert report.applied == ["edit-0", "edit-1"] and [failure.edit for failure in report.failed] == ["bad"]


@pytest.mark.parametrize("name", ["memit", "comeba_hk", "rome"])
@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_a_covariance_that_is_not_positive_definite(name, sign):
    model = tiny_model("gpt2")
    matrix = sign * torch.eye(model.inner_width)
    statistics = CovarianceStatistics({1: matrix, 2: matrix}, 10, model.fingerprint)
    editor = make_editor(name, model, SETTINGS[name], statistics)
    report = editor.edit(some_edits(1))
    assert report.applied == [] and "not positive definite" in report.failed[0].reason
    assert model.take_fingerprint() == model.fingerprint


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_other_kinds_of_models_are_asked_too(kind):
    model = tiny_model(kind)
    target = "class 1" if kind == "bert" else "Velden"
    edits = [Edit("Ada lives in the city of", target), Edit("Mira, I say, lives in", target)]
    refuse_broken(model, edits)
    with torch.no_grad():
        model.linear(1, "mlp_out").weight.fill_(1e38)
    with pytest.raises(DivergedEdit, match="gives no numbers any more"):
        refuse_broken(model, edits)


@pytest.mark.parametrize("name", [name for name in GOOD if not issubclass(class_of(name), AdapterEditor)])
def test_who_writes_into_weights_asks_the_model_afterwards_and_takes_back(name, monkeypatch):
    def refuse(*_):
        raise DivergedEdit("after the edit the model gives no numbers any more")

    editor = built(name, tiny_model("gpt2"))
    editor.edit(some_edits(1))
    before = content_of(editor)
    asking = [kind for kind in type(editor).__mro__ if hasattr(sys.modules[kind.__module__], "refuse_broken")]
    monkeypatch.setattr(sys.modules[asking[0].__module__], "refuse_broken", refuse)
    report = editor.edit(some_edits(2)[1:])
    assert [failure.reason for failure in report.failed] == [
        "after the edit the model gives no numbers any more"
    ]
    same(before, content_of(editor))


def test_half_precision_overflows_in_activations_before_it_does_in_weights():
    for dtype in (torch.float32, torch.float16):
        model = tiny_model("gpt2", dtype=dtype)
        with torch.no_grad():
            model.mlp_out(3).weight.fill_(6e4)
        assert torch.isfinite(model.mlp_weight(3)).all()
        if dtype == torch.float32:
            refuse_broken(model, some_edits(2))
            continue
        with pytest.raises(DivergedEdit, match=r"too large for torch\.float16"):
            refuse_broken(model, some_edits(2))


def test_arithmetic_that_fails_is_one_edits_fault_and_a_wrong_program_is_not(monkeypatch):
    editor = built("ft", tiny_model("gpt2"))
    for error in (
        torch.linalg.LinAlgError("singular"),
        OverflowError("too large"),
        ZeroDivisionError("by zero"),
    ):
        monkeypatch.setattr(type(editor), "apply", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert editor.edit(some_edits(1)).failed[0].reason == str(error)
    monkeypatch.setattr(type(editor), "apply", lambda *_: (_ for _ in ()).throw(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        editor.edit(some_edits(1))


# whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, its statistics, and a data set a covariance no solve can use."""
    folder = tmp_path_factory.mktemp("world")
    model = saved_world(folder)
    random_statistics(model, (0, 1)).save(folder / "statistics")
    matrix = -torch.eye(model.inner_width)
    CovarianceStatistics({0: matrix, 1: matrix.clone()}, 10, model.fingerprint).save(folder / "indefinite")
    return folder


def spec(protocol, editor="ft", settings=None, **options):
    base = {
        "run": "toy",
        "protocol": protocol,
        "dataset": "toy",
        "model": "tiny",
        "editor": editor,
        "edits": 6,
    }
    one = protocol == "lifelong"
    settings = settings or {"layer": 1, "steps": 2, "loss": "own"}
    sizes = {"batch_size": 1 if one else 2, "snapshot_every": 2, "settings": settings}
    options = {"conflicts": "keep", "checkpoint_every_batch": True, "sample": "file_order", **options}
    return {**base, **sizes, "options": options | ({"edit_always": True, "task": "qa"} if one else {})}


PROTOCOLS = ("consecutive", "single_round", "lifelong", "simultaneous")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_goes_on_after_a_diverging_edit_and_says_why(world, tmp_path, monkeypatch, protocol):
    """And a run that was killed goes on to the same rows, reasons included."""
    from palimpsest.editors.ft import FineTuning

    plain, calls = FineTuning.apply, []

    def diverging(self, batch, record):
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        if any(edit.identifier == "edit-2" for edit in batch):
            raise DivergedEdit("the fine-tuning loss is nan")
        return plain(self, batch, record)

    monkeypatch.setattr(FineTuning, "apply", diverging)
    for name, dies_at in (("whole", 0), ("broken", 3), ("broken", 0)):
        calls.clear()
        the_spec = spec(protocol)
        if dies_at:
            with pytest.raises(KeyboardInterrupt):
                execute(the_spec, 0, RunFiles(world / "model", world / "data"), tmp_path / name)
        else:
            execute(the_spec, 0, RunFiles(world / "model", world / "data"), tmp_path / name)
    assert len(calls) < (6 if protocol == "lifelong" else 3)  # it went on
    records, content = results.read_records(tmp_path / "whole"), results.read_run(tmp_path / "whole")
    lost = {"edit-2"} if protocol == "lifelong" else {"edit-2", "edit-3"}
    told = records[records.failed.notna()]
    assert set(told.edit) == lost and set(told.failed) == {"the fine-tuning loss is nan"}
    assert {failure["edit"] for failure in content["edits_failed"]} == lost
    assert content["failure_reasons"] == {"the fine-tuning loss is nan": len(lost)}
    assert content["edits_applied"] == 6 - len(lost)
    for read in (results.read_metrics, results.read_records):
        pd.testing.assert_frame_equal(read(tmp_path / "broken"), read(tmp_path / "whole"), check_exact=True)


@pytest.mark.parametrize("protocol", ["consecutive", "single_round"])
def test_a_run_without_any_edit_says_so(world, tmp_path, caplog, protocol):
    the_spec = spec(protocol, "memit", {"layers": [0, 1], "steps": 2})
    execute(the_spec, 0, RunFiles(world / "model", world / "data", statistics=world / "indefinite"), tmp_path)
    assert "not one of 6 edits could be made" in caplog.text and "not positive definite" in caplog.text
    content, metrics = results.read_run(tmp_path), results.read_metrics(tmp_path)
    assert content["edits_applied"] == 0 and sum(content["failure_reasons"].values()) == 6
    rows = metrics[metrics.metric == "reliability"].sort_values("step")
    assert rows.value.iloc[0] == rows.value.iloc[-1]  # the unedited model's
