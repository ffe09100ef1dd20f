"""Opening data files and hub data sets: either records, or an error that tells where and what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data import real_files
from palimpsest.data.sources import locate, open_source, parse_records, read_file, read_hub
from palimpsest.data.text import DEFAULT_FILES
from palimpsest.errors import DataError, SettingsError

RECORDS = [{"a": 1, "text": "é\u2028x"}, {"a": 2}, {"a": 3}]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_plain_and_gzipped_form_of_one_name_are_the_same_source(tmp_path, monkeypatch):
    content = json.dumps(RECORDS).encode()
    (tmp_path / "one.json").write_bytes(content)
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    sources = [open_source({"file": name}) for name in ("one.json", "one.json.gz", "two.json", "two.json.gz")]
    assert all(source.records == RECORDS for source in sources)
    assert {source.sha256 for source in sources} == {hashlib.sha256(content).hexdigest()}
    assert sources[0].name == "one.json"  # never the path of this machine


def test_folder_goes_before_the_data_folder(tmp_path, monkeypatch):
    for place in ("near", "far"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.json").write_text(json.dumps([{"place": place}]))
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path / "far"))
    assert open_source({"file": "x.json"}, tmp_path / "near").records == [{"place": "near"}]
    assert open_source({"file": "x.json"}).records == [{"place": "far"}]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps(record) for record in RECORDS),
        json.dumps({"num_records": 3, "records": RECORDS}),
        "\ufeff" + json.dumps(RECORDS),
    ],
    ids=["lines", "object", "byte-order mark"],
)
def test_forms_of_json(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    assert read_file(path).records == RECORDS


def test_one_json_line_is_one_record(tmp_path):
    assert parse_records('{"a": 1}\n', "x") == [{"a": 1}]


def test_truncated_list_names_file_record_and_remedy(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(RECORDS)[:-12])
    with pytest.raises(DataError) as caught:
        read_file(path)
    message = str(caught.value)
    assert "cut.json" in message and "record number 1" in message and "truncated" in message


def test_truncated_lines_name_the_line(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    with pytest.raises(DataError, match="record on line 3"):
        read_file(path)


def test_truncated_gzip_and_wrong_bytes(tmp_path):
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORDS * 50).encode())[:-20])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_file(path)
    path.write_bytes(b"[\xff\xfe]")
    with pytest.raises(DataError, match="UTF-8"):
        read_file(path)


@pytest.mark.parametrize("text", ["", "  \n", "[]", "{}", "3", '"x"', "[" * 100_000, "[" + "1" * 5000 + "]"])
def test_what_is_no_list_of_records_is_refused(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    if text == "{}":  # one JSON line
        assert read_file(path).records == [{}]
        return
    with pytest.raises(DataError, match=r"odd\.json"):
        read_file(path)


def test_checksum_of_stored_or_of_uncompressed_bytes(tmp_path):
    content = json.dumps(RECORDS).encode()
    stored = gzip.compress(content)
    path = tmp_path / "x.json.gz"
    path.write_bytes(stored)
    for good in (content, stored):
        assert open_source({"file": str(path), "sha256": hashlib.sha256(good).hexdigest()}).records == RECORDS
    with pytest.raises(DataError, match="sha256"):
        open_source({"file": str(path), "sha256": "0" * 64})


def test_missing_file_says_where_it_looked_and_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere\.json.*does not exist.*PALIMPSEST_DATA"):
        locate("nowhere.json")
    for name in ("", "a\0b"):
        with pytest.raises(DataError):
            locate(name)


@pytest.mark.parametrize("spec", [{}, {"file": "x", "hub": {"id": "a/b"}}])
def test_either_file_or_hub(spec):
    with pytest.raises(SettingsError, match="either 'file' or 'hub'"):
        open_source(spec)


@pytest.mark.parametrize(
    ("hub", "field"),
    [
        ({"id": "a/b"}, "revision"),
        ({"id": "a/b", "revision": "main"}, "revision"),
        ({"id": "a/b", "revision": COMMIT[:12]}, "revision"),
        ({"id": "../b/c", "revision": COMMIT}, "id"),
        ({"id": "a/b", "revision": COMMIT, "trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_hub_entries_must_be_pinned(hub, field):
    with pytest.raises(SettingsError, match=field):
        read_hub(hub)


def test_hub_file_and_hub_split(tmp_path, monkeypatch):
    path = tmp_path / "inside.json"
    path.write_text(json.dumps(RECORDS))
    asked = []

    def download(identifier, file, repo_type, revision):
        asked.append((identifier, file, repo_type, revision))
        return str(path)

    def load(identifier, config, split, revision, **rest):
        asked.append((identifier, config, split, revision, rest))
        return RECORDS

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load, __version__="3.1.0"))
    one = read_hub({"id": "a/b", "revision": COMMIT, "file": "inside.json"})
    two = read_hub({"id": "a/b", "revision": COMMIT, "split": "test"})
    assert one.records == two.records == RECORDS and one.revision == COMMIT
    assert asked[0] == ("a/b", "inside.json", "dataset", COMMIT)
    assert asked[1] == ("a/b", None, "test", COMMIT, {"trust_remote_code": False})


def test_hub_failure_is_a_data_error(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no route\nlong text")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load, __version__="5.2.0"))
    with pytest.raises(DataError, match=r"a/b.*no route.*local file"):
        read_hub({"id": "a/b", "revision": COMMIT})


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=st.text(max_size=200))
def test_any_text_gives_records_or_a_data_error(data, text):
    whole = json.dumps(RECORDS)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    for candidate in (text, cut, cut + text):
        try:
            assert isinstance(parse_records(candidate, "x.json"), list)
        except DataError as error:
            assert "x.json" in str(error)


def test_files_of_an_entry_are_known_by_their_content(tmp_path, monkeypatch):
    """Those of its parts too, not those of a hub; a touched file is the same one, a changed one is not."""
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    entry = {
        "file": "a.json", "learning": {"file": "b.json", "targets": "c.txt"}, "hub": {"file": "not-here.json"},
        "lifelong": {"upstream": {"file": "d.csv"}}, "real": {"text": {"files": ["e.txt"]}},
    }  # fmt: skip
    names = ["a.json", "b.json", "c.txt", "d.csv", "e.txt"]
    assert sorted(real_files.files_named(entry)) == names
    assert len(real_files.missing_files(entry)) == 5 and real_files.file_digests(entry) == {}
    for name in names:
        (tmp_path / name).write_text(name)
    before = real_files.file_digests(entry)
    assert sorted(before) == names and not real_files.missing_files(entry)
    os.utime(tmp_path / "a.json", (1, 1))
    assert real_files.file_digests(entry) == before
    (tmp_path / "b.json").write_text("other")
    after = real_files.file_digests(entry)
    assert {name for name in names if after[name] != before[name]} == {"b.json"}
    text = real_files.files_named({"text": {"limit": 10}})
    assert list(text) == list(DEFAULT_FILES)  # what is read when none is named


def test_of_a_large_file_length_start_and_end_count(tmp_path, monkeypatch):
    monkeypatch.setattr(real_files, "WHOLE", 4)
    file = tmp_path / "weights"
    found = set()
    for content in ("aaaa----zzzz", "baaa----zzzz", "aaaa----zzzy", "aaaa---zzzz", "aaaa----zzzz"):
        file.write_text(content)
        os.utime(file, ns=(len(found), len(found)))
        found.add(real_files.content_digest(tmp_path))
    assert len(found) == 4
