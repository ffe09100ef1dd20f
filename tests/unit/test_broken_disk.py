"""A full disk, a folder that cannot be written, checkpoints that do not serve, two at once: nothing lost, nothing half-true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXTS, breaking_off, saved_world
from torch import nn

from palimpsest import files, results
from palimpsest.cli import main
from palimpsest.errors import PalimpsestError
from palimpsest.files import BusyError, WriteError, only_one, read_json, write_json
from palimpsest.learning import loop
from palimpsest.models import training
from palimpsest.protocols import checkpoints as module
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute
from palimpsest.statistics import accumulation, covariance
from palimpsest.statistics.covariance import CovarianceSettings, collect_covariance

ROOT = Path(__file__).resolve().parents[2]
SPEC = {
    "run": "toy", "protocol": "consecutive", "dataset": "toy", "model": "tiny", "editor": "ft", "edits": 6, "batch_size": 1,
    "snapshot_every": 1, "settings": {"layer": 0, "steps": 2},
    "options": {"conflicts": "keep", "checkpoint_every_batch": True, "text_tokens": 0},
}  # fmt: skip
LIMITED = """
import resource, signal, sys
from palimpsest.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    saved_world(folder)
    return folder


def arguments(world, out):
    named = ["--model", str(world / "model"), "--dataset", str(world / "data"), "--out", str(out)]
    return ["run", "--spec", json.dumps(SPEC), "--seed", "0", *named]


def same_rows(first, second):
    for read in (results.read_metrics, results.read_records):
        pd.testing.assert_frame_equal(read(first), read(second), check_exact=True)


def names(folder):
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size stands for a full disk")
@pytest.mark.parametrize("largest", [9_000, 45_000])
def test_a_disk_that_takes_no_more(world, tmp_path, largest):
    """The system refuses every byte beyond so many of a file: in the first checkpoint, or in a later one."""
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",  # a file cut off at the limit would be read by the next process
        "PYTHONPATH": str(ROOT / "src"),
        "PALIMPSEST_WARM": "off",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", LIMITED, str(largest), *arguments(world, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "palimpsest: cannot write" in done.stderr and "run the command again" in done.stderr
    left = names(tmp_path / "out")
    assert not {name for name in left if name.startswith(".") or not name.startswith("step-")}
    if largest > 20_000:
        assert left  # what was saved before is still there
    assert main(arguments(world, tmp_path / "out")) == 0
    execute(SPEC, 0, RunFiles(world / "model", world / "data"), tmp_path / "whole")
    same_rows(tmp_path / "out", tmp_path / "whole")


