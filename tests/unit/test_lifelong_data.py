"""Lifelong data sets: upstream forms, flattening and splits, probes, bad input; and the real files where at hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from palimpsest.data.lifelong import build_lifelong, fact_of
from palimpsest.data.lifelong_readers import sentences
from palimpsest.data.lifelong_source import build_lifelong_source
from palimpsest.data.world_biographies import generate_biographies
from palimpsest.data.world_labels import generate_labels
from palimpsest.data.world_qa import generate_qa
from palimpsest.edits import read_edits
from palimpsest.errors import DataError, SettingsError


def structured(number=0, rephrasings=12, **change):
    return {
        "id": str(number),
        "input": f"Who leads town {number}?",
        "output": [{"answer": f"Mayor {number}", "provenance": [{"title": f"town {number}"}]}],
        "filtered_rephrases": [f"Town {number}, form {k}: who leads?" for k in range(rephrasings)],
        "alternatives": ["Nobody"],
        **change,
    }


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def nq(tmp_path):
    rows = [
        {"question": f"who owns the bridge {k}", "answer": ["Miller and Sons", "Miller"]} for k in range(5)
    ]
    return {"file": write(tmp_path / "nq.jsonl", rows)}


def built(spec, source, out):
    manifest = build_lifelong(spec, source, out)
    probes = [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]
    return manifest, read_edits(out / "edits.jsonl"), probes


def test_questions_are_flattened_and_halved_as_released(tmp_path, nq):
    records = [structured(0), structured(1, 10), structured(2, 9)]
    spec = {"task": "qa", "file": write(tmp_path / "z.jsonl", records), "upstream": {**nq, "limit": 3}}
    manifest, edits, probes = built(spec, None, tmp_path / "out")
    # Ten rephrasings beside the question where there are ten, else the question alone: 11 + 11 + 1 pairs.
    assert len(edits) == 12 and Counter(p["set"] for p in probes) == {"holdout": 11, "upstream": 3}
    every = {edit.prompt: edit.target for edit in edits} | {
        p["prompt"]: p["answer"] for p in probes if p["set"] == "holdout"
    }
    assert len(every) == 23 and every["Who leads town 2?"] == "Mayor 2" and "form 10" not in " ".join(every)
    by_id = {edit.identifier: edit for edit in edits}
    for probe in probes:
        if probe["edit"] is not None:
            assert by_id[probe["edit"]].target == probe["answer"]
    for edit in edits:
        held = [p["prompt"] for p in probes if p["set"] == "holdout" and p["answer"] == edit.target]
        assert set(edit.rephrasings) == set(held)
    assert probes[0] == {
        "set": "upstream",
        "prompt": "Who owns the bridge 0?",
        "answer": "Miller",
        "edit": None,
    }
    assert manifest["records_with_enough_rephrasings"] == 2 and manifest["task"] == "qa"
    again = build_lifelong(spec, None, tmp_path / "again")
    assert again["fingerprint"] == manifest["fingerprint"]
    assert (
        build_lifelong({**spec, "seed": 1}, None, tmp_path / "other")["fingerprint"]
        != manifest["fingerprint"]
    )


def test_the_released_halves_are_numpys_with_seed_42(tmp_path, nq):
    """Spec 3.1. The first places of that permutation of 24 pairs are written out, so that no other generator passes."""
    records = [structured(k, 0, filtered_rephrases=[]) for k in range(24)]
    spec = {"task": "qa", "file": write(tmp_path / "z.jsonl", records), "upstream": nq}
    kept = {**spec, "split": "released", "empty_rephrasings": "question", "bad_records": "skip"}
    manifest, edits, probes = built(kept, None, tmp_path / "out")
    asked = [int(edit.target.split()[1]) for edit in edits]
    held = [int(p["answer"].split()[1]) for p in probes if p["set"] == "holdout"]
    assert (
        asked == [8, 16, 0, 18, 11, 9, 13, 1, 21, 5, 2, 12]
        and sorted(asked + held) == list(range(24))
        and manifest["skipped"] == []
    )
    assert asked != [
        int(e.target.split()[1]) for e in built({**kept, "split": "mixed"}, None, tmp_path / "m")[1]
    ]


def released_halves(records, count):
    """GRACE's data set class, written from the specification (3.1) alone: what it edits and what it holds out."""
    pairs = []
    for record in records:
        answer, phrasings = record["output"][0].get("answer"), record["filtered_rephrases"]
        pairs.append((record["input"], answer))
        if len(phrasings) >= 10:
            pairs += [(phrasing, answer) for phrasing in phrasings[:10]]
    pairs = pairs[:count]
    order = [int(place) for place in np.random.RandomState(42).permutation(len(pairs))]
    return [[pairs[place] for place in part] for part in (order[: len(pairs) // 2], order[len(pairs) // 2 :])]


def test_what_is_repeated_or_bad_keeps_its_place_in_the_released_halves(tmp_path, nq):
    """A phrasing said twice, or a record that cannot be edited, would shift every pair behind it."""
    records = [structured(k, 12 if k % 3 else 4) for k in range(30)]
    for k in (1, 2, 17):  # the question itself, and a rephrasing once more
        records[k]["filtered_rephrases"][3:5] = [records[k]["input"], records[k]["filtered_rephrases"][0]]
    for k in (4, 6, 20):
        records[k]["output"] = [{"answer": " "}]
    records[22]["filtered_rephrases"][2] = ""
    bad = {4, 6, 20, 22}
    file = write(tmp_path / "z.jsonl", records)
    spec = {
        "task": "qa",
        "file": file,
        "upstream": nq,
        "split": "released",
        "bad_records": "skip",
        "pairs": 200,
    }
    manifest, edits, probes = built(spec, None, tmp_path / "out")
    whose = {text: k for k, one in enumerate(records) for text in (one["input"], *one["filtered_rephrases"])}
    wanted, held = (
        [pair for pair in half if pair[0] and whose[pair[0]] not in bad]
        for half in released_halves(records, 200)
    )
    assert [(edit.prompt, edit.target) for edit in edits] == list(dict.fromkeys(wanted))
    unseen = dict.fromkeys(pair for pair in held if pair not in wanted)
    assert {(p["prompt"], p["answer"]) for p in probes if p["set"] == "holdout"} == set(unseen)
    assert len(wanted) > len(set(wanted)) and len(manifest["skipped"]) == 4


def test_phrasings_of_each_question_can_be_halved_and_the_stream_cut(tmp_path, nq):
    file = write(tmp_path / "z.jsonl", [structured(k) for k in range(4)])
    spec = {"task": "qa", "file": file, "upstream": nq, "split": "phrasings"}
    _, whole, probes = built(spec, None, tmp_path / "whole")
    assert set(Counter(fact_of(edit.identifier) for edit in whole).values()) == {6}
    assert all(probe["edit"] for probe in probes if probe["set"] == "holdout")
    _, part, probes = built({**spec, "skip": 3, "limit": 5, "holdout": 7}, None, tmp_path / "part")
    assert [edit.identifier for edit in part] == [edit.identifier for edit in whole[3:8]]
    assert sum(probe["set"] == "holdout" for probe in probes) == 7
    kept = {edit.identifier for edit in part}
    assert all(probe["edit"] in kept | {None} for probe in probes)
    with pytest.raises(DataError, match="no edit is left"):
        build_lifelong({**spec, "skip": 999}, None, tmp_path / "none")


def test_upstream_questions_that_are_edited_are_left_out(tmp_path):
    file = write(tmp_path / "z.jsonl", [structured(k) for k in range(2)])
    rows = [{"question": "who leads town 1", "answer": "x"}, {"question": "who sleeps", "answer": "y"}]
    (tmp_path / "nq_train.json").write_text(
        json.dumps({"questions": [r["question"] for r in rows], "answers": [r["answer"] for r in rows]})
    )
    spec = {"task": "qa", "file": file, "upstream": {"file": str(tmp_path / "nq_train.json")}}
    manifest, _, probes = built(spec, None, tmp_path / "out")
    assert [p["prompt"] for p in probes if p["set"] == "upstream"] == ["Who sleeps?"]
    assert manifest["upstream"]["removed_because_edited"] == 1


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"filtered_rephrases": []}, "filtered_rephrases", "empty_rephrasings: question"),
        ({"filtered_rephrases": ["a", " "]}, "filtered_rephrases[1]", "text is empty"),
        ({"filtered_rephrases": None}, "filtered_rephrases", "missing"),
        ({"output": []}, "output", "first object"),
        ({"output": [{"answer": ""}]}, "output[0].answer", "text is empty"),
        ({"input": 7}, "input", "expected a text"),
    ],
)
def test_bad_questions_name_file_record_field_and_remedy(tmp_path, nq, change, field, words):
    file = write(tmp_path / "z.jsonl", [structured(0), structured(1, **change), structured(2)])
    spec = {"task": "qa", "file": file, "upstream": nq}
    with pytest.raises(DataError) as caught:
        build_lifelong(spec, None, tmp_path / "out")
    text = str(caught.value)
    assert "z.jsonl" in text and "number 1 " in text and words in text and "bad_records: skip" in text
    assert caught.value.field == field
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = build_lifelong({**spec, "bad_records": "skip"}, None, tmp_path / "out")
    assert [entry["record"] for entry in manifest["skipped"]] == [1]
    if field == "filtered_rephrases" and change[field] == []:
        manifest, _, _ = built({**spec, "empty_rephrasings": "question"}, None, tmp_path / "kept")
        assert manifest["skipped"] == [] and manifest["facts"] == 3


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def documents(tmp_path, stream, upstream="text,label\na b c d,0\ne f,1\n", **spec):
    return {
        "task": "classification",
        "file": table(tmp_path / "s.csv", stream),
        "upstream": {"file": table(tmp_path / "u.csv", upstream)},
        **spec,
    }


