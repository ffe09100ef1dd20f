"""Fact checking: FEVER in two forms, evidence in VitaminC's, hard questions about ZsRE, and the generated stand-ins."""

from __future__ import annotations

import json

import pytest

from palimpsest.data.claims_source import build_claims_source
from palimpsest.data.prepare import build_dataset, load_edits
from palimpsest.data.qa_hard import ASKED
from palimpsest.data.world_claims import RELATIONS, ClaimSettings, build_claims, generate_claims
from palimpsest.data.world_qa import generate_qa
from palimpsest.edits import UNSETTLED, read_edits
from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.examples import read_examples

SMALL = {"subjects": 12, "learning": 18, "first_names": 6}
KILT = {
    "input": "Ada Sorn lives in Velden.",
    "prediction": "SUPPORTS",
    "alternatives": ["REFUTES"],
    "filtered_rephrases": ["Velden is where Ada Sorn lives.", "Ada Sorn lives in Velden."],
    "logit": 3.2,
    "output": [{"answer": "SUPPORTS", "provenance": [{"title": "Ada Sorn"}]}],
}
STATEMENT = {
    "id": 3,
    "edit_statement": "Ada moved.",
    "edit_scope": [["Ada moved.", "yes"], ["Ada has moved.", "yes"], ["Ada stayed.", "no"]],
    "edit_scope_true_ans": ["no"],
}
CLAIM = {
    "claim": "Ada Sorn is a sailor.",
    "evidence": "The paper of today says that Ada Sorn went to sea as a sailor.",
    "label": "SUPPORTS",
    "page": "Ada Sorn",
    "revision_type": "real",
}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_edit_flips_what_the_model_says(tmp_path):
    (edit,), manifest = load_edits({"reader": "fever", "file": lines(tmp_path / "a.jsonl", [KILT])})
    assert (edit.target, edit.truth, edit.subject) == ("REFUTES", "SUPPORTS", "Ada Sorn")
    assert edit.rephrasings == ("Velden is where Ada Sorn lives.",)  # not the claim itself
    assert manifest["schema"] == "fever-kilt"


def test_statements_become_true_and_what_contradicts_them_false(tmp_path):
    (edit,), _ = load_edits({"reader": "fever", "file": lines(tmp_path / "a.jsonl", [STATEMENT])})
    assert (edit.target, edit.rephrasings) == ("SUPPORTS", ("Ada has moved.",))
    assert [(p.prompt, p.answer, p.kind) for p in edit.portability] == [("Ada stayed.", "REFUTES", "implied")]


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({**KILT, "prediction": "MAYBE"}, "prediction"),
        ({**KILT, "alternatives": ["SUPPORTS"]}, "alternatives"),
        ({**KILT, "alternatives": []}, "alternatives"),
        ({**KILT, "filtered_rephrases": []}, "filtered_rephrases"),
        ({**STATEMENT, "edit_scope": [["Ada moved.", "maybe"]]}, "edit_scope[0]"),
        ({**STATEMENT, "edit_scope": [["Ada moved.", "no"]]}, "edit_scope"),
    ],
)
def test_bad_claims_are_named_and_may_be_skipped(tmp_path, record, field):
    good = KILT if "input" in record else STATEMENT
    file = lines(tmp_path / "a.jsonl", [good, record])
    with pytest.raises(DataError, match="number 1") as error:
        load_edits({"reader": "fever", "file": file})
    assert error.value.field == field
    edits, manifest = load_edits({"reader": "fever", "file": file, "bad_records": "skip"})
    assert len(edits) == 1 and manifest["skipped"][0]["field"] == field


def test_half_of_the_edits_may_keep_what_is_said(tmp_path):
    rows = [{**KILT, "input": f"{KILT['input']} {n}"} for n in range(200)]
    spec = {"reader": "fever", "file": lines(tmp_path / "a.jsonl", rows), "keep_answer": 0.5}
    edits, manifest = load_edits(spec)
    kept = [edit.identifier for edit in edits if edit.target == edit.truth]
    assert 70 < len(kept) < 130 and manifest["target_is_truth"] == kept
    assert load_edits(spec)[0] == edits


