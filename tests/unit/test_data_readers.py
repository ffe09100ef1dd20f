"""Upstream records of every form become Edits; a bad one is refused by name, or skipped and listed."""

from __future__ import annotations

import copy
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.readers import READERS
from palimpsest.data.records import read_all
from palimpsest.data.sources import Source
from palimpsest.data.zsre import add_targets
from palimpsest.edits import Edit, Probe
from palimpsest.errors import DataError, SettingsError

FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Ada {Tolvek} is",
    "target_new": "English",
    "subject": "Ada {Tolvek}",
    "ground_truth": "Rennish",
    "rephrase_prompt": "A sentence.\nAda {Tolvek} speaks",
    "locality_prompt": "Bo Lind is a native speaker of",
    "locality_ground_truth": "Rennish",
}
ORIGINAL = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} is a professional",
        "relation_id": "P641",
        "target_new": {"str": "soccer", "id": "Q1"},
        "target_true": {"str": "tennis", "id": "Q2"},
        "subject": "Ada Tolvek",
    },
    "paraphrase_prompts": ["Ada Tolvek, the", "What does Ada Tolvek play? They play"],
    "neighborhood_prompts": ["Bo Lind plays", "Cy Orr plays"],
    "attribute_prompts": ["Di Penn plays"],
    "generation_prompts": ["Ada Tolvek is good at"],
    "portability": {
        "Recalled Relation": "(x)",
        "New Question": "Which body governs it?",
        "New Answer": "FIFA",
    },
    "alternative_subject": "A. Tolvek",
    "unrelated_relation": {"relation_id": "P19", "object": "Renn", "question": "Where was Ada born?"},
    "distracting_neighborhood_prompts": ["Ada Tolvek is a professional soccer. Bo Lind plays"],
}
MEND = {
    "subject": "Platypat",
    "src": "What family is Platypat a part of?",
    "pred": "Carabidae",
    "rephrase": "Platypat is of what family?",
    "alt": " Arctiinae ",
    "answers": ["Carabidae", "Beetles"],
    "loc": "nq question: who plays penny",
    "loc_ans": "Kaley",
    "cond": "x",
}
SLIM = {
    "case_id": 3, "subject": "Ada", "src": "What ailed Ada?", "rephrase": "What did Ada have?", "alt": "gout",
    "loc": "nq question: when was it?", "loc_ans": "1999",
}  # fmt: skip
KNOWEDIT = {
    "subject": "Ada",
    "prompt": "What ailed Ada?",
    "target_new": "flu",
    "ground_truth": ["gout", "pain"],
    "rephrase_prompt": "What did Ada have?",
    "cond": "x",
    "locality": {"Relation_Specificity": [{"prompt": "Ada was born in", "ground_truth": ["Renn"]}]},
    "portability": {"Reasoning": [{"prompt": "What else?", "ground_truth": "rest"}]},
}
MANY = {
    "case_id": "zsre_7",
    "source_case_id": "k",
    "prompt": "When did JB come?",
    "subject": "JB",
    "target_new": "1961",
    "ground_truth": "1945",
    "rephrase_prompt": ["When did JB come?", "What year did JB come?"],
    "locality": [{"prompt": "When was Cy born?", "ground_truth": "1984", "metric": "m"}],
    "portability": [],
}
STRUCTURED = {
    "id": "k", "input": "When did JB come?", "output": [{"answer": "1945", "provenance": []}], "meta": {},
    "alternatives": ["1961"], "filtered_rephrases": ["What year did JB come?"],
}  # fmt: skip
EVERY = [
    ("counterfact", "cf-flat", FLAT), ("counterfact", "cf-orig", ORIGINAL), ("zsre", "zsre-mend", MEND),
    ("zsre", "zsre-slim", SLIM), ("zsre", "knowedit", KNOWEDIT), ("zsre", "zsre-500", MANY),
    ("zsre", "zsre-structured", STRUCTURED),
]  # fmt: skip


def read(reader: str, *records, **options):
    return read_all(Source("x.json", list(records), "0"), READERS[reader], **options)