def test_a_full_disk_in_the_middle_of_writing_tensors(tmp_path):
    """The library that writes tensors has an error of its own."""
    from safetensors import SafetensorError

    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()

    def full(_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(WriteError, match="No space left on device.*Free some space"):
        files.write_atomic(tmp_path / "a.safetensors", full)
    assert (tmp_path / "a.safetensors").read_bytes() == before and names(tmp_path) == {"a.safetensors"}
    with pytest.raises(RuntimeError, match="share memory"):  # a wrong program is no full disk
        files.write_atomic(
            tmp_path / "a.safetensors", lambda _: (_ for _ in ()).throw(RuntimeError("share memory"))
        )


def test_a_folder_that_cannot_be_written(world, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(world, tmp_path / "file" / "out")) == 1
    assert "cannot write into" in capsys.readouterr().err
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom no mode keeps out
        plain = os.open
        refusal = PermissionError(13, "Permission denied")

        def closed(path, *rest, **named):
            if str(tmp_path / "closed") in str(path):
                raise refusal
            return plain(path, *rest, **named)

        monkeypatch.setattr(os, "open", closed)
    assert main(arguments(world, tmp_path / "closed")) == 1
    assert "Permission denied" in capsys.readouterr().err and not names(tmp_path / "closed")


# two at once -------------------------------------------------------------------------------------------------------------


def test_two_commands_on_one_folder(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0.2)
    execute(SPEC, 0, RunFiles(world / "model", world / "data"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with only_one(tmp_path / "out"):
        assert main(arguments(world, tmp_path / "out")) == 1
    assert "another process is working on" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_who_is_killed_lets_go_and_what_it_left_half_written_is_removed(tmp_path):
    script = (
        "import sys, time\nfrom palimpsest.files import atomic_path, only_one\n"
        "with only_one(sys.argv[1]), atomic_path(sys.argv[1] + '/checkpoints/table.parquet') as half:\n"
        "    half.write_text('half')\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    files_there = names(tmp_path)
    assert len(files_there) == 2 and files.LOCK in files_there
    with pytest.raises(BusyError, match="Wait until it has ended"), only_one(tmp_path):
        pass
    assert names(tmp_path) == files_there
    holder.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    (tmp_path / ".tmpAbC123").write_text("half")  # as safetensors calls what it writes before it is whole
    with only_one(tmp_path):
        assert names(tmp_path) == {files.LOCK}
    holder.wait()
    holder.stdout.close()
    assert not names(tmp_path)


def test_a_folder_within_another_keeps_what_its_own_job_is_writing(tmp_path):
    """results/statistics/M holds the covariance and, below it, the Fisher statistics, which two jobs make side by side."""
    (tmp_path / ".tmpAbC123").mkdir()
    with only_one(tmp_path / "fisher"), files.atomic_path(tmp_path / "fisher" / "sums.safetensors") as half:
        half.write_text("half")
        with only_one(tmp_path):
            assert half.is_file()
    assert names(tmp_path) == {"sums.safetensors"} and (tmp_path / ".tmpAbC123").is_dir()


# checkpoints that do not serve ---------------------------------------------------------------------------------------------


def killed(world, out, monkeypatch, at=4):
    """A run that was broken off at its fourth batch; two checkpoints are there."""
    from palimpsest.editors.ft import FineTuning

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "apply", breaking_off(FineTuning.apply, at))
        with pytest.raises(KeyboardInterrupt):
            execute(SPEC, 0, RunFiles(world / "model", world / "data"), out)
    return sorted((out / "checkpoints").glob("*.json"))


def older_form(path):
    """As another version might have written it under the same key."""
    content = read_json(path)
    del content["plain"]["progress"]["failed"]
    write_json(path, content)


def without_the_editors_tensors(path):
    tensors = load_file(path.with_suffix(".safetensors"))
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith("editor.")}, path.with_suffix(".safetensors")
    )
    content = read_json(path)
    content["tensors"] = module.file_fingerprint(path.with_suffix(".safetensors"))
    write_json(path, content)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGE = {
    "cut": cut,
    "cut tensors": lambda path: cut(path.with_suffix(".safetensors")),
    "no tensors": lambda path: path.with_suffix(".safetensors").unlink(),
    "older form": older_form,
    "other tensors": without_the_editors_tensors,
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("how_many", [1, 2])
def test_a_run_goes_on_from_the_checkpoint_that_serves(world, tmp_path, monkeypatch, caplog, name, how_many):
    execute(SPEC, 0, RunFiles(world / "model", world / "data"), tmp_path / "whole")
    found = killed(world, tmp_path / "out", monkeypatch)
    assert len(found) == 2
    for path in found[-how_many:]:
        DAMAGE[name](path)
    execute(SPEC, 0, RunFiles(world / "model", world / "data"), tmp_path / "out")
    assert "is not used" in caplog.text
    same_rows(tmp_path / "out", tmp_path / "whole")
    assert not (tmp_path / "out" / "checkpoints").exists()


def some_training(out, **changes):
    """Pre-training in small: a map, and the rows of its loss without the seconds."""
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    schedule = training.Schedule(steps=8, warmup=1, log_every=2, checkpoint_seconds=0.0)
    batches = (torch.full((2, 4), float(step)) for step in range(100))
    rows = training.train(
        network,
        batches,
        lambda batch, _: network(batch).pow(2).mean(),
        lambda batch: 8,
        schedule,
        out,
        "digest",
        **changes,
    )
    return network.weight.detach().clone(), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("what", ["cut", "empty", "older form", "other shapes", "whole"])
def test_a_pretraining_checkpoint_that_does_not_serve_changes_nothing(tmp_path, what, caplog):
    weight, rows = some_training(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").is_file()  # of step 6: whoever calls removes it
    tensors = load_file(tmp_path / "c.safetensors")
    header = {"digest": "digest", "step": "6", "rows": "[]"}
    path = tmp_path / "c.safetensors"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "older form":
        save_file(tensors, path, metadata={"digest": "digest", "step": "6"})
    elif what == "other shapes":
        save_file({**tensors, "weight.weight": torch.zeros(4, 1)}, path, metadata=header)
    again, more = some_training(path)
    torch.testing.assert_close(again, weight, rtol=0, atol=0)
    assert more == rows and ("training starts anew" in caplog.text) == (what != "whole")


@pytest.mark.parametrize("what", ["cut", "older form", "whole"])
def test_sums_that_do_not_serve_are_taken_again(tmp_path, monkeypatch, caplog, gpt2, what):
    chosen = CovarianceSettings(layers=(0, 1), tokens=400, batch_tokens=64, checkpoint_batches=1)
    wanted = collect_covariance(gpt2, TEXTS, chosen)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(accumulation.Sums, "add", breaking_off(accumulation.Sums.add, 8))
        collect_covariance(gpt2, TEXTS, chosen, out=tmp_path)
    path = tmp_path / "covariance-partial.safetensors"
    tensors, header = accumulation.read_tensors(path)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif what == "older form":
        save_file(tensors, path, metadata={k: v for k, v in header.items() if k != "batches"})
    found = collect_covariance(gpt2, TEXTS, chosen, out=tmp_path)
    for layer in (0, 1):
        torch.testing.assert_close(found.matrix(layer), wanted.matrix(layer), rtol=0, atol=0)
    assert ("start" in caplog.text and "again" in caplog.text) == (what != "whole")


def test_a_disk_that_fails_while_reading_ends_the_command_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    some_training(path)
    before = path.read_bytes()

    def hanging(*_, **__):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(training, "safe_open", hanging)
    monkeypatch.setattr(accumulation, "safe_open", hanging)
    monkeypatch.setattr(loop, "safe_open", hanging)
    for read in (
        lambda: some_training(path),
        lambda: loop._resume(None, None, [], tmp_path, ""),
        lambda: accumulation.Sums._resume(None, path),
    ):
        monkeypatch.setattr(loop, "CHECKPOINT", path.name)
        with pytest.raises(PalimpsestError, match=r"Stale file handle.*It is kept"):
            read()
    assert path.read_bytes() == before


def test_half_a_work_by_other_code_is_not_gone_on_from(tmp_path, monkeypatch, gpt2):
    chosen = CovarianceSettings(layers=(0, 1), tokens=400, batch_tokens=64, checkpoint_batches=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(accumulation.Sums, "add", breaking_off(accumulation.Sums.add, 8))
        collect_covariance(gpt2, TEXTS, chosen, out=tmp_path)
    before = training.digest_of({}, [], "palimpsest.models.pretrain")
    assert before != training.digest_of({}, [], "palimpsest.models.pretrain_pairs")
    counting = breaking_off(accumulation.Sums.add, -1)
    monkeypatch.setattr(accumulation.Sums, "add", counting)
    for where in (covariance, training):  # the program was brought up to date
        monkeypatch.setattr(where, "source_digest", lambda *_: "another")
    collect_covariance(gpt2, TEXTS, chosen, out=tmp_path)
    assert counting.calls[0][0].batches * 2 == len(
        counting.calls
    )  # every batch of both layers, the first ones too
    assert before != training.digest_of({}, [], "palimpsest.models.pretrain")


def test_sums_are_written_at_most_a_twentieth_of_the_time(monkeypatch, gpt2, tmp_path):
    """Those of a large model take gigabytes; a number of batches, where it is given, is kept to."""
    written, now = [], [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    plain = accumulation.Sums.add

    def slow(self, layer, keys):  # a batch takes a second, a save two
        now[0] += 1.0
        plain(self, layer, keys)

    def save(self):
        written.append(self.batches)
        now[0] += 2.0

    monkeypatch.setattr(accumulation.Sums, "add", slow)
    monkeypatch.setattr(accumulation.Sums, "save", save)
    chosen = CovarianceSettings(layers=(1,), tokens=960, batch_tokens=16, context=16)
    collect_covariance(gpt2, TEXTS * 9, chosen, out=tmp_path, progress=False)
    assert written == [1, 41]
    written.clear()
    every = replace(chosen, checkpoint_batches=20)
    collect_covariance(gpt2, TEXTS * 9, every, out=tmp_path / "every", progress=False)
    assert written == [20, 40, 60]


def test_nothing_to_go_on_from_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "nowhere", {}).latest() is None