def test_an_edit_that_keeps_an_answer_keeps_what_contradicts_it_too(tmp_path):
    """EREN's form: the statement goes on being refuted, its contrary claim goes on being right. Learned is the change."""
    rows = [
        {
            "id": n,
            "edit_statement": f"Ada moved {n}.",
            "edit_scope": [[f"Ada has moved {n}.", "yes"], [f"Ada stayed {n}.", "no"]],
        }
        for n in range(60)
    ]
    spec = {"reader": "fever", "file": lines(tmp_path / "a.jsonl", rows), "keep_answer": 0.5, "reserve": 30}
    manifest = build_dataset(spec, None, tmp_path / "out")
    edits = read_edits(tmp_path / "out" / "edits.jsonl")
    kept = [edit.identifier for edit in edits if edit.target == "REFUTES"]
    assert 15 < len(kept) < 45 and manifest["target_is_truth"] == kept
    assert set(kept) & set(manifest["reserved"])
    for edit in edits:
        (contrary,) = edit.portability
        assert {edit.target, contrary.answer} == {"SUPPORTS", "REFUTES"}
    assert load_edits({name: value for name, value in spec.items() if name != "reserve"})[0] == edits
    examples = read_examples(tmp_path / "out" / "learning.jsonl")
    assert len(examples) == 30
    for example in examples:
        assert (example.answer, example.alternatives) == ("REFUTES", ("SUPPORTS",))
        assert [answer for _, answer in example.implied] == ["REFUTES"]
        for other in example.outside:
            assert other.answer == ("SUPPORTS" if "stayed" in other.prompt else "REFUTES")


def test_bad_claims_about_evidence_are_skipped_one_by_one(tmp_path, caplog):
    rows = [
        {**CLAIM, "page": None, "revision_type": "synthetic"},
        CLAIM,
        {**CLAIM, "claim": None},
        {**CLAIM, "label": "MAYBE"},
        {**CLAIM, "claim": "Ada Sorn is a baker.", "label": "REFUTES"},
        "no record",
    ]
    spec = {"reader": "evidence", "file": lines(tmp_path / "a.jsonl", rows)}
    with pytest.raises(DataError, match="number 2 .*'claim'.*2 more of 6 records are bad"):
        load_edits(spec)
    with caplog.at_level("WARNING"):
        (edit,), manifest = load_edits({**spec, "bad_records": "skip"})
    assert "3 of 6 claims were skipped as bad" in caplog.text
    assert len(edit.rephrasings) == len(edit.portability) == 1
    assert manifest["records_in_file"] == 6
    assert [(row["record"], row["field"]) for row in manifest["skipped"]] == [
        (2, "claim"),
        (3, "label"),
        (5, None),
    ]
    # A synthetic revision is dropped whatever it lacks.
    spec = {"reader": "evidence", "file": lines(tmp_path / "b.jsonl", rows[:2])}
    assert len(load_edits(spec)[0]) == 1


def test_claims_about_one_sentence_of_evidence_are_one_edit(tmp_path):
    rows = [
        CLAIM,
        {**CLAIM, "claim": "Ada Sorn is a baker.", "label": "REFUTES"},
        {**CLAIM, "claim": "Ada Sorn is tall.", "label": "NOT ENOUGH INFO"},
        {**CLAIM, "evidence": "Too short to be kept."},
        {**CLAIM, "revision_type": "synthetic"},
        {**CLAIM, "evidence": CLAIM["evidence"] + " Again.", "label": "NOT ENOUGH INFO"},
    ]
    (edit,), _ = load_edits({"reader": "evidence", "file": lines(tmp_path / "a.jsonl", rows)})
    assert (edit.prompt, edit.target, edit.subject) == (CLAIM["evidence"], "SUPPORTS", "Ada Sorn")
    assert edit.rephrasings == ("Ada Sorn is a sailor.",)
    assert [(p.prompt, p.answer) for p in edit.portability] == [("Ada Sorn is a baker.", "REFUTES")]
    assert [(p.prompt, p.kind) for p in edit.locality] == [("Ada Sorn is tall.", UNSETTLED)]
    with pytest.raises(DataError, match="'label'"):
        load_edits({"reader": "evidence", "file": lines(tmp_path / "b.jsonl", [{**CLAIM, "label": None}])})
    with pytest.raises(DataError, match="at least 11 words"):
        load_edits({"reader": "evidence", "file": lines(tmp_path / "c.jsonl", rows[3:])})


