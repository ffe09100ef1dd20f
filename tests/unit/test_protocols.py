"""Protocols: which rows come when, failed edits, choosing the sample, checkpoints and resuming."""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import some_edits, tiny_model

from palimpsest.editors.base import Editor, EditorState, EditReport, FailedEdit
from palimpsest.edits import Edit, Probe
from palimpsest.errors import DataError, EditError, PalimpsestError, SettingsError
from palimpsest.metrics.answers import Batching
from palimpsest.metrics.evaluation import Evaluation
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.metrics.success import LARGEST
from palimpsest.protocols import protocol
from palimpsest.protocols.checkpoints import (
    Checkpoint,
    Checkpoints,
    random_state,
    seed_everything,
    set_random_state,
)
from palimpsest.protocols.inspection import inspection_rows
from palimpsest.protocols.sample import choose
from palimpsest.protocols.stream import Progress, Stream, edit_batch


@dataclass(frozen=True)
class NoiseSettings:
    scale: float = 0.3


class Noise(Editor):
    """Adds noise to one matrix, drawn from the global source, so that resuming must restore the random
    state."""

    name, Settings = "noise", NoiseSettings
    fails: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    dies_at: int | None = None
    calls = 0

    def __init__(self, model, settings=None, statistics=None, seed=0):
        super().__init__(model, settings or NoiseSettings(), statistics, seed)
        self.weight = model.network.transformer.h[1].mlp.c_proj.weight
        self.untouched = self.weight.detach().clone()
        self.alpha = {}

    def apply(self, batch, record):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        names = [edit.identifier for edit in batch]
        if set(names) & set(self.breaks):
            raise EditError("the whole batch diverged")
        shift = random.random() + np.random.rand()
        self.weight.data += self.settings.scale * (torch.randn_like(self.weight) + shift)
        self.alpha = {1: min(2.2, self.alpha.get(1, 2.2) - 0.1 * shift), 2: float("nan")}
        return [FailedEdit(name, "not this one") for name in names if name in self.fails]

    def state(self):
        return EditorState({"weight": self.weight.detach()}, {"alpha": self.alpha.get(1)})

    def load_state(self, state):
        self.weight.data.copy_(state.tensors["weight"])
        self.alpha = {1: state.plain["alpha"], 2: float("nan")} if state.plain["alpha"] is not None else {}

    def remove(self):
        self.weight.data.copy_(self.untouched)
        self.alpha = {}

    def thresholds(self):
        return self.alpha

    def state_bytes(self):
        return 100

    @contextlib.contextmanager
    def watching(self):
        yield lambda: None

    def inspect(self, prompts, subjects):
        rows = []
        for number, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            n = len(self.model.tokenizer(prompt)["input_ids"])
            z = [float("nan"), *range(n - 1)]
            row = {"prompt": number, "layer": 1, "tokens": n, "subject_index": 2 if subject else None, "z": z}
            rows.append({**row, "swapped": [n % 2 == 0] * n, "alpha": 2.0, "ceiling": (n - 1) / n**0.5})
        return rows


def stream(n=6, batch_size=2, snapshot_every=None, text=True, **attributes):
    seed_everything(5)
    editor = Noise(tiny_model("gpt2"))
    for name, value in attributes.items():
        setattr(editor, name, value)
    loss = (lambda: TextLoss(float(editor.weight.abs().mean()), 7)) if text else None
    return Stream(
        "a-run", 3, editor, Evaluation(editor.model, some_edits(n)), batch_size, snapshot_every, loss
    )


