"""What learned editors are trained on: subjects set aside, prompts that leak nothing, and files that stay as they were."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.in_scope import asked_aside, before_edit, unchanged
from palimpsest.data.learning import build_examples, relation_groups, set_aside, subject_key
from palimpsest.data.lifelong import build_lifelong, fact_of
from palimpsest.data.lifelong_learning import question_records, shortened
from palimpsest.data.lifelong_readers import Item
from palimpsest.data.prepare import build_dataset
from palimpsest.data.world import generate
from palimpsest.data.world_biographies import generate_biographies
from palimpsest.data.world_labels import generate_labels
from palimpsest.data.world_qa import generate_qa
from palimpsest.edits import UNSETTLED, Edit, Probe, read_edits
from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.examples import Sampler, read_examples
from palimpsest.protocols.sample import choose, read_reserved, refuse_reserved


def fact(number: int, subject: str, **more) -> Edit:
    return Edit(f"The town of {subject} is", f"new {number}", subject, f"e-{number}", f"old {number}", **more)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    generate({"counterfact": 96, "zsre": 96, "probes": 24, "text_lines": 10}, 1, folder / "facts")
    generate_qa({"edit_facts": 40, "upstream_facts": 30, "relations": 4}, 1, folder / "qa")
    generate_labels({"documents": 24, "upstream": 24, "tuning": 12, "stream": 60}, 1, folder / "labels")
    generate_biographies({"people": 12, "text_lines": 20}, 1, folder / "lives")
    return folder


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(1, 29))
@settings(max_examples=60, deadline=None)
def test_the_last_subjects_are_set_aside_whole(owners, count):
    edits = [fact(number, f"S{owner}") for number, owner in enumerate(owners)]
    first = list(dict.fromkeys(owners))
    sizes = [owners.count(owner) for owner in first]
    try:
        own = set_aside(edits, count)
    except DataError:
        fewest = next(
            n for n in range(len(first) + 1) if sum(sizes[len(first) - n :]) >= min(count, len(edits))
        )
        assert fewest == len(first)
        return
    taken = {subject_key(edit) for edit in own}
    assert len(own) >= count and not taken & {subject_key(edit) for edit in edits if edit not in own}
    assert taken == {f"s{owner}" for owner in first[-len(taken) :]}
    assert len(own) - owners.count(first[-len(taken)]) < count  # one subject fewer would not do


@pytest.mark.parametrize("reader", ["counterfact", "zsre"])
def test_learning_and_tables_share_nothing(worlds, tmp_path, reader):
    manifest = build_dataset({"reader": reader, "reserve": 40}, worlds / "facts", tmp_path)
    edits, examples = read_edits(tmp_path / "edits.jsonl"), read_examples(tmp_path / "learning.jsonl")
    aside = set(manifest["reserved"])
    assert aside == read_reserved(tmp_path) and len(aside) >= 40
    tables = [edit for edit in edits if edit.identifier not in aside]
    asked = {text for e in tables for text in (e.prompt, *e.rephrasings, *(p.prompt for p in e.locality))}
    subjects = {edit.subject for edit in tables}
    assert {example.identifier for example in examples} <= aside
    for example in examples:
        assert example.subject not in subjects
        texts = {example.prompt, *example.rephrasings, *(outside.prompt for outside in example.outside)}
        assert not texts & asked
        assert not any(outside.prompt in example.in_scope() for outside in example.outside)
        assert example.subject in example.prompt and example.rephrasings
        assert all(example.subject in text for text in example.rephrasings)
    assert {example.split for example in examples} == {"train", "valid"}
    by_split = {split: {e.subject for e in examples if e.split == split} for split in ("train", "valid")}
    assert not by_split["train"] & by_split["valid"]
    draws = Sampler([e for e in examples if e.split == "train"], 0, hard_share=1.0).draw(10)
    assert all(draw.outside.near for draw in draws)


def test_near_prompts_share_relation_or_subject_and_far_ones_do_not(worlds, tmp_path):
    build_dataset({"reader": "counterfact", "reserve": 40}, worlds / "facts", tmp_path)
    edits = read_edits(tmp_path / "edits.jsonl")
    relation = dict(zip((e.prompt for e in edits), relation_groups(edits), strict=True))
    wording = {text: e.prompt for e in edits for text in (e.prompt, *e.rephrasings)}
    checked = 0
    for example in read_examples(tmp_path / "learning.jsonl"):
        for outside in example.outside:
            if outside.prompt not in wording:
                continue
            same = relation[wording[outside.prompt]] == relation[example.prompt]
            about = example.subject in outside.prompt
            assert outside.near == (same or about)
            checked += 1
    assert checked > 100


def test_rephrasings_are_borrowed_only_from_ways_that_several_records_use():
    own = [
        fact(0, "Ada Sorn", rephrasings=("People say Ada Sorn comes from",)),
        fact(
            1,
            "Ben Karel",
            rephrasings=("People say Ben Karel comes from", "A free text on Ben Karel, long ago,"),
        ),
        fact(2, "Jon Lund"),
    ]
    examples, about = build_examples(own, [])
    assert examples[2]["rephrasings"] == ["People say Jon Lund comes from"]
    assert about["left_out"] == {} and len(examples[0]["alternatives"]) == 5
    again, _ = build_examples(own, [])
    assert again == examples


def test_a_subjects_records_of_unknown_relation_are_neither_near_nor_far():
    """They may ask for the same fact in other words, as several records of the real ZsRE file do."""
    way, other = "Where does {} live today", "In which town is {} at home, as far as is known"
    own = [
        Edit(way.format("Ada Sorn"), "Velden", "Ada Sorn", "a", "Marrin"),
        Edit(other.format("Ada Sorn"), "Ostrava", "Ada Sorn", "b", "Marrin"),
        *(fact(n, f"S{n}") for n in range(4)),
    ]
    examples, _ = build_examples(own, [])
    first = {outside["prompt"] for outside in examples[0]["outside"]}
    assert own[1].prompt not in first and len(first) >= 2
    named = [replace(edit, relation=f"r{edit.identifier}") if n < 2 else edit for n, edit in enumerate(own)]
    examples, _ = build_examples(named, [])
    assert {"prompt": own[1].prompt, "answer": "Marrin", "near": True} in examples[0]["outside"]


def test_what_nobody_knows_is_near_and_not_known():
    """A claim about which a sentence of evidence says too little: no answer to it is right or wrong."""
    own = [fact(n, f"S{n}") for n in range(3)]
    own[0] = replace(own[0], locality=(Probe("S0 is tall.", "REFUTES", UNSETTLED),))
    examples, _ = build_examples(own, [])
    found = [outside for outside in examples[0]["outside"] if outside["prompt"] == "S0 is tall."]
    assert found == [{"prompt": "S0 is tall.", "answer": "REFUTES", "near": True, "known": False}]


def test_an_implied_question_keeps_room_for_the_new_answer():
    probes = (Probe("Who lives in new 0?", "Ada", "implied"), Probe("True: new 0?", "new 0", "true_false"))
    examples, _ = build_examples([fact(0, "Ada Sorn", portability=(*probes, Probe("q", "a", "one_hop")))], [])
    assert examples[0]["implied"] == [["Who lives in {}?", "Ada"]]
    assert examples[0]["true_false"] == [["True: {}?", "{}"]]


def test_a_hole_is_a_whole_word_and_what_is_false_has_none():
    probes = (
        Probe("Is Ada female, or male?", "Ada", "implied"),
        Probe("T/F: Ada is male", "True", "true_false"),
        Probe("T/F: Ada, no male, is female", "False", "true_false"),
        Probe("T/F: Ada is a female", "True", "true_false"),
    )
    own = Edit("What is Ada?", "male", "Ada", "e", "female", portability=probes)
    (example,), _ = build_examples([own], [])
    assert example["implied"] == [["Is Ada female, or {}?", "Ada"]]
    # The last one is true of this answer alone: filled with another it would go on saying this one.
    assert example["true_false"] == [["T/F: Ada is {}", "True"], ["T/F: Ada, no male, is female", "False"]]


def test_what_tables_ask_is_learned_from_by_no_prompt_and_no_question():
    asked = Probe("Who lives in new 1?", "Ada", "implied")
    own = [
        fact(0, "Ada Sorn"),
        fact(1, "Ben Karel", portability=(asked, Probe("Who else?", "Jon", "implied"))),
    ]
    table = Edit("Who is it?", "him", identifier="t", locality=(Probe(own[0].prompt, "x"), asked))
    examples, about = build_examples(own, [table])
    assert [example["identifier"] for example in examples] == ["e-1"]
    assert examples[0]["implied"] == [["Who else?", "Jon"]]
    assert about["left_out"] == {"prompts that tables ask": 1, "questions that tables ask": 1}
    with pytest.raises(DataError, match="no table asks"):
        build_examples(own[:1], [table])


CLAIM = Edit(
    "Ada moved.",
    "SUPPORTS",
    identifier="c",
    truth="REFUTES",
    rephrasings=("Ada has moved.",),
    portability=(Probe("Ada stayed.", "REFUTES", "implied"),),
)
QUESTION = Edit(
    "Where does Ada live?",
    "Velden",
    identifier="q",
    truth="Marrin",
    portability=(
        Probe("Who lives in Velden?", "Ada", "implied"),
        Probe("T/F: Ada lives in Velden", "True", "true_false"),
        Probe("T/F: Ada lives in Marrin", "False", "true_false"),
        Probe("And Ada's home?", "Velden", "implied"),
    ),
)


def test_an_unedited_record_is_asked_with_what_is_said_before_its_edit():
    assert [before_edit(CLAIM, probe) for probe in CLAIM.portability] == ["SUPPORTS"]
    assert [before_edit(QUESTION, p) for p in QUESTION.portability] == [None, "False", "True", "Marrin"]
    nobody_knows = replace(QUESTION, truth=None)
    assert {before_edit(nobody_knows, probe) for probe in QUESTION.portability} == {None}
    asked = {asked_aside(edit, random.Random(n)) for edit in (CLAIM, QUESTION) for n in range(60)}
    assert asked == {
        ("Ada moved.", "REFUTES", True),
        ("Ada has moved.", "REFUTES", True),
        ("Ada stayed.", "SUPPORTS", True),
        ("Where does Ada live?", "Marrin", True),
        ("Who lives in Velden?", "Ada", False),
        ("T/F: Ada lives in Velden", "False", True),
        ("T/F: Ada lives in Marrin", "True", True),
        ("And Ada's home?", "Marrin", True),
    }
    others = [replace(QUESTION, prompt=f"{n}?", identifier=f"{n}") for n in range(30)]
    examples, _ = build_examples([QUESTION, *others], [])
    rows = {(row["prompt"], row.get("known", True)) for one in examples for row in one["outside"]}
    assert ("Who lives in Velden?", False) in rows and ("T/F: Ada lives in Velden", True) in rows
    assert all("known" not in row or row["known"] is False for one in examples for row in one["outside"])


def test_an_edit_that_changes_nothing_asks_for_what_was_so():
    kept = unchanged(CLAIM)
    assert (kept.target, kept.portability) == ("REFUTES", (Probe("Ada stayed.", "SUPPORTS", "implied"),))
    assert ("Ada stayed.", "SUPPORTS", True) in {asked_aside(kept, random.Random(n)) for n in range(30)}
    answers = [(probe.prompt[:3], probe.answer) for probe in unchanged(QUESTION).portability]
    assert answers == [
        ("T/F", "False"),
        ("T/F", "True"),
        ("And", "Marrin"),
    ]  # who lives in Velden is not known
    opinion = replace(CLAIM, portability=(Probe("?", "Fine.", "sentiment_with"),))
    assert unchanged(opinion).portability[0].kind == "sentiment_against"
    assert unchanged(replace(CLAIM, truth=None)) == replace(CLAIM, truth=None)


def test_a_subject_on_both_sides_is_refused():
    with pytest.raises(DataError, match="both to learn from and to be edited"):
        build_examples([fact(0, "Ada  Sorn")], [fact(1, "ada sorn")])
    with pytest.raises(DataError, match="'alternatives'"):
        build_examples([Edit("What is it?", "this", identifier="e")], [])


def test_without_reserve_nothing_is_new(worlds, tmp_path):
    build_dataset({"reader": "zsre", "reserve": 10}, worlds / "facts", tmp_path)
    first = (tmp_path / "edits.jsonl").read_bytes()
    manifest = build_dataset({"reader": "zsre"}, worlds / "facts", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edits.jsonl", "manifest.json"]
    assert not {"reserved", "learning"} & set(manifest) and not read_reserved(tmp_path)
    assert (tmp_path / "edits.jsonl").read_bytes() == first  # the reserve changes no edit


def test_another_file_to_learn_from_loses_what_is_edited(worlds, tmp_path):
    spec = {"reader": "counterfact", "limit": 50, "learning": {"file": "counterfact.json"}}
    manifest = build_dataset(spec, worlds / "facts", tmp_path)
    tables = {edit.subject for edit in read_edits(tmp_path / "edits.jsonl")}
    examples = read_examples(tmp_path / "learning.jsonl")
    assert examples and not tables & {example.subject for example in examples}
    assert manifest["learning"]["left_out_as_edited"] >= 50
    # The file's own names would be taken for those of the edits.
    assert all(example.identifier.startswith("learning-") for example in examples)
    with pytest.raises(DataError, match="all its subjects are edited"):
        build_dataset({**spec, "limit": None}, worlds / "facts", tmp_path)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"reserve": -1}, "reserve"),
        ({"reserve": True}, "reserve"),
        ({"reserve": 10, "learning": {"file": "x"}}, "learning"),
        ({"learning": {"files": "x"}}, "learning"),
        ({"keep_answer": 2}, "keep_answer"),
        ({"learning": {"file": "zsre.json", "limit": "10"}}, "learning.limit"),
        ({"learning": {"file": "zsre.json", "limit": -1}}, "learning.limit"),
    ],
)
def test_bad_settings_are_named(worlds, tmp_path, spec, named):
    with pytest.raises(SettingsError, match=named):
        build_dataset({"reader": "zsre", **spec}, worlds / "facts", tmp_path)


def test_too_large_a_reserve_is_refused_before_anything_is_written(worlds, tmp_path):
    with pytest.raises(DataError, match="'reserve'.*none to edit"):
        build_dataset({"reader": "zsre", "reserve": 96}, worlds / "facts", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "world"), [("qa", "qa"), ("classification", "labels"), ("generation", "lives")]
)
def test_a_stream_stays_as_it_was_and_names_what_is_aside(worlds, tmp_path, task, world):
    build_lifelong({"task": task}, worlds / world, tmp_path / "plain")
    manifest = build_lifelong({"task": task, "reserve": 15}, worlds / world, tmp_path / "aside")
    for name in ("edits.jsonl", "probes.jsonl"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "aside" / name).read_bytes()
    plain = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert "reserve" not in plain["settings"] and "reserved" not in plain
    aside = read_reserved(tmp_path / "aside")
    edits = read_edits(tmp_path / "aside" / "edits.jsonl")
    examples = read_examples(tmp_path / "aside" / "learning.jsonl")
    assert manifest["learning"]["examples"] == len(examples) >= 12 and aside
    # A fact, a document or a person is on one side only.
    owner = {
        "qa": lambda e: e.identifier.rpartition(".")[0],
        "classification": lambda e: e.identifier,
        "generation": lambda e: e.subject,
    }[task]
    sides = [{owner(edit) for edit in edits if (edit.identifier in aside) == side} for side in (True, False)]
    assert not sides[0] & sides[1]
    learned = {example.subject if task == "generation" else example.identifier for example in examples}
    assert not learned & sides[1]
    Sampler(examples, 0, hard_share=0.5).draw(3)


def test_questions_about_an_edited_page_are_not_learned_from():
    """Two facts of one page have owners of their own; the page would stand on both sides."""
    names = ("Ada", "Ben", "Cora", "Ada", "Dora")
    items = [
        Item(
            "stream",
            Edit(f"What is {name} number {n}?", f"a{n}", identifier=f"zsre-{n}"),
            f"zsre-{n}",
            page=name,
        )
        for n, name in enumerate(names)
    ]
    stream = [replace(item.edit, identifier=f"{item.fact}.0") for item in items]
    records = question_records(items, fact_of)
    aside = records.set_aside(stream, 2, "f.json")
    assert [record.identifier for record in aside.own] == ["zsre-4"]
    assert aside.reserved == ["zsre-3.0", "zsre-4.0"] and len(aside.tables) == 3
    same = question_records([replace(item, page="What") for item in items], fact_of)
    with pytest.raises(DataError, match="f.json.*'reserve'.*not edited"):
        same.set_aside(stream, 2, "f.json")


def test_documents_lose_at_most_half_of_their_beginning():
    text = "One is here. Two is here. Three is here. Four is here. Five is here."
    assert shortened(text) == (
        "Two is here. Three is here. Four is here. Five is here.",
        "Three is here. Four is here. Five is here.",
    )
    assert shortened("Only one.") == ()


def test_reserved_edits_come_last_and_a_learned_editor_refuses_them():
    edits = [fact(number, f"S{number}") for number in range(10)]
    aside = {"e-1", "e-4", "e-7"}
    sample = choose(edits, 7, 0, conflicts="keep", reserved=aside)
    assert (
        not sample.reserved
        and {edit.identifier for edit in sample.edits} == {e.identifier for e in edits} - aside
    )
    refuse_reserved(sample, 10, 3, "mend", "toy")
    plain = [
        edit.identifier
        for edit in choose(edits, 10, 0, conflicts="keep").edits
        if edit.identifier not in aside
    ]
    assert [edit.identifier for edit in sample.edits] == plain  # the order of the others is that of the seed
    more = choose(edits, 9, 0, conflicts="keep", reserved=aside)
    assert set(more.reserved) < aside and len(more.reserved) == 2
    with pytest.raises(DataError, match="at most 7 edits"):
        refuse_reserved(more, 10, 3, "mend", "toy")


def test_a_damaged_list_of_reserved_edits_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"reserved": 3}')
    with pytest.raises(DataError, match="'reserved'"):
        read_reserved(tmp_path)
