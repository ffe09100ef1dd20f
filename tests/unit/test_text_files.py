"""Texts are read line by line; one that is not UTF-8, not there or not to be read is refused by file, line and byte."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEXTS, saved_world

from palimpsest.cli import main
from palimpsest.command_line import commands
from palimpsest.errors import DataError, PalimpsestError, SettingsError
from palimpsest.metrics.perplexity import held_out_passages
from palimpsest.models.manifest import describe_model
from palimpsest.models.pretrain import pretrain
from palimpsest.statistics.accumulation import corpus_digest
from palimpsest.text_files import text_lines

LATIN = "\n".join([TEXTS[0], "Die Stadt heißt Köln.", *TEXTS]).encode("latin-1")
PLACE = r"record line 2: not UTF-8 text \(byte 14 of the line is 0xdf\)\. Save the file as UTF-8"
PARTS = st.lists(st.text(max_size=6) | st.sampled_from(["\n", "\r\n", "\r", "\u2028", "ß", "\U0001f9ff"]))
STAND_IN = {"kind": "random", "family": "gpt2", "width": 16, "blocks": 1, "heads": 2, "inner": 16, "context": 32,
            "vocabulary": 300}  # fmt: skip


@given(parts=PARTS, data=st.data())
def test_lines_are_as_python_cuts_them_and_the_first_bad_byte_is_named(parts, data):
    before, after = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    start, end = "".join(before).encode(), "".join(after).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(start + end)
        with path.open(encoding="utf-8") as file:
            assert list(text_lines(path)) == list(file)
        wrong = data.draw(st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80", b"\xf0\x9f\xa7"]))
        path.write_bytes(start + wrong + b"\n" + end)
        line, byte = start.count(b"\n") + 1, len(start) - (start.rfind(b"\n") + 1) + 1
        with pytest.raises(DataError) as refusal:
            list(text_lines(path))
        assert refusal.value.file == path and refusal.value.record == f"line {line}"
        assert f"byte {byte} of the line is {wrong[0]:#04x}" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.txt", "the file does not exist. Look there"), ("", "Is a directory"), ("a\0b", "null byte")],
)
def test_what_cannot_be_read_is_named(tmp_path, name, words):
    for read in (text_lines, lambda path, _: held_out_passages(path), lambda path, _: [corpus_digest(path)]):
        with pytest.raises(DataError) as refusal:
            list(read(str(tmp_path / name), "Look there"))
        assert words.partition(".")[0] in str(refusal.value) and str(tmp_path) in str(refusal.value)
    with pytest.raises(DataError, match=words):
        list(text_lines(tmp_path / name, "Look there"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    saved_world(folder)
    (folder / "latin1.txt").write_bytes(LATIN)
    return folder


def refused(arguments, out, capsys):
    """The one line that the command says; it leaves no file."""
    assert main([*map(str, arguments), "--out", str(out)]) == 1
    assert not out.exists() or not [path for path in out.rglob("*") if path.is_file()]
    return capsys.readouterr().err.splitlines()[-1]


def test_a_corpus_in_another_encoding_is_refused(world, tmp_path, capsys):
    collect = [
        "statistics",
        "--spec",
        '{"layers": [0], "tokens": 200}',
        "--model",
        world / "model",
        "--corpus",
    ]
    said = refused([*collect, world / "latin1.txt"], tmp_path / "out", capsys)
    assert said.startswith("palimpsest: file ") and "latin1.txt, record line 2: not UTF-8 text" in said
    # Those that nobody can read are refused before the model is.
    collect[4] = tmp_path / "no-model"
    assert "the file does not exist" in refused([*collect, world / "absent.txt"], tmp_path / "out", capsys)
    assert "Is a directory" in refused([*collect, world], tmp_path / "out", capsys)


def test_a_text_for_the_drift_meter_in_another_encoding_is_refused(world, tmp_path, capsys):
    spec = {
        "run": "toy", "protocol": "consecutive", "dataset": "toy", "model": "tiny", "editor": "ft", "edits": 2, "batch_size": 1,
        "settings": {"layer": 0, "steps": 1}, "options": {"conflicts": "keep", "text_tokens": 64},
    }  # fmt: skip
    where = ["--model", world / "model", "--dataset", world / "data", "--text", world / "latin1.txt"]
    said = refused(["run", "--spec", json.dumps(spec), "--seed", "0", *where], tmp_path / "out", capsys)
    assert "latin1.txt, record line 2: not UTF-8 text" in said


def test_the_corpus_of_a_stand_in_and_the_text_of_a_source_are_refused_by_name(world, tmp_path):
    for corpus, words in (
        ("latin1.txt", PLACE),
        ("absent.txt", "Correct the key 'corpus'"),
        ("", "directory"),
    ):
        with pytest.raises(DataError, match=words):
            describe_model({**STAND_IN, "corpus": str(world / corpus)}, tmp_path / "model")
    for name in ("corpus", "pairs"):
        with pytest.raises(SettingsError, match=f"model setting '{name}' is 5; expected a text"):
            describe_model({**STAND_IN, name: 5}, tmp_path / "model")
    source = tmp_path / "source"
    source.mkdir()
    fact = {"text": "A b", "subject": None, "answer": [2, 3], "kind": "prompt"}
    (source / "facts.jsonl").write_text(json.dumps(fact) + "\n")
    (source / "text.txt").write_bytes(LATIN)
    with pytest.raises(DataError, match=PLACE):
        pretrain({"family": "gpt2", "steps": 1}, source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_half_a_character_in_a_spec_is_refused():
    """It would be written into a manifest at the end, which no file takes."""
    for text in ('{"labels": ["\\ud800"]}', '{"a": {"\\udfff": 1}}', '{"a": "\udcff"}'):
        with pytest.raises(PalimpsestError, match="half a character"):
            commands.read_spec(text)
    assert commands.read_spec('{"a": "\\ud83e\\uddff"}')["a"] == "\U0001f9ff"