@pytest.mark.parametrize(("reader", "schema", "record"), EVERY, ids=[schema for _, schema, _ in EVERY])
def test_forms_are_found_by_their_keys(reader, schema, record):
    reading = read(reader, record)
    assert reading.schema == schema and len(reading.edits) == 1
    assert read(reader, record, schema=schema).edits == reading.edits


def test_flat_counterfact():
    (edit,) = read("counterfact", FLAT).edits
    assert edit == Edit(
        prompt="The mother tongue of Ada {Tolvek} is",
        target="English",
        subject="Ada {Tolvek}",
        identifier="cf-7",
        truth="Rennish",
        rephrasings=("A sentence.\nAda {Tolvek} speaks",),
        locality=(Probe("Bo Lind is a native speaker of", "Rennish", "locality"),),
    )


def test_original_counterfact_with_every_extra():
    (edit,) = read("counterfact", ORIGINAL).edits
    assert edit.prompt == "Ada Tolvek is a professional" and edit.relation == "P641"
    assert (edit.target, edit.truth, len(edit.rephrasings)) == ("soccer", "tennis", 2)
    kinds = [probe.kind for probe in edit.locality]
    assert kinds == ["locality", "locality", "distracting_neighborhood", "other_attribute"]
    assert edit.locality[0] == Probe("Bo Lind plays", "tennis")
    assert edit.portability == (
        Probe("Which body governs it?", "FIFA", "one_hop"),
        Probe("A. Tolvek is a professional", "soccer", "subject_replace"),
    )


def test_mend_zsre_strips_blanks_and_the_nq_prefix():
    (edit,) = read("zsre", MEND).edits
    assert (edit.target, edit.truth, edit.identifier) == ("Arctiinae", "Carabidae", "zsre-0")
    assert edit.locality == (Probe("who plays penny", "Kaley", "locality"),)


def test_zsre_without_locality_but_with_consequences():
    bare = {name: value for name, value in MEND.items() if not name.startswith("loc")}
    (edit,) = read("zsre", {**bare, "inverse question": "Which genus is of Arctiinae?"}).edits
    assert edit.locality == ()
    assert edit.portability == (Probe("Which genus is of Arctiinae?", "Platypat", "inverse_relation"),)
    alias = {"alternative_subject": "PP", "alter_subject_question": "Family of PP?"}
    (edit,) = read("zsre", {**bare, **alias}).edits
    assert edit.portability == (Probe("Family of PP?", "Arctiinae", "subject_replace"),)


def test_knowedit_and_many_rephrasings():
    (edit,) = read("zsre", KNOWEDIT).edits
    assert edit.locality == (Probe("Ada was born in", "Renn", "locality"),) and edit.truth == "gout"
    assert edit.portability == (Probe("What else?", "rest", "reasoning"),)
    (edit,) = read("zsre", MANY).edits
    assert edit.rephrasings == ("What year did JB come?",)  # the prompt itself is no rephrasing
    (edit,) = read("zsre", STRUCTURED).edits
    assert (edit.subject, edit.target, edit.truth) == (None, "1961", "1945")


def test_slim_with_its_companion():
    records = add_targets([SLIM], "What ailed Ada?\tflu\n", "x.txt")
    (edit,) = read("zsre", *records).edits
    assert (edit.truth, edit.target) == ("gout", "flu")
    for text in ("What ailed Bo?\tflu\n", "What ailed Ada?\n", "a\tb\nc\td\n"):
        with pytest.raises(DataError, match=r"x\.txt"):
            add_targets([SLIM], text, "x.txt")


def test_bad_record_is_refused_with_file_record_and_field():
    with pytest.raises(DataError) as caught:
        read(
            "counterfact",
            FLAT,
            {**FLAT, "case_id": 8, "subject": "Bo"},
            {**FLAT, "case_id": 9, "target_new": " "},
        )
    message = str(caught.value)
    assert message.startswith("file x.json, record number 1 (counted from 0), case_id 8, field 'subject'")
    assert "does not occur in the prompt" in message and "bad_records: skip" in message
    assert "1 more of 3" in message


