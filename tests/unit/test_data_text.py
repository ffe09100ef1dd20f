"""Plain text as passages."""

from __future__ import annotations

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from palimpsest.cli import main
from palimpsest.data.text import file_passages, read_passages
from palimpsest.errors import DataError, SettingsError

BOOK = """The Project Gutenberg EBook of Nothing

Title: Nothing

*** START OF THIS PROJECT GUTENBERG EBOOK NOTHING ***

Produced by Nobody

It was a long day
and nobody came.

The end came slowly,\u2028and with it the night.

End of the Project Gutenberg EBook of Nothing

*** END OF THIS PROJECT GUTENBERG EBOOK NOTHING ***

License text
"""
WIKI = (
    " \n = Lobster = \n \n The lobster is a well @-@ known <unk> of 2 @,@ 000 grams . \n"
    " = = Parts = = \n It has claws . \n"
)


def test_book_loses_header_credits_and_licence(tmp_path):
    path = tmp_path / "1-0.txt.gz"
    path.write_bytes(gzip.compress(("\ufeff" + BOOK.replace("\n", "\r\n")).encode()))
    expected = ["It was a long day and nobody came.", "The end came slowly, and with it the night."]
    assert file_passages(path) == expected


def test_wikitext_loses_headings_and_word_marks(tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text(WIKI)
    assert file_passages(path) == ["The lobster is a well-known <unk> of 2,000 grams .", "It has claws ."]


def test_plain_text_by_line_or_paragraph(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("one\ntwo\n")
    assert [passage for passage in file_passages(path) if passage] == ["one", "two"]
    path.write_text("one\ntwo\n\nthree\n")
    assert file_passages(path) == ["one two", "three"]


def test_files_take_turns_and_limit_and_length_hold(tmp_path):
    (tmp_path / "a.txt").write_text("a1 long\na2 long\na3 long\nx\n")
    (tmp_path / "b.txt").write_text("b1 long\nb2 long\n")
    spec = {"files": ["a.txt", "b.txt"], "shortest": 3, "limit": 4}
    assert read_passages(spec, tmp_path) == ["a1 long", "b1 long", "a2 long", "b2 long"]


def test_bad_text_settings_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("short\n")
    with pytest.raises(SettingsError, match="colour"):
        read_passages({"colour": 1})
    with pytest.raises(SettingsError, match=r"text\.limit"):
        read_passages({"limit": -1})
    with pytest.raises(SettingsError, match=r"text\.kind"):
        read_passages({"files": ["a.txt"], "kind": "poem"}, tmp_path)
    with pytest.raises(DataError, match="no passage is long enough"):
        read_passages({"files": ["a.txt"]}, tmp_path)
    with pytest.raises(DataError, match="start mark"):
        read_passages({"files": ["a.txt"], "kind": "gutenberg"}, tmp_path)


def test_hub_column(monkeypatch):
    rows = [{"text": "first one\n\nsecond one"}, {"text": "third one"}]
    double = SimpleNamespace(load_dataset=lambda *_, **__: rows, __version__="5.2.0")
    monkeypatch.setitem(sys.modules, "datasets", double)
    hub = {"id": "a/b", "revision": "a" * 40}
    assert read_passages({"hub": hub, "shortest": 0}) == ["first one", "second one", "third one"]
    with pytest.raises(DataError, match="field 'body'"):
        read_passages({"hub": {**hub, "column": "body"}})


def test_a_source_of_text_alone(tmp_path, capsys):
    """What models from elsewhere get: the corpus of the statistics is the text without the tail that measures drift."""
    lines = [f"This is passage number {number}, and it is long enough to be kept." for number in range(25)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    spec = {"files": [str(tmp_path / "a.txt")], "kind": "plain"}
    out = tmp_path / "source"
    assert main(["source", "--spec", json.dumps(spec), "--out", str(out)]) == 0
    text, corpus = ((out / name).read_text().splitlines() for name in ("text.txt", "corpus.txt"))
    assert text == lines and corpus == lines[:23]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["text_passages"], manifest["settings"]) == ("text", 25, spec)
    assert (out / "facts.jsonl").read_text() == ""
    assert main(["source", "--spec", json.dumps(spec | {"kind": "prose"}), "--out", str(out)]) == 1
    assert "text.kind: expected one of" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()  # what is there no longer belongs to what was asked for
