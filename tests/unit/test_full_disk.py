"""A disk that takes no more while a model is written: a sentence in the end, and what was there before stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import pytest
import torch
from test_convert import old_form
from test_mend_training import settings_for
from test_pretrain import TINY
from tiny import TEXTS, breaking_off, saved_world, some_examples, write_examples

from palimpsest.cli import main
from palimpsest.data.world import generate
from palimpsest.files import LOCK, WriteError, only_one, whole_folder
from palimpsest.learning.artefact import plain_settings
from palimpsest.models import manifest
from palimpsest.models.loading import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size is Linux's")
SMALL = {"kind": "random", "family": "gpt2", "width": 8, "blocks": 1, "heads": 2, "inner": 16, "context": 32,
         "vocabulary": 600}  # fmt: skip
WORLD = {"counterfact": 6, "zsre": 6, "probes": 2, "unrelated": 2, "relations": 2, "answers": 3, "first_names": 6,
         "facts_per_subject": 1, "text_lines": 10}  # fmt: skip
LATEST = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
)  # in the order they are written; the last is the largest


@contextlib.contextmanager
def no_file_beyond(size):
    """The system refuses every byte of a file beyond so many, as a full disk does."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("palimpsest: cannot write") and said.endswith("run the command again")


@pytest.mark.parametrize("name", LATEST)
def test_a_stand_in_replaces_an_earlier_one_whole_or_not_at_all(tmp_path, capsys, name):
    out, corpus = tmp_path / "out", tmp_path / "corpus.txt"
    corpus.write_text("\n".join(manifest._filler(0)))  # of both, so that their tokenizers are of one size

    def command(seed):
        spec = {**SMALL, "seed": seed, "corpus": str(corpus)}
        return ["model", "--spec", json.dumps(spec), "--out", str(out)]

    assert main(command(0)) == 0
    before, first = contents(out), load_model(out).fingerprint
    assert len(before["model.safetensors"]) < len(before["tokenizer.json"])
    with no_file_beyond(len(before[name]) - 1):
        refused(command(1), capsys)
    assert contents(out) == before
    assert main(command(1)) == 0
    assert load_model(out).fingerprint != first and contents(out).keys() == before.keys()