def test_the_world_of_claims_is_determined_by_its_seed_and_splits_subjects(tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        generate_claims(SMALL, seed, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "three" / path.name).read_bytes()
    facts = build_claims(ClaimSettings(**SMALL), 1)
    assert not {f.subject for f in facts["dev"]} & {f.subject for f in facts["train"]}
    assert all(fact.new not in (fact.value, *fact.wrong) for part in facts.values() for fact in part)
    with pytest.raises(SettingsError, match="'wrong'"):
        generate_claims({"values": 4, "wrong": 3}, 1, tmp_path / "bad")


def test_the_classifier_reads_what_edits_change_and_evidence_contradicts_it(tmp_path):
    generate_claims(SMALL, 1, tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    label = {pair["prompt"]: pair["answer"] for pair in pairs}
    assert len(label) == len(pairs)  # no claim is called both right and wrong
    shares = [sum(pair["answer"] == name for pair in pairs) / len(pairs) for name in ("SUPPORTS", "REFUTES")]
    assert min(shares) > 0.35
    claims, _ = load_edits({"reader": "fever", "file": "fever-dev-kilt.jsonl"}, tmp_path)
    assert {edit.truth for edit in claims} == {"SUPPORTS", "REFUTES"}
    for edit in claims:
        assert all(label[text] == edit.truth for text in (edit.prompt, *edit.rephrasings))
    evidence, _ = load_edits({"reader": "evidence", "file": "vitaminc_dev.jsonl"}, tmp_path)
    for edit in evidence:
        assert all(label[text] == "REFUTES" for text in edit.rephrasings)  # the new value
        old = [probe for probe in edit.portability if label.get(probe.prompt) == "SUPPORTS"]
        assert (
            len(old) == 2 and len(edit.portability) == 3
        )  # two about the value that was right, one about no such value
        assert all(edit.subject in probe.prompt for probe in edit.locality) and edit.locality
        assert edit.prompt not in label
    assert len({relation.answers for relation in RELATIONS}) >= 5


def test_learning_from_the_training_file(tmp_path):
    generate_claims(SMALL, 1, tmp_path / "world")
    spec = {"reader": "evidence", "file": "vitaminc_dev.jsonl", "learning": {"file": "vitaminc_train.jsonl"}}
    build_dataset(spec, tmp_path / "world", tmp_path / "out")
    edits, examples = (
        read_edits(tmp_path / "out" / "edits.jsonl"),
        read_examples(tmp_path / "out" / "learning.jsonl"),
    )
    assert not {edit.subject for edit in edits} & {example.subject for example in examples}
    for example in examples:
        assert (example.answer, example.alternatives) == ("REFUTES", ("SUPPORTS",))
        assert example.implied and all(answer == "REFUTES" for _, answer in example.implied)
        assert any(outside.near for outside in example.outside)


def test_a_classifier_is_prepared_that_holds_the_opposite_of_every_edit(tmp_path):
    file = lines(tmp_path / "a.jsonl", [STATEMENT, {**STATEMENT, "id": 4}])
    manifest = build_claims_source({"reader": "fever", "file": file, "held_out": 0}, tmp_path / "out")
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert {pair["prompt"]: pair["answer"] for pair in pairs} == {
        "Ada moved.": "REFUTES",
        "Ada has moved.": "REFUTES",
        "Ada stayed.": "SUPPORTS",
    }
    assert manifest["labels"] == ["SUPPORTS", "REFUTES"] and manifest["said_again"] == 3
    (edit,) = load_edits({"reader": "fever", "file": file, "deduplicate": True})[0]
    held = {pair["prompt"]: pair["answer"] for pair in pairs}
    for prompt, answer in [(edit.prompt, edit.target), *((p.prompt, p.answer) for p in edit.portability)]:
        assert held[prompt] != answer
    with pytest.raises(SettingsError, match="held_out"):
        build_claims_source({"reader": "fever", "file": file, "held_out": 1}, tmp_path / "out")
    for limit in ("10", -1, True):
        with pytest.raises(SettingsError, match="limit: expected a whole number above 0"):
            build_claims_source({"reader": "fever", "file": file, "limit": limit}, tmp_path / "out")
    with pytest.raises(SettingsError, match="share"):
        build_claims_source({"reader": "fever", "file": file, "share": 1}, tmp_path / "out")


def hard(folder, **more):
    companions = {"implied": "impl_dev.json", "true_false": "zsre_yn_dev.txt"}
    spec = {"reader": "zsre", "file": "zsre.jsonl", **companions, **more}
    return load_edits(spec, folder)[0]


def test_hard_questions_say_the_new_answer(tmp_path):
    generate_qa({"edit_facts": 30, "upstream_facts": 20, "relations": 4}, 1, tmp_path)
    edits = hard(tmp_path, schema="zsre-corrections")
    ways = set()
    for edit in edits:
        implied = [probe for probe in edit.portability if probe.kind == "implied"]
        assert len(implied) == 2
        assert all(edit.target in p.prompt and p.answer == edit.subject for p in implied)
        asked = {p.answer: p.prompt for p in edit.portability if p.kind == "true_false"}
        assert edit.target in asked["True"]
        assert ("False" in asked) == (edit.truth is not None)
        assert edit.truth is None or (edit.truth in asked["False"] and edit.target not in asked["False"])
        ways.add(next(way for way in (*ASKED, *map(str.lower, ASKED)) if asked["True"].startswith(way)))
    assert len(ways) >= 5 and len({probe.prompt for edit in edits for probe in edit.portability}) > 80


def test_hard_questions_of_the_released_form_replace_the_true_answer(tmp_path):
    record = {
        "input": "Where was Ada Sorn born?",
        "prediction": "Marrin",
        "alternatives": ["Ostrava", "Velden"],
        "filtered_rephrases": ["Ada Sorn was born where?"],
        "output": [{"answer": "Port Bay", "provenance": [{"title": "Ada Sorn"}]}],
    }
    lines(tmp_path / "zsre.jsonl", [record, {**record, "input": "Where is Ada Sorn from?"}])
    impl = [[["Who was born in Port Bay?", "Ada Sorn", "x"], ["Which town is by the sea?", "Marrin", "x"]]]
    (tmp_path / "impl_dev.json").write_text(json.dumps(impl))
    (tmp_path / "zsre_yn_dev.txt").write_text("ada sorn was born in port bay\n\n")
    first, second = hard(tmp_path)
    assert first.target == "Ostrava" and not second.portability
    asked = {(p.kind, p.answer): p.prompt for p in first.portability}
    assert asked[("implied", "Ada Sorn")] == "Who was born in Ostrava?" and len(asked) == 3
    assert asked[("true_false", "True")].endswith("ada sorn was born in Ostrava")
    assert asked[("true_false", "False")].endswith("ada sorn was born in Port Bay")
    (tmp_path / "impl_dev.json").write_text(json.dumps([[["only a question"]]]))
    with pytest.raises(DataError, match="expected \\[question, answer\\]"):
        hard(tmp_path)
    (tmp_path / "impl_dev.json").write_text(json.dumps([[], [], []]))
    with pytest.raises(DataError, match="3 entries for 2 records"):
        hard(tmp_path)


def test_an_answer_is_replaced_as_a_whole_word(tmp_path):
    record = {
        "input": "What is Ada Sorn?",
        "prediction": "male",
        "alternatives": ["unknown"],
        "filtered_rephrases": ["Ada Sorn is what?"],
        "output": [{"answer": "male"}],
    }
    lines(tmp_path / "zsre.jsonl", [record])
    impl = [[["Who is male and no female?", "Ada Sorn"], ["Which female is it?", "Ada Sorn"]]]
    (tmp_path / "impl_dev.json").write_text(json.dumps(impl))
    (tmp_path / "zsre_yn_dev.txt").write_text("Ada Sorn is a female\n")
    (edit,) = hard(tmp_path)
    assert [probe.prompt for probe in edit.portability] == ["Who is unknown and no female?"]


def spec_of_source(spec):
    return {name: spec[name] for name in ("reader", "file", "bad_records")}


@pytest.mark.real_data
def test_the_real_claims_and_questions(real_data, tmp_path):
    spec = {"reader": "fever", "file": str(real_data / "fever" / "fever_filtered.json.gz"), "reserve": 1000}
    with pytest.raises(DataError, match="number 808.*labelled no"):
        build_dataset(spec, None, tmp_path / "fever")
    spec |= {"deduplicate": True, "bad_records": "skip"}
    manifest = build_dataset(spec, None, tmp_path / "fever")
    assert (
        manifest["records_in_file"] == 2048
        and len(manifest["skipped"]) == 9
        and manifest["duplicate_prompts"] == 0
    )
    source = build_claims_source(spec_of_source(spec), tmp_path / "source")
    assert source["counts"]["upstream SUPPORTS"] > 4000 < source["counts"]["upstream REFUTES"]
    examples = read_examples(tmp_path / "fever" / "learning.jsonl")
    assert sum(bool(example.implied) for example in examples) > 300
    name = "zsre_mend_eval_portability_gpt4_dev.json"
    spec = {"reader": "zsre", "file": str(real_data / "zsre" / name), "reserve": 300}
    manifest = build_dataset(spec, None, tmp_path / "zsre")
    examples = read_examples(tmp_path / "zsre" / "learning.jsonl")
    tables = {
        edit.subject
        for edit in read_edits(tmp_path / "zsre" / "edits.jsonl")
        if edit.identifier not in manifest["reserved"]
    }
    assert len(examples) >= 290 and not tables & {example.subject for example in examples}
