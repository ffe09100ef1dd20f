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


class Split:
    """Rows of a split larger than memory: they can be counted and looked up, and that is all."""

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        self.read.append(number)
        return {"text": "" if number % 10 == 0 else f"article {number} begins\n\nand goes on"}


def test_articles_are_drawn_by_seed_and_the_rest_of_the_split_is_not_read(monkeypatch):
    """Spec 1.7: random articles, not the first paragraphs; one that is too short is replaced by the next one drawn."""
    split = Split(5000)
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: split, __version__="5.2.0")
    )
    spec = {"hub": {"id": "a/b", "revision": "a" * 40}, "shortest": 5, "limit": 50}
    drawn = read_passages({**spec, "passage": "article", "seed": 1})
    assert len(set(drawn)) == 50 and all(text.endswith("begins and goes on") for text in drawn)
    assert len(split.read) == len(set(split.read)) < 80 and max(split.read) > 4000
    assert drawn == read_passages({**spec, "passage": "article", "seed": 1})
    assert drawn != read_passages({**spec, "passage": "article", "seed": 2})
    assert read_passages({**spec, "limit": 3}) == ["article 1 begins", "and goes on", "article 2 begins"]


def test_a_split_in_hub_format_is_looked_up_row_by_row(tmp_path, monkeypatch):
    """The library itself, on a directory that lies where the id says."""
    (tmp_path / "own" / "text").mkdir(parents=True)
    rows = "".join(json.dumps({"text": f"article number {n}"}) + "\n" for n in range(30))
    (tmp_path / "own" / "text" / "train.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    spec = {
        "hub": {"id": "own/text", "revision": "a" * 40},
        "passage": "article",
        "seed": 1,
        "limit": 4,
        "shortest": 0,
    }
    drawn = [int(text.rpartition(" ")[2]) for text in read_passages(spec)]
    assert len(set(drawn)) == 4 and drawn != sorted(drawn)


def test_only_rows_of_a_hub_data_set_are_drawn(tmp_path):
    (tmp_path / "a.txt").write_text("a passage\n")
    with pytest.raises(SettingsError, match=r"text\.seed: only rows of a hub"):
        read_passages({"files": ["a.txt"], "seed": 1}, tmp_path)
    with pytest.raises(SettingsError, match=r"text\.passage: expected one of paragraph, article"):
        read_passages({"hub": {"id": "a/b", "revision": "a" * 40}, "passage": "page"})


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
    assert json.loads((out / "manifest.json").read_text()) == manifest  # a mistyped word costs no source