def test_documents_in_file_order_with_named_classes(tmp_path):
    spec = documents(tmp_path, 'text,label\n"x, y z",1\nq,0\n', labels=["A", "B"], words=2)
    manifest, edits, probes = built(spec, None, tmp_path / "out")
    assert [(edit.prompt, edit.target) for edit in edits] == [("x, y", "B"), ("q", "A")]
    assert [(p["prompt"], p["answer"]) for p in probes] == [("a b", "A"), ("e f", "B")]
    assert manifest["labels"] == ["A", "B"]
    spec["file"] = str(tmp_path / "t.csv.gz")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "s.csv").read_bytes()))
    assert build_lifelong(spec, None, tmp_path / "zipped")["fingerprint"] == manifest["fingerprint"]


@pytest.mark.parametrize(
    ("stream", "spec", "words"),
    [
        ("text,label\na,0\nb,\n", {}, ["number 1 ", "no label", "bad_records: skip"]),
        ("text,label\na,0\nb,7\n", {}, ["'7' is outside the label set (0, 1)", "outside_labels: drop"]),
        ("text,label\na,0\nb,2\n", {"labels": ["A", "B"]}, ["number 1 ", "outside the label set of 2"]),
        ("text,label\na,0\nb\n", {}, ["number 1 ", "1 fields, expected 2"]),
        ("text,label\n,0\n", {}, ["number 0 ", "field 'text'", "empty"]),
        ("text,text\na,0\n", {}, ["name the columns, each once"]),
        ("text,class\na,0\n", {}, ["fit no known form", "label"]),
        ("text,label\n", {}, ["no record"]),
    ],
)
def test_bad_documents_are_refused(tmp_path, stream, spec, words):
    with pytest.raises(DataError) as caught:
        build_lifelong(documents(tmp_path, stream, **spec), None, tmp_path / "out")
    assert all(word in str(caught.value) for word in [*words, "s.csv"])