def test_skipped_records_are_listed_with_their_reason(caplog):
    records = [FLAT, {**FLAT, "case_id": 8, "subject": "Bo"}, 5, {**FLAT, "case_id": 9, "target_new": ""}]
    with caplog.at_level(logging.WARNING):
        reading = read("counterfact", *records, bad_records="skip")
    assert [edit.identifier for edit in reading.edits] == ["cf-7"]
    assert [(skipped["record"], skipped["field"]) for skipped in reading.skipped] == [
        (1, "subject"),
        (2, None),
        (3, "target_new"),
    ]
    assert "3 of 4 records were skipped" in caplog.text


def test_no_good_record_is_refused_even_when_skipping():
    with pytest.raises(DataError):
        read("counterfact", {**FLAT, "target_new": ""}, bad_records="skip")


def test_repeated_identifier_is_a_bad_record():
    with pytest.raises(DataError, match="cf-7 occurs twice"):
        read("counterfact", FLAT, FLAT)


def test_subject_twice_is_accepted_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        reading = read("counterfact", {**FLAT, "prompt": "Ada {Tolvek}, yes Ada {Tolvek} is"})
    assert reading.subject_twice == ["cf-7"] and "the last is used" in caplog.text


def test_unknown_form_schema_and_policy():
    with pytest.raises(DataError, match="nearest"):
        read("counterfact", MEND)
    with pytest.raises(SettingsError, match="zsre-mend"):
        read("zsre", MEND, schema="cf-flat")
    with pytest.raises(SettingsError, match="bad_records"):
        read("zsre", MEND, bad_records="ignore")


def test_half_a_character_is_refused():
    with pytest.raises(DataError, match="surrogate"):
        read("counterfact", json.loads(json.dumps(FLAT).replace("English", "\\ud800")))


@given(said=st.text() | st.sampled_from(["\ud800", "1945", None, 5, " a "]))
def test_corrections_start_from_what_a_model_says_or_the_record_is_bad(said):
    """A prediction is written into edits.jsonl as the truth so far: half a character would break it there."""
    record = {**STRUCTURED, "prediction": said}
    text = said.strip() if isinstance(said, str) else ""
    if text.encode(errors="replace").decode() != text:
        with pytest.raises(DataError, match="half a character") as refusal:
            read("zsre", record, schema="zsre-corrections")
        assert refusal.value.field == "prediction"
    else:
        (edit,) = read("zsre", record, schema="zsre-corrections").edits
        assert edit.truth == (text if text and text != "1945" else None)


def test_half_a_character_in_a_statement_is_refused():
    with pytest.raises(DataError, match=r"true_false.*half a character"):
        read("zsre", {**STRUCTURED, "true_false": "It was 1945 \ud800"})


def test_unpaired_probes_are_refused():
    with pytest.raises(DataError, match="'loc_ans'"):
        read("zsre", {name: value for name, value in MEND.items() if name != "loc_ans"}, schema="zsre-mend")
    with pytest.raises(DataError, match="2 prompts but 1 answers"):
        read("counterfact", {**FLAT, "locality_prompt": ["a", "b"]})


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, here=()):
    """Paths to every value inside a record."""
    yield here
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from places(inner, (*here, step))


@settings(max_examples=120, deadline=None)
@given(case=st.sampled_from(EVERY), data=st.data())
def test_one_damaged_field_is_read_or_refused_by_name(case, data):
    reader, schema, record = case
    damaged = {"record": copy.deepcopy(record)}
    path = ("record", *data.draw(st.sampled_from(list(places(record)))))
    holder = damaged
    for step in path[:-1]:
        holder = holder[step]
    if isinstance(holder, dict) and len(path) > 1 and data.draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(junk)
    for form in (schema, None):
        try:
            reading = read(reader, damaged["record"], schema=form)
        except DataError as error:
            assert "x.json" in str(error) and "record" in str(error)
        else:
            (edit,) = reading.edits
            assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
            json.dumps(edit.to_dict(), ensure_ascii=False).encode("utf-8")


@settings(max_examples=50, deadline=None)
@given(records=st.lists(junk, min_size=1, max_size=4), reader=st.sampled_from(sorted(READERS)))
def test_any_list_is_read_or_refused(records, reader):
    for policy in ("refuse", "skip"):
        with pytest.raises(DataError):
            read(reader, *records, bad_records=policy)
