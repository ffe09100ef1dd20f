"""What a killed process leaves is found and removed, by those who may; locks and clocks hold whatever comes in between."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, breaking_off, some_edits, some_examples, tiny_model
from untrained_mend import settings_for

from palimpsest import files
from palimpsest.files import only_one, remove_abandoned
from palimpsest.learning.artefact import TrainedEditor
from palimpsest.learning.loop import CHECKPOINT
from palimpsest.learning.train import train_editor
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching
from palimpsest.statistics import covariance, fisher
from palimpsest.statistics.covariance import collect_covariance
from palimpsest.statistics.fisher import collect_fisher

ROOT = Path(__file__).resolve().parents[2]
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
POSIX = pytest.mark.skipif(files.fcntl is None, reason="this system has no locks of this kind")


# locks -------------------------------------------------------------------------------------------------------------------


@POSIX
@QUICK
@given(st.lists(st.booleans(), max_size=5), st.lists(st.booleans(), max_size=3))
def test_a_lock_is_on_the_file_that_is_there(file_goes, folder_goes):
    """Before each look at the file, or at the folder, its last owner may remove it: who holds a removed file keeps nobody out."""
    looked, opened = iter(file_goes), iter(folder_goes)
    plain_stat, plain_open = Path.stat, os.open
    held = []

    def stat(path, **named):
        if path.name == files.LOCK and next(looked, False):
            path.unlink(missing_ok=True)
        return plain_stat(path, **named)

    def opening(path, *rest, **named):
        if str(path).endswith(files.LOCK):
            if next(opened, False):
                os.rmdir(os.path.dirname(path))
            held.append(plain_open(path, *rest, **named))
            return held[-1]
        return plain_open(path, *rest, **named)

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place) / "results"
        patch.setattr(files.time, "sleep", lambda _: None)
        patch.setattr(Path, "stat", stat)
        patch.setattr(os, "open", opening)
        with only_one(folder):
            assert os.path.samestat(os.fstat(held[-1]), os.stat(folder / files.LOCK))
        assert not folder.exists()


def test_the_first_owner_of_a_folder_leaves_it_to_the_next(tmp_path):
    """It made the folder and left nothing in it; another process has begun there meanwhile."""
    with only_one(tmp_path / "results"):
        (tmp_path / "results" / files.LOCK).unlink()
        (tmp_path / "results" / files.LOCK).mkdir()  # something that stays
        (tmp_path / "results" / "other").mkdir()
        (tmp_path / "results" / files.LOCK).rmdir()
    assert (tmp_path / "results" / "other").is_dir()
    with only_one(tmp_path / "gone"):
        (tmp_path / "gone" / files.LOCK).unlink()
        (tmp_path / "gone").rmdir()
    assert not (tmp_path / "gone").exists()


# halves of files ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from palimpsest.files import atomic_path
with atomic_path(sys.argv[1]) as half:
    half.write_text("half")
    print(half, flush=True)
    time.sleep(60)
"""


