"""The readers of the lifelong tasks on the real public files, where those are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_files import have

from palimpsest.command_line.commands import run_dataset, run_source
from palimpsest.config import read_yaml
from palimpsest.data.lifelong import build_lifelong
from palimpsest.data.lifelong_source import build_lifelong_source
from palimpsest.edits import read_edits
from palimpsest.errors import DataError

pytestmark = pytest.mark.real_data
NQ = "nq/NQ-open.dev.jsonl"
MEND = "zsre/zsre_mend_eval_portability_gpt4_dev.json"
CASES = "scotus/justice.csv.gz"
WISE = "wikibio/hallucination-edit.json"


@pytest.fixture(autouse=True)
def _data(real_data, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_DATA", str(real_data))


@pytest.mark.parametrize(
    ("file", "form", "edits"),
    [
        (MEND, "zsre-mend", 622),
        ("zsre/zsre_500_dev.json", "zsre-500", 566),
        ("zsre/zsre_mend_train_10000_slim.json", "zsre-slim", 5000),
        ("zsre/ZsRE-test-all_dev.json", "knowedit", 797),
    ],
)
def test_questions(file, form, edits, tmp_path):
    """Real files have at most three rephrasings, where GRACE used ten."""
    have(file, NQ)
    spec = {"task": "qa", "file": file, "at_least": 1, "upstream": {"file": NQ, "limit": 1000}}
    spec |= {"bad_records": "skip", "empty_rephrasings": "question"}
    manifest = build_lifelong(spec, None, tmp_path)
    assert manifest["schema"] == form and manifest["edits"] == edits
    assert manifest["probes"]["upstream"] == 1000
    assert build_lifelong({**spec, "at_least": 10}, None, tmp_path)["records_with_enough_rephrasings"] == 0
    first = json.loads((tmp_path / "probes.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == "When was the last time anyone was on the moon?"
    assert first["answer"] == "December 1972"


def test_records_without_rephrasings_are_named(tmp_path):
    have("zsre/zsre_500_dev.json", NQ)
    spec = {"task": "qa", "file": "zsre/zsre_500_dev.json", "at_least": 1, "upstream": {"file": NQ}}
    with pytest.raises(DataError, match=r"zsre_00052, field 'rephrase_prompt'.*12 more of 305"):
        build_lifelong(spec, None, tmp_path)


def test_a_source_of_real_questions(tmp_path):
    have(NQ, MEND)
    spec = {"task": "qa", "file": NQ, "limit": 200, "stale": {"file": MEND, "limit": 100}}
    manifest = build_lifelong_source(spec, tmp_path / "source")
    assert manifest["counts"]["upstream"] == 200 and manifest["counts"]["stale"] > 150
    spec = {"task": "qa", "file": MEND, "at_least": 1}
    assert build_lifelong(spec, tmp_path / "source", tmp_path / "out")["probes"]["upstream"] == 200


def test_ways_of_asking_that_are_not_read(tmp_path):
    """Of each question the first two are read with the old answer; others of the same question are asked later."""
    have(NQ, "zsre/zsre_500_dev.json")
    stale = {"file": "zsre/zsre_500_dev.json", "limit": 50, "phrasings": 2}
    build_lifelong_source({"task": "qa", "file": NQ, "limit": 20, "stale": stale}, tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    asked = [pair["prompt"] for pair in pairs if pair["kind"] == "stale"]
    assert 50 < len(asked) <= 100 and len(set(asked)) == len(asked)


@pytest.mark.parametrize("source", ["zsre-questions", "court-cases", "wikibio-passages"])
def test_sources_and_streams_of_the_scale(source, tmp_path):
    """As the workflow makes them, from fewer records."""
    scale = read_yaml(Path(__file__).parents[2] / "config" / "mini-lifelong.yaml")
    spec = scale["sources"][source]["lifelong"]
    have(spec["file"], "text/wikitext-2/valid.txt", "text/wikitext-2/test.txt")
    if spec["task"] == "qa":
        spec |= {"limit": 60}
    run_source(spec, tmp_path / "source")
    (entry,) = [dict(entry) for entry in scale["datasets"].values() if entry["source"] == source]
    entry |= entry.pop("lifelong", {}) | {"limit": 40}
    run_dataset(entry, tmp_path / "source", tmp_path / "stream")
    manifest = json.loads((tmp_path / "stream" / "manifest.json").read_text())
    assert manifest["task"] == spec["task"] and manifest["edits"] == 40
    probes = [json.loads(line) for line in (tmp_path / "stream" / "probes.jsonl").read_text().splitlines()]
    asked = {edit.prompt for edit in read_edits(tmp_path / "stream" / "edits.jsonl")}
    assert not asked & {probe["prompt"] for probe in probes}
    assert len({probe["set"] for probe in probes}) == (2 if spec["task"] == "qa" else 1)


def test_court_cases_as_decided(tmp_path):
    have(CASES)
    with pytest.raises(DataError, match="no label.*132 more of 2999"):
        build_lifelong_source({"task": "classification", "file": CASES}, tmp_path / "none")
    spec = {"task": "classification", "file": CASES, "bad_records": "skip", "words": 150}
    manifest = build_lifelong_source(spec, tmp_path / "source")
    assert len(manifest["labels"]) == 6 and len(manifest["skipped"]) == 133
    assert manifest["counts"] == {"read": 474, "upstream": 158, "tuning": 318, "stream": 1581}
    for file, number in (("scotus_stream.csv", 1581), ("scotus_tuning.csv", 318)):
        out = tmp_path / file
        assert (
            build_lifelong({"task": "classification", "file": file}, tmp_path / "source", out)["edits"]
            == number
        )
    texts = [edit.prompt for edit in read_edits(tmp_path / "scotus_stream.csv" / "edits.jsonl")]
    assert not any("<p>" in text for text in texts) and max(len(text.split()) for text in texts) == 150


@pytest.mark.parametrize(
    ("file", "form", "edits"),
    [
        (WISE, "wise", 600),
        ("wikibio/hallucination-train.json", "wise", 306),
        ("wikibio/wikibio-test-all.json", "knowedit-bio", 306),
        ("wikibio/wikibio-train-all.json", "knowedit-bio", 464),
    ],
)
def test_biographies(file, form, edits, tmp_path):
    have(file, "text/wikitext-2/valid.txt")
    text = {"files": ["text/wikitext-2/valid.txt"], "limit": 300}
    manifest = build_lifelong_source({"task": "generation", "file": file, "text": text}, tmp_path / "source")
    assert manifest["schema"] == form
    manifest = build_lifelong({"task": "generation", "file": file}, tmp_path / "source", tmp_path / "out")
    assert manifest["edits"] == edits and manifest["probes"]["upstream"] > 20
    lines = (tmp_path / "source" / "facts.jsonl").read_text().splitlines()
    fact = json.loads(lines[0])
    assert fact["text"].startswith("This is a Wikipedia passage about ") and len(lines) > 100