def test_documents_outside_labels_or_years_can_be_left_out(tmp_path):
    spec = documents(tmp_path, "text,label\na,0\nb,7\n", outside_labels="drop")
    manifest, edits, _ = built(spec, None, tmp_path / "out")
    assert [edit.prompt for edit in edits] == ["a"] and manifest["outside_labels"] == 1
    stream = "text,label,term\na,0,1940-1955\nb,1,1991\nc,1,1999\n"
    spec = documents(tmp_path, stream, from_year=1955, until_year=1991)
    assert [edit.prompt for edit in built(spec, None, tmp_path / "years")[1]] == ["a", "b"]
    with pytest.raises(SettingsError, match="carry no year"):
        build_lifelong(documents(tmp_path, "text,label\na,0\n", from_year=1990), None, tmp_path / "no")


def cases(rows):
    lines = [f"{n},<p>Facts &amp; {n} more</p>,{term},{area}" for n, (term, area) in enumerate(rows)]
    return "\n".join([",facts,term,issue_area", *lines]) + "\n"


def test_court_cases_are_split_by_time_and_rare_classes_left_out(tmp_path):
    rows = (
        [(1970, "A")] * 8 + [(1975, "B")] * 8 + [(1976, "C")] + [(1985, "A")] * 2 + [(1995, "B"), (1996, "C")]
    )
    spec = {"task": "classification", "file": table(tmp_path / "j.csv", cases(rows)), "fewest": 5}
    manifest = build_lifelong_source(spec, tmp_path / "source")
    assert manifest["labels"] == ["A", "B"]
    assert manifest["counts"] == {"read": 12, "upstream": 4, "tuning": 2, "stream": 1}
    assert manifest["left_out_as_rare_class"] == {"before": 1, "tuning": 0, "stream": 1}
    _, edits, probes = built({"task": "classification"}, tmp_path / "source", tmp_path / "out")
    assert [(edit.prompt, edit.target) for edit in edits] == [("Facts & 19 more", "B")] and len(probes) == 4
    with pytest.raises(DataError, match="Lower 'fewest'"):
        build_lifelong_source({**spec, "fewest": 50}, tmp_path / "none")