def writing(target: Path) -> tuple[subprocess.Popen, Path]:
    """A process that writes a file and is not done, and what it has of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def aged(path: Path) -> None:
    """As it looks after two minutes."""
    then = time.time() - 2 * files.ABANDONED
    os.utime(path, (then, then))


@POSIX
@pytest.mark.parametrize("name", ["gate-a.json", "figure.svg", "a[b].caption.md"])
def test_who_writes_a_file_again_removes_what_was_left_of_it(tmp_path, name):
    process, half = writing(tmp_path / name)
    other, others = writing(tmp_path / f"x-{name}")
    try:
        aged(half)
        files.write_text(tmp_path / name, "whole")
        assert half.is_file()  # it is still being written
        process.kill()
        process.wait()
        files.write_text(tmp_path / name, "whole")
        assert not half.exists() and others.is_file() and (tmp_path / name).read_text() == "whole"
    finally:
        for each in (process, other):
            each.kill()
            each.wait()
            each.stdout.close()
    files.write_text(tmp_path / f"x-{name}", "whole")
    assert others.is_file()  # a moment ago: on some file systems other machines' locks are not seen
    aged(others)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, f"x-{name}"}


@POSIX
@QUICK
@given(st.text("ab.-*?[]é ", min_size=1, max_size=12), st.sampled_from(["json", "part", "safetensors", ""]))
def test_only_halves_of_the_very_target_are_taken(stem, suffix):
    name = f"{stem}.{suffix}" if suffix else stem
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / name
        if target.name != name or target.stem in ("", ".") or name in (".", ".."):
            return
        with files.atomic_path(target) as half:
            mine = half.name
        beside = [f"x{mine}", mine.replace(files.PART, ".prt"), f".x{mine[1:]}"]
        for each in (mine, *beside):
            (Path(place) / each).write_text("half")
            aged(Path(place) / each)
        files.write_text(target, "whole")
        assert {path.name for path in Path(place).iterdir()} == {name, *beside}


@POSIX
def test_a_folder_of_answers_is_cleared_of_what_killed_runs_left(tmp_path, gpt2):
    """Runs of all kinds share it, so none holds it; what the killed one was writing may never be asked again."""
    half = tmp_path / ".0123456789abcdef-abcd1234.part.json"
    half.write_text('{"predicted": [')
    aged(half)
    (tmp_path / ".hidden").write_text("someone's own")
    aged(tmp_path / ".hidden")
    how = (
        {},
        ("palimpsest.metrics.answers",),
        lambda: [3],
        lambda rows: {"rows": rows},
        lambda kept: kept["rows"],
    )
    Unedited(tmp_path).answers(gpt2, [("a", "b")], Batching(), *how)
    names = {path.name for path in tmp_path.iterdir()}
    assert half.name not in names and ".hidden" in names and len(names) == 2


# checkpoints beside results ----------------------------------------------------------------------------------------------


def then_killed(function, _call):
    """The function, after which the process ends."""

    def dying(*arguments):
        function(*arguments)
        raise KeyboardInterrupt

    return dying


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_sums_that_a_finished_collection_left_are_removed(tmp_path, gpt2, monkeypatch):
    """Killed between the tensors and their description, or between that and the removal."""
    chosen = covariance.CovarianceSettings(layers=(0, 1), tokens=200, batch_tokens=64, checkpoint_batches=1)
    wanted = collect_covariance(gpt2, TEXTS, chosen, progress=False)
    for owner, name, moment in (
        (covariance, "write_json", breaking_off),
        (covariance.CovarianceStatistics, "save", then_killed),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, moment(getattr(owner, name), 1))
            collect_covariance(gpt2, TEXTS, chosen, out=tmp_path, progress=False)
        assert {covariance.TENSORS_FILE, covariance.PARTIAL_FILE} <= left(tmp_path)
        found = collect_covariance(gpt2, TEXTS, chosen, out=tmp_path, progress=False)
        assert left(tmp_path) == {covariance.TENSORS_FILE, covariance.DESCRIPTION_FILE}
        assert files.read_json(tmp_path / covariance.DESCRIPTION_FILE) == found.describe()
        assert found.describe() == wanted.describe()
        (tmp_path / covariance.TENSORS_FILE).unlink()


def test_the_checkpoint_that_a_finished_training_left_is_removed(tmp_path, gpt2, monkeypatch):
    chosen = settings_for(gpt2, steps=6, checkpoint_every=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainedEditor, "save", then_killed(TrainedEditor.save, 1))
        train_editor("mend", gpt2, some_examples(), chosen, tmp_path)
    assert CHECKPOINT in left(tmp_path)
    train_editor("mend", gpt2, some_examples(), chosen, tmp_path)
    assert left(tmp_path) == {"weights.safetensors", "trained.json", "training.csv"}


PAIRS = [(edit.prompt, edit.target) for edit in some_edits()]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@settings(parent=QUICK, max_examples=6)
@given(at=st.integers(1, 12), tokens=st.sampled_from([1, 40]))
def test_a_broken_collection_of_fisher_information_goes_on_with_the_same_result(family, at, tokens):
    model = tiny_model(family)
    chosen = fisher.FisherSettings((1, 2), batch_tokens=tokens)
    wanted = collect_fisher(model, PAIRS, chosen)
    passes = 12 if tokens == 1 else None
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder, plain = Path(place), fisher.squared_gradients
        patch.setattr(files.Pace, "due", lambda _: True)
        broken = breaking_off(plain, at)
        patch.setattr(fisher, "squared_gradients", broken)
        try:
            collect_fisher(model, PAIRS, chosen, folder)
        except KeyboardInterrupt:
            assert left(folder) == ({fisher.PARTIAL_FILE} if at > 1 else set())
        counting = breaking_off(plain, -1)
        patch.setattr(fisher, "squared_gradients", counting)
        found = collect_fisher(model, PAIRS, chosen, folder)
        assert passes is None or len(counting.calls) == passes - (at - 1)
        assert left(folder) == {fisher.TENSORS_FILE, fisher.DESCRIPTION_FILE}
    assert found.describe() == wanted.describe()
    assert all(torch.equal(found.matrix(layer), wanted.matrix(layer)) for layer in (1, 2))


def test_half_a_collection_of_fisher_information_in_other_batches_is_not_gone_on_from(
    tmp_path, gpt2, monkeypatch
):
    """Nor one of other layers; and what a finished one left is removed."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fisher, "squared_gradients", breaking_off(fisher.squared_gradients, 3))
        collect_fisher(gpt2, PAIRS, fisher.FisherSettings((1,), batch_tokens=1), tmp_path)
    kept = (tmp_path / fisher.PARTIAL_FILE).read_bytes()
    for chosen in (
        fisher.FisherSettings((1,), batch_tokens=40),
        fisher.FisherSettings((2,), batch_tokens=1),
    ):
        (tmp_path / fisher.PARTIAL_FILE).write_bytes(kept)
        found = collect_fisher(gpt2, PAIRS, chosen, tmp_path)
        (layer,) = chosen.layers
        assert torch.equal(found.matrix(layer), collect_fisher(gpt2, PAIRS, chosen).matrix(layer))
    (tmp_path / fisher.PARTIAL_FILE).write_bytes(kept)
    (tmp_path / fisher.DESCRIPTION_FILE).unlink()
    collect_fisher(gpt2, PAIRS, fisher.FisherSettings((1, 2)), tmp_path)
    assert left(tmp_path) == {fisher.TENSORS_FILE, fisher.DESCRIPTION_FILE}