def test_pretraining_that_cannot_write_its_model(tmp_path, capsys):
    generate(WORLD, 1, tmp_path / "source")
    spec = {**TINY, "vocabulary": 600, "steps": 2}
    command = ["pretrain", "--spec", json.dumps(spec), "--source", str(tmp_path / "source"), "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    with no_file_beyond(size - 1):
        refused([*command, str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()
    assert main([*command, str(tmp_path / "out")]) == 0
    assert load_model(tmp_path / "out").fingerprint == load_model(tmp_path / "whole").fingerprint


def test_a_conversion_that_cannot_write_its_tokenizer(tmp_path, capsys, monkeypatch):
    """The library that writes it raises nothing but an Exception."""
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "old").mkdir()
    old_form(tmp_path / "old")
    plain = PreTrainedTokenizerFast.save_pretrained

    def on_a_full_disk(*arguments, **named):
        with no_file_beyond(1000):
            return plain(*arguments, **named)

    command = ["convert", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", on_a_full_disk)
        refused(command, capsys)
    assert not contents(tmp_path / "new")
    with no_file_beyond(1000):
        refused(command, capsys)
    assert main(command) == 0 and load_model(tmp_path / "new").n_blocks == 4


def test_statistics_and_trained_editors_that_cannot_be_written(tmp_path, capsys):
    model = saved_world(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    write_examples(tmp_path / "data" / "learning.jsonl", some_examples())
    settings = plain_settings(settings_for(model, steps=2))
    learned = ["train-editor", "--spec", json.dumps({"editor": "mend", "settings": settings})]
    for number, command in enumerate((
        ["statistics", "--spec", '{"layers": [0], "tokens": 100}', "--corpus", str(tmp_path / "text.txt")],
        [*learned, "--dataset", str(tmp_path / "data")],
    )):  # fmt: skip
        out = tmp_path / f"out{number}"
        command += ["--model", str(tmp_path / "model"), "--out", str(out)]
        with no_file_beyond(3000):
            refused(command, capsys)
        assert not [name for name in contents(out) if "safetensors" in name] if out.exists() else True
        assert main(command) == 0


def test_a_folder_for_a_model_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["model", "--spec", json.dumps(SMALL), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write into" in capsys.readouterr().err
    with pytest.raises(WriteError, match="cannot write into"), whole_folder(tmp_path / "file"):
        pass
    (tmp_path / "out").mkdir()
    with only_one(tmp_path / "out"):
        assert main(["model", "--spec", json.dumps(SMALL), "--out", str(tmp_path / "out")]) == 1
    assert "another process is working on" in capsys.readouterr().err


def test_a_folder_of_files_is_replaced_whole(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as half:
        (half / "deep").mkdir()
        (half / "deep" / "a.txt").write_text("1")
        (half / "model-1.safetensors").write_text("1")
        assert half.parent == out
    assert contents(out) == {"deep/a.txt": b"1", "model-1.safetensors": b"1"}
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), whole_folder(out, drop=["*"]) as half:
            (half / "deep").mkdir()
            (half / "deep" / "a.txt").write_text("2")
            raise error
    assert contents(out) == {"deep/a.txt": b"1", "model-1.safetensors": b"1"}
    with whole_folder(out, drop=["model*.safetensors*"]) as half:
        (half / "model-2.safetensors").write_text("2")
    assert contents(out) == {"deep/a.txt": b"1", "model-2.safetensors": b"2"}
    assert {path.name for path in out.iterdir()} == {"deep", "model-2.safetensors"}


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "out" / ".out-abc123.part").mkdir(parents=True)
    (tmp_path / "out" / ".out-abc123.part" / "model.safetensors").write_text("half")
    (tmp_path / "out" / ".tmpAbC123").mkdir()  # not a name of ours
    with only_one(tmp_path / "out"):
        assert {path.name for path in (tmp_path / "out").iterdir()} == {".tmpAbC123", LOCK}


def test_killed_while_files_are_replaced_leaves_no_model(tmp_path, monkeypatch):
    """The manifest goes first and comes last."""
    out = tmp_path / "out"
    manifest.describe_model(SMALL, out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("palimpsest.files.os.replace", breaking_off(lambda *_: None, 1))
        manifest.describe_model({**SMALL, "seed": 1}, out)
    assert "manifest.json" not in contents(out) and "model.safetensors" not in contents(out)
    manifest.describe_model({**SMALL, "seed": 1}, out)
    assert torch.isfinite(load_model(out).mlp_weight(0)).all()


@pytest.mark.parametrize("placed", range(6))
def test_what_vouches_for_other_files_comes_last(tmp_path, monkeypatch, placed):
    """Killed after any number of files: never a new record or configuration beside old files."""
    for name in ("a.txt", "config.json", "record.json", "tokens.json", "z.txt"):
        (tmp_path / name).write_text("old")
    plain = os.replace
    done = []

    def placing(source, target):
        if len(done) == placed:
            raise KeyboardInterrupt
        done.append(target.name)
        plain(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("palimpsest.files.os.replace", placing)
        with whole_folder(tmp_path, ("record.json", "config.json", "tokens*.json")) as half:
            for name in ("config.json", "record.json", "tokens.json", "z.txt"):
                (half / name).write_text("new")
    found = {name: text for name, text in contents(tmp_path).items()}
    if placed < 4:
        assert "record.json" not in found
    if "config.json" in found:
        assert found["tokens.json"] == found["z.txt"] == b"new"
    assert placed < 4 or (set(found.values()) == {b"old", b"new"} and found["a.txt"] == b"old")