LIFE = {
    "wiki_bio_text": "Ada B. Sorn (born 1 May 1900) was a Dr. of law. She lived. She died.",
    "gpt3_sentences": ["Ada was a pilot.", "She lived.", "She sang."],
    "annotation": ["major_inaccurate", "accurate", "minor_inaccurate"],
}


def lives(tmp_path, records, names="ada sorn\n", **spec):
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "web.txt").write_text("One two three four five.\n" * 3)
    return {
        "task": "generation",
        "file": write(tmp_path / "w.jsonl", records),
        "names": str(tmp_path / "names.txt"),
        "upstream": {"file": str(tmp_path / "web.txt"), "prompt_words": 2},
        **spec,
    }


def test_wrong_sentences_become_edits_and_right_ones_probes(tmp_path):
    manifest, edits, probes = built(lives(tmp_path, [LIFE]), None, tmp_path / "out")
    header = "This is a Wikipedia passage about ada sorn."
    assert [(edit.prompt, edit.target, edit.truth) for edit in edits] == [
        (header, "Ada B. Sorn (born 1 May 1900) was a Dr. of law.", "Ada was a pilot."),
        (f"{header} Ada was a pilot. She lived.", "She died.", "She sang."),
    ]
    assert all(edit.subject == "ada sorn" for edit in edits)
    assert probes[0] == {
        "set": "accurate",
        "prompt": f"{header} Ada was a pilot.",
        "answer": "She lived.",
        "edit": None,
    }
    assert probes[1] == {"set": "upstream", "prompt": "One two", "answer": "three four five.", "edit": None}
    assert manifest["people"] == 1 and manifest["accurates"] == 1 and len(probes) == 4
    spec = lives(tmp_path, [LIFE], annotations=["major_inaccurate"])
    assert len(built(spec, None, tmp_path / "major")[1]) == 1