def value_of(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, wanted
    return frame.iloc[0]["value"]


def test_consecutive_looks_at_all_edits_so_far():
    progress = protocol("consecutive")(stream(n=6, batch_size=1, snapshot_every=2))
    frame = pd.DataFrame(progress.metrics)
    looked = frame[frame.metric == "reliability"]
    assert looked[["step", "n_edits", "n"]].values.tolist() == [[0, 0, 6], [2, 2, 2], [4, 4, 4], [6, 6, 6]]
    assert frame[frame.metric == "swap_rate"].step.min() == 2
    assert sorted(set(frame[frame.metric == "alpha"].split)) == ["layer_1"]  # NaN is no row
    assert progress.alpha["2"] == [None] * 6 and len(progress.alpha["1"]) == 6
    assert value_of(frame, step=6, metric="state_bytes") == 100
    records = pd.DataFrame(progress.records)
    means = records.groupby(["step", "split", "metric"]).value.mean()
    for row in frame.itertuples():
        if row.metric not in ("perplexity", "alpha", "failed_edits", "state_bytes"):
            assert row.value == pytest.approx(means[row.step, row.split, row.metric])
    assert sorted(records[records.step == 4].order.unique()) == [0, 1, 2, 3]
    assert len(progress.applied) == 6


@pytest.mark.parametrize(
    ("batch_size", "every", "steps"),
    [(4, None, [0, 2]), (2, 3, [0, 2, 3]), (4, 1, [0, 1, 2]), (6, 50, [0, 1])],
)
def test_snapshots_fall_on_whole_batches(batch_size, every, steps):
    progress = protocol("consecutive")(stream(batch_size=batch_size, snapshot_every=every))
    assert sorted({row["step"] for row in progress.metrics}) == steps


def test_single_round_judges_each_batch_on_a_fresh_model():
    whole = stream(n=6, batch_size=2)
    progress = protocol("single_round")(whole)
    frame = pd.DataFrame(progress.metrics)
    assert sorted(frame.step.unique()) == [0, 3]
    assert value_of(frame, step=3, split="edit", metric="reliability") == pytest.approx(
        np.mean([r["value"] for r in progress.records if r["step"] == 3 and r["metric"] == "reliability"])
    )
    assert [r["order"] for r in progress.records if r["step"] == 3 and r["metric"] == "reliability"] == list(
        range(6)
    )
    # Two batches one after the other from the same random state, by hand.
    again = stream(n=6, batch_size=2)
    values = []
    for first in (0, 2, 4):
        again.editor.edit(again.edits[first : first + 2])
        values += again.evaluation.after(range(first, first + 2))
        again.editor.reset()
    wanted = {(v.order, v.split, v.metric): v.value for v in values}
    found = {(r["order"], r["split"], r["metric"]): r["value"] for r in progress.records if r["step"] == 3}
    assert {key: value for key, value in found.items() if key[2] != "swap_rate"} == wanted
    losses = [loss for loss, _ in progress.text_losses]
    assert len(losses) == 3
    assert value_of(frame, step=3, metric="perplexity") == pytest.approx(np.exp(np.mean(losses)))


def test_text_that_a_model_gives_no_loss_of_counts_as_the_worst():
    """Left out, it would flatter the edit that broke the model."""
    the_stream, losses = stream(n=4, batch_size=2), iter((2.0, math.nan, 2.0, math.nan))
    the_stream.text_loss = lambda: TextLoss(next(losses), 10)
    frame = pd.DataFrame(protocol("single_round")(the_stream).metrics)
    assert value_of(frame, step=2, metric="perplexity") == pytest.approx(math.exp((LARGEST + 2.0) / 2))


def test_of_two_edits_of_one_name_as_many_are_recorded_as_fail(monkeypatch):
    """Edits without identifier are called by their prompts, and a prompt may stand in a batch twice."""
    the_stream = stream()
    the_stream.evaluation.edits = [replace(some_edits(1)[0], identifier="")] * 2
    name = the_stream.edits[0].prompt
    report = EditReport(applied=[name], failed=[FailedEdit(name, "not this one")], seconds=0.1)
    monkeypatch.setattr(the_stream.editor, "edit", lambda batch: report)
    progress = Progress()
    edit_batch(the_stream, progress, 1, range(2))
    assert len(progress.applied) == len(progress.failed) == 1 and progress.done == 2


@pytest.mark.parametrize("name", ["single_round", "consecutive"])
def test_failed_edits_are_recorded_and_the_run_goes_on(name):
    progress = protocol(name)(stream(fails=("edit-1",), breaks=("edit-4",)))
    assert progress.failed == [
        {"edit": "edit-1", "order": 1, "step": 1, "reason": "not this one"},
        {"edit": "edit-4", "order": 4, "step": 3, "reason": "the whole batch diverged"},
        {"edit": "edit-5", "order": 5, "step": 3, "reason": "the whole batch diverged"},
    ]
    assert progress.applied == ["edit-0", "edit-2", "edit-3"]
    told = {(row["order"], row["failed"]) for row in progress.records if row["step"] == 3}
    assert {(0, None), (1, "not this one"), (4, "the whole batch diverged")} <= told and len(told) == 6
    assert value_of(pd.DataFrame(progress.metrics), step=3, metric="failed_edits") == 3


def test_an_edit_error_out_of_the_editor_fails_the_batch(monkeypatch):
    def explode(self, batch, record=False):
        raise EditError("no")

    monkeypatch.setattr(Noise, "edit", explode)
    assert [failure["reason"] for failure in protocol("consecutive")(stream()).failed] == ["no"] * 6


@pytest.mark.parametrize("name", ["single_round", "consecutive"])
@pytest.mark.parametrize("dies_at", [2, 4, 6])
def test_a_broken_run_ends_with_the_same_rows(tmp_path, name, dies_at):
    whole = protocol(name)(stream(batch_size=1, snapshot_every=2))
    checkpoints = Checkpoints(tmp_path, {"run": 1}, every_batch=True)
    with pytest.raises(KeyboardInterrupt):
        protocol(name)(stream(batch_size=1, snapshot_every=2, dies_at=dies_at), checkpoints)
    kept = sorted(path.name for path in tmp_path.glob("*.json"))
    assert [name[:11] for name in kept] == [
        f"step-{step:06d}" for step in range(max(1, dies_at - 2), dies_at)
    ]
    resumed = stream(batch_size=1, snapshot_every=2)
    seed_everything(99)  # a new process has another random state
    progress = protocol(name)(resumed, Checkpoints(tmp_path, {"run": 1}))
    assert resumed.editor.calls == 6 - (dies_at - 1)
    for rows, wanted in ((progress.metrics, whole.metrics), (progress.records, whole.records)):
        columns = sorted(wanted[0])
        pd.testing.assert_frame_equal(
            pd.DataFrame(rows)[columns], pd.DataFrame(wanted)[columns], check_exact=True
        )
    assert (progress.applied, progress.failed, progress.alpha) == (whole.applied, whole.failed, whole.alpha)


def steps(folder, kind="*"):
    return sorted(path.name[:11] + path.suffix for path in folder.glob(f"step-*.{kind}"))


def test_damaged_checkpoints_are_removed_and_those_of_other_runs_stay(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, {"seed": 0}, every_batch=True)
    for step in (1, 2, 3):
        checkpoints.save(Checkpoint(step, {"a": torch.tensor([step])}, {"step": step}))
    assert steps(tmp_path) == [
        f"step-00000{step}.{kind}" for step in (2, 3) for kind in ("json", "safetensors")
    ]
    newest = next(tmp_path.glob("step-000003-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.latest().plain == {"step": 2}
    assert "step 3 is not used" in caplog.text
    assert not newest.exists()
    checkpoints.save(Checkpoint(3, {}, {}))
    newest.with_suffix(".json").write_text("{")
    assert checkpoints.latest().step == 2
    mistyped = Checkpoints(tmp_path, {"seed": 1}, every_batch=True)
    assert mistyped.latest() is None and "other settings, data, model or code" in caplog.text
    for step in (2, 7):  # the same step as one that is kept: neither is taken for the other
        mistyped.save(Checkpoint(step, {}, {"seed": 1}))
    assert mistyped.latest().step == 7 and checkpoints.latest().plain == {"step": 2}
    for seed in range(2, 6):  # another and another: what is kept of others has a bound
        Checkpoints(tmp_path, {"seed": seed}).save(Checkpoint(1, {}, {}))
    assert len(steps(tmp_path)) == 2 * (2 + 1)
    checkpoints.clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    "error", [OSError(116, "Stale file handle"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
)
def test_a_machine_that_fails_takes_no_checkpoint_with_it(tmp_path, monkeypatch, error):
    """A restart on a crowded device or a disk that hangs loses nothing: it says so, and the next one goes on."""
    with pytest.raises(KeyboardInterrupt):
        protocol("consecutive")(stream(dies_at=3, batch_size=1), Checkpoints(tmp_path, {"run": 1}, True))
    before = steps(tmp_path)

    def failing(*_, **__):
        raise error

    where = "palimpsest.provenance.Path.open" if isinstance(error, OSError) else None
    with monkeypatch.context() as patch, pytest.raises(PalimpsestError, match="It is kept.*begin anew"):
        if where is not None:
            patch.setattr(where, failing)
        else:
            patch.setattr(Noise, "load_state", failing)
        protocol("consecutive")(stream(batch_size=1), Checkpoints(tmp_path, {"run": 1}))
    assert steps(tmp_path) == before and len(before) == 4
    again = stream(batch_size=1)
    protocol("consecutive")(again, Checkpoints(tmp_path, {"run": 1}))
    assert again.editor.calls == 4


def test_slow_saving_makes_checkpoints_rarer(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.due()
    checkpoints.save(Checkpoint(1, {}, {}))
    checkpoints._pace._cost = 1000.0
    assert not checkpoints.due()


def test_random_state_comes_back():
    seed_everything(1)
    tensors, plain = random_state()
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    set_random_state(tensors, plain)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def edit(number, subject=None, prompt=None, **fields):
    subject = subject or f"Person{number}"
    return Edit(prompt or f"{subject} lives in", "Marrin", subject, f"e{number}", **fields)


def test_the_sample_is_a_function_of_the_seed():
    edits = [edit(number) for number in range(30)]
    first = [e.identifier for e in choose(edits, 10, seed=1).edits]
    assert first == [e.identifier for e in choose(edits, 10, seed=1).edits]
    assert first != [e.identifier for e in choose(edits, 10, seed=2).edits]
    assert first[:5] == [e.identifier for e in choose(edits, 5, seed=1).edits]
    assert [e.identifier for e in choose(edits, 3, 0, order="file_order").edits] == ["e0", "e1", "e2"]
    for seed in (0, 1):  # the same edits as shuffled, and time passes as in the file
        drawn = [int(e.identifier[1:]) for e in choose(edits, 3, seed, order="drawn_in_order").edits]
        assert drawn == sorted(int(e.identifier[1:]) for e in choose(edits, 3, seed).edits)
    with pytest.raises(SettingsError, match="shuffled"):
        choose(edits, 3, 0, order="random")


def test_contradicting_and_probed_edits_are_dropped():
    edits = [
        edit(0, locality=(Probe("Person1 lives in", "x"), Probe("In which town is Nan Elt, then?", "x"))),
        edit(1),
        edit(2, prompt="Person2 lives in", subject="Person2"),
        edit(3, prompt="Person2 lives in", subject="Person2"),
        edit(4, subject="Nan Elt"),
        edit(5, subject="Elt, th"),  # no whole words of the probe
        edit(6, locality=(Probe("Where is Person2?", "x"),)),
        edit(7, subject="Nan Elton"),
        edit(8, relation="P1"),
        edit(9, subject="Person8", prompt="The home of Person8 is", relation="P1"),
    ]
    sample = choose(edits, 5, 0, order="file_order")
    assert [e.identifier for e in sample.edits] == ["e0", "e2", "e5", "e7", "e8"]
    assert sample.dropped == {"probe": 3, "same_prompt": 1}
    everything = choose(edits, 10, 0, order="file_order", conflicts="keep")
    assert len(everything.edits) == 10
    with pytest.raises(DataError) as raised:
        choose(
            edits,
            9,
            0,
            known={f"e{i}" for i in range(1, 10)},
            fits=lambda e: e.identifier != "e7",
            source="toy",
        )
    text = str(raised.value)
    assert text.startswith("9 edits are requested, but only ") and "of the 10 in toy can be used" in text
    assert "1 dropped because the unedited model does not know the fact" in text
    assert "1 dropped because a text is longer" in text and "same subject and relation" in text


def test_other_subjects_come_from_what_was_not_chosen():
    edits = [edit(number) for number in range(10)]
    sample = choose(edits, 3, 0, others=4)
    assert len(sample.others) == 4
    assert not {e.subject for e in sample.others} & {e.subject for e in sample.edits}
    assert choose(edits, 3, 0).others == []
    # Claims have no subject: then the prompts tell them apart.
    claims = [replace(one, subject=None, prompt=f"Claim {i} is true") for i, one in enumerate(edits)]
    sample = choose(claims, 3, 0, others=4)
    assert len({one.prompt for one in [*sample.edits, *sample.others]}) == 7


def test_inspection_rows():
    editor = stream().editor
    edits = some_edits(2)
    base = {"run": "a-run", "seed": 0, "step": 1}
    rows = inspection_rows(editor, edits, [edit(9, subject="Mira Karel")], Batching(30), base)
    assert [(row["edit"], row["split"]) for row in rows] == [
        *((f"edit-{i}", split) for i in (0, 1) for split in ("edit", "rephrase", "locality")),
        ("e9", "unedited"),
    ]
    first, probe = rows[0], rows[2]
    assert first["z_subject"] == 1.0 and first["z_max"] == first["tokens"] - 2
    assert probe["z_subject"] is None and probe["z_max_other"] is None and probe["swapped_subject"] is None
    assert first["swapped_any"] == (first["tokens"] % 2 == 0)


def test_unknown_protocol_is_refused():
    with pytest.raises(SettingsError, match="single_round, consecutive"):
        protocol("lifelong_")
    with pytest.raises(SettingsError, match="batch_size"):
        stream(batch_size=0)
