"""Bad input costs no source that is there already, and leaves no half of a new one."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_prepare import flat_record
from test_fever import STATEMENT
from test_fuzz_lifelong import ASKED, CASES, LIFE, UPSTREAM, written

from palimpsest.command_line.commands import run_dataset, run_source
from palimpsest.errors import DataError, PalimpsestError

TEXT = "".join(f"Passage number {number} of a plain text, long enough.\n" for number in range(30))
FILES = {
    "cf.json": json.dumps([flat_record(number) for number in range(40)]),
    "claims.jsonl": [STATEMENT],
    "lives.jsonl": [{**LIFE, "concept": "Ada Sorn"}],
    "upstream.jsonl": UPSTREAM,
    "cases.csv": "\n".join([",facts,term,issue_area", *CASES]) + "\n",
    "text.txt": TEXT,
}
READ = {"files": ["text.txt"], "kind": "plain"}
# What each kind of source is made of: the spec, and the files that it reads.
SOURCES = {
    "facts": ({"reader": "counterfact", "file": "cf.json", "size": 10, "text": READ}, ["cf.json", "text.txt"]),
    "claims": ({"reader": "fever", "file": "claims.jsonl"}, ["claims.jsonl"]),
    "text": (READ, ["text.txt"]),
    "questions": ({"task": "qa", "file": "upstream.jsonl"}, ["upstream.jsonl"]),
    "cases": ({"task": "classification", "file": "cases.csv", "fewest": 5}, ["cases.csv"]),
    "lives": ({"task": "generation", "file": "lives.jsonl", "text": READ}, ["lives.jsonl", "text.txt"]),
}  # fmt: skip
EACH = [(kind, file) for kind, (_, files) in SOURCES.items() for file in files]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(written(content))
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_mistyped_setting_costs_no_source(folder, kind):
    spec, out = SOURCES[kind][0], folder / "out"
    run_source(spec, out)
    before = contents(out)
    assert len(before) > 1 and "manifest.json" in before
    for wrong in ({"file": "nowhere"}, {"files": ["nowhere"]}, {"sise": 1}):
        with pytest.raises(PalimpsestError):
            run_source({**spec, **wrong}, out)
        assert contents(out) == before
    run_source(spec, out)
    assert contents(out) == before


@pytest.mark.parametrize(("kind", "file"), EACH)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(content=st.sampled_from([None, b"", b"\xff\xfe", b"[]", b"{}\n{", b"short\n", b"\x1f\x8b broken"]))
def test_a_file_that_is_gone_or_broken_costs_no_source_and_leaves_no_half_of_one(folder, kind, file, content):
    spec, out, new = SOURCES[kind][0], folder / "out", folder / "new"
    (folder / file).write_bytes(written(FILES[file]))
    run_source(spec, out)
    before = contents(out)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    for place, wanted in ((out, before), (new, {})):
        with pytest.raises(PalimpsestError):
            run_source(spec, place)
        assert contents(place) == wanted


FACT = {"subject": "Ada", "src": "What ailed Ada?", "rephrase": "What did Ada have?", "alt": "flu", "answers": ["gout"],
        "loc": "nq question: who?", "loc_ans": "Bo"}  # fmt: skip
ALONE = {**FACT, "subject": "Mira", "src": "What ailed Mira?", "alt": "gout"}  # its only answer
ALONE.pop("answers")


def test_records_that_nothing_can_be_learned_from_cost_no_data_set(folder):
    """Found out only when the examples are made."""
    (folder / "facts.json").write_text(json.dumps([FACT]))
    (folder / "alone.json").write_text(json.dumps([ALONE]))
    rows = [{**ASKED[0], "prediction": None, "input": f"What is {word}?"} for word in "abcdefgh"]
    (folder / "asked.jsonl").write_bytes(written(rows))
    facts = {"reader": "zsre", "file": "facts.json"}
    asked = {"task": "qa", "file": "asked.jsonl", "upstream": {"file": "upstream.jsonl"}}
    for number, (spec, wrong) in enumerate(
        ((facts, {"learning": {"file": "alone.json"}}), (asked, {"reserve": 1}))
    ):
        out = folder / str(number)
        run_dataset(spec, None, out)
        before = contents(out)
        with pytest.raises(DataError, match="has an answer that it could be edited to"):
            run_dataset({**spec, **wrong}, None, out)
        assert contents(out) == before and "manifest.json" in before


def test_half_a_character_in_a_column_of_text_is_refused(folder, monkeypatch):
    """A JSON file of the hub may hold it; text.txt cannot."""
    rows = [{"text": "A passage that is whole, and long enough to be kept."}, {"text": "half \ud800 of one"}]
    monkeypatch.setattr("palimpsest.data.text.hub_rows", lambda hub: rows)
    spec = {"hub": {"id": "org/name", "revision": "a" * 40}}
    with pytest.raises(
        DataError, match=r"record number 1, field 'text': expected a text, without half a character"
    ):
        run_source(spec, folder / "out")
    assert not (folder / "out").exists()