@pytest.mark.parametrize(
    ("change", "names", "field", "words"),
    [
        ({"annotation": ["accurate"]}, "a\n", "annotation", "1 annotations for 3 sentences"),
        ({"annotation": ["accurate", "fine", "accurate"]}, "a\n", "annotation", "found 'fine'"),
        ({"gpt3_sentences": []}, "a\n", "gpt3_sentences", "list is empty"),
        ({"wiki_bio_text": " "}, "a\n", "wiki_bio_text", "empty"),
        ({}, "a\nb\n", None, "2 names for 1 passages"),
    ],
)
def test_bad_biographies_are_refused(tmp_path, change, names, field, words):
    with pytest.raises(DataError) as caught:
        build_lifelong(lives(tmp_path, [{**LIFE, **change}], names), None, tmp_path / "out")
    assert words in str(caught.value) and caught.value.field == field
    spec = lives(tmp_path, [LIFE])
    with pytest.raises(DataError, match="set 'names'"):
        build_lifelong({**spec, "names": None}, None, tmp_path / "out")


def test_sentences_end_where_a_reader_would_end_them():
    text = "Sir J. R. Reynolds was born in St. Ives. He left! Did he return? In 1900 he did."
    assert sentences(text) == [
        "Sir J. R. Reynolds was born in St. Ives.", "He left!", "Did he return?", "In 1900 he did.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "task"),
        ({"task": "poetry"}, "task: expected one of qa"),
        ({"task": "qa", "splits": 1}, "splits"),
        ({"task": "qa", "limit": 0}, "limit"),
        ({"task": "qa", "split": "half"}, "split"),
        ({"task": "qa", "upstream": {"words": 1}}, "upstream: unexpected"),
        ({"task": "qa", "upstream": {"limit": "10"}}, "upstream.limit"),
        ({"task": "generation", "upstream": {"limit": -1}}, "upstream.limit"),
        ({"task": "classification", "labels": ["A", "A"]}, "labels"),
    ],
)
def test_settings_are_checked(tmp_path, spec, words):
    with pytest.raises(SettingsError, match=words):
        build_lifelong(spec, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"limit": -1}, "limit"),
        ({"words": 0}, "words"),
        ({"stale": {"file": "zsre.json", "limit": "10"}}, "stale.limit"),
        ({"stale": {"file": "zsre.json", "phrasings": -1}}, "stale.phrasings"),
    ],
)
def test_limits_of_a_source_are_checked(tmp_path, spec, words):
    with pytest.raises(SettingsError, match=rf"{words}: expected a whole number above 0"):
        build_lifelong_source({"task": "qa", "file": "nq.jsonl", **spec}, tmp_path / "out")


def test_generated_worlds_are_read_without_further_settings(tmp_path):
    small = {"edit_facts": 6, "upstream_facts": 8, "relations": 2, "answers": 3, "first_names": 5}
    generate_qa(small, 1, tmp_path / "qa")
    generate_labels(
        {"documents": 12, "upstream": 12, "tuning": 6, "stream": 12}, 1, tmp_path / "classification"
    )
    generate_biographies(
        {"people": 4, "cities": 5, "first_names": 5, "text_lines": 20}, 1, tmp_path / "generation"
    )
    expected = {"qa": {"upstream": 8, "holdout": 33}, "classification": {"upstream": 12}}
    for task in ("qa", "classification", "generation"):
        manifest, edits, _ = built({"task": task}, tmp_path / task, tmp_path / f"out-{task}")
        assert manifest["task"] == task and manifest["conflicts"] == [] and edits
        assert manifest["probes"] == expected.get(task, manifest["probes"])
    assert set(manifest["probes"]) == {"upstream", "accurate"} and manifest["probes"]["upstream"] == 2


def test_the_stream_of_cases_goes_by_their_years(tmp_path):
    """The real file is only nearly in order; cases of one year stay as they stand."""
    years = [1970, 1971, 1972, 1973, 1995, 1993, 1995, 1991]
    lines = ["term,issue_area,facts,ID,name"]
    lines += [f"{year},{'AB'[i % 2]},<p>Case {i} was heard.</p>,{i},Case {i}" for i, year in enumerate(years)]
    (tmp_path / "justice.csv").write_text("\n".join(lines) + "\n")
    spec = {"task": "classification", "file": str(tmp_path / "justice.csv"), "fewest": 1}
    build_lifelong_source(spec, tmp_path / "source")
    stream = (tmp_path / "source" / "scotus_stream.csv").read_text().splitlines()[1:]
    assert [int(line.split()[1]) for line in stream] == [7, 5, 4, 6]
