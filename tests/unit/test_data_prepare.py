"""Data sets and pre-training sources made from upstream files."""

from __future__ import annotations

import json

import pytest

from palimpsest.data.prepare import build_dataset, build_source, load_edits
from palimpsest.data.relations import SLOT, Templates, cluster, fill, majority_share, template_of
from palimpsest.edits import read_edits
from palimpsest.errors import DataError, SettingsError

TONGUES = ["Rennish", "Oltic", "Varic"]
TRADES = ["cooper", "tanner"]
TONGUE = ["{} speaks", "The mother tongue of {} is", "{} is a speaker of", "{} writes in"]
TRADE = ["{} works as a", "The trade of {} is", "{} earns bread as a", "{}, by trade a"]


def flat_record(number: int) -> dict:
    """A record of an invented CounterFact: two relations, four templates each."""
    forms, answers = (TONGUE, TONGUES) if number % 2 else (TRADE, TRADES)
    subject, truth = f"Ada Tolvek{number:03d}", answers[number // 2 % len(answers)]
    other = forms[(number // 2 + 1) % 4]
    generated = f"An aside. {other.format(subject)}" if number % 3 else f"{subject} once said"
    return {
        "case_id": number,
        "prompt": forms[number // 2 % 4].format(subject),
        "target_new": answers[(number // 2 + 1) % len(answers)],
        "subject": subject,
        "ground_truth": truth,
        "rephrase_prompt": generated,
        "locality_prompt": other.format(f"Bo Lind{number:03d}"),
        "locality_ground_truth": truth,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one file of each data set and a text."""
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    (tmp_path / "cf.json").write_text(json.dumps([flat_record(number) for number in range(60)]))
    (tmp_path / "text.txt").write_text(
        "".join(f"Passage {number} of a plain text.\n" for number in range(30))
    )
    questions = []
    for number in range(40):
        subject, truth = f"Ada Tolvek{number:03d}", TONGUES[number % 3]
        forms = ["What does {} speak?", "Which tongue is that of {}?", "In what tongue does {} write?"]
        questions.append(
            {
                "subject": subject,
                "src": forms[number % 3].format(subject),
                "pred": truth,
                "rephrase": forms[(number + 1) % 3].format(subject),
                "alt": TONGUES[(number + 1) % 3],
                "answers": [truth],
                "loc": f"nq question: who wrote book {number % 7}",
                "loc_ans": f"Author {number % 7}",
                "cond": "",
            }
        )
    (tmp_path / "zsre.json").write_text(json.dumps(questions))
    return tmp_path


def spec(reader: str, **more) -> dict:
    """A small real-source specification."""
    name = {"counterfact": "cf.json", "zsre": "zsre.json"}[reader]
    text = {"files": ["text.txt"], "shortest": 5}
    return {"reader": reader, "file": name, "size": 20, "closed_answers": 5, "text": text, **more}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_dataset_is_written_with_its_manifest(folder, tmp_path):
    out = tmp_path / "out"
    manifest = build_dataset({"reader": "counterfact", "file": "cf.json", "limit": 10}, None, out)
    edits = read_edits(out / "edits.jsonl")
    assert len(edits) == manifest["edits"] == 10 and manifest["records_in_file"] == 60
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    again = build_dataset({"reader": "counterfact", "file": "cf.json", "limit": 10}, None, tmp_path / "again")
    assert again == manifest  # no times, no paths
    assert len(manifest["fingerprint"]) == 64


def test_filter_comes_before_the_cut(folder, tmp_path):
    records = [flat_record(number) for number in range(10)]
    for number in (0, 2, 4):
        records[number]["subject"] = "Nobody"
    (folder / "bad.json").write_text(json.dumps(records))
    edits, manifest = load_edits(
        {"reader": "counterfact", "file": "bad.json", "limit": 5, "bad_records": "skip"}, None
    )
    assert [edit.identifier for edit in edits] == ["cf-1", "cf-3", "cf-5", "cf-6", "cf-7"]
    assert [skipped["record"] for skipped in manifest["skipped"]] == [0, 2, 4]
    assert manifest["valid"] == 7 and all("Nobody" in skipped["reason"] for skipped in manifest["skipped"])


def test_conflicts_duplicates_and_edited_locality(folder):
    one, two, three = flat_record(0), flat_record(1), flat_record(2)
    conflict = {**one, "case_id": 9, "target_new": "tailor"}
    three["locality_prompt"] = two["prompt"]
    (folder / "odd.json").write_text(json.dumps([one, two, three, conflict]))
    what = {"reader": "counterfact", "file": "odd.json"}
    edits, manifest = load_edits(what)
    assert manifest["conflicts"] == [
        {"prompt": one["prompt"], "targets": [one["target_new"], "tailor"], "edits": ["cf-0", "cf-9"]}
    ]
    assert (manifest["duplicate_prompts"], len(edits)) == (1, 4)
    assert manifest["edited_locality"] == {"edits": ["cf-2"], "dropped": False}
    edits, manifest = load_edits({**what, "deduplicate": True, "drop_edited_locality": True})
    assert [edit.identifier for edit in edits] == ["cf-0", "cf-1", "cf-2"]
    assert manifest["removed_as_duplicates"] == 1 and manifest["conflicts"] == []
    assert [len(edit.locality) for edit in edits] == [1, 1, 0]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"limit": 0}, "limit"),
        ({"limt": 3}, "limt"),
        ({"deduplicate": 1}, "deduplicate"),
        ({"reader": "x"}, "reader"),
    ],
)
def test_bad_settings_are_named(folder, change, name):
    with pytest.raises(SettingsError, match=name):
        load_edits({"reader": "counterfact", "file": "cf.json", **change})


def test_bad_file_leaves_no_result(folder, tmp_path):
    (folder / "cut.json").write_text(json.dumps([flat_record(0)])[:-9])
    with pytest.raises(DataError, match=r"cut\.json"):
        build_dataset({"reader": "counterfact", "file": "cut.json"}, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_templates():
    assert template_of("Ada, yes Ada, speaks", "Ada") == f"Ada, yes {SLOT}, speaks"  # the last occurrence
    assert template_of("Bo speaks", "Ada") is None
    assert fill(f"{{}} of {SLOT}", "A{{}}") == "{} of A{{}}"  # braces are text
    found = Templates([f"{SLOT} speaks", f"{SLOT} often speaks"]).match("Bo often speaks")
    assert found == (f"{SLOT} often speaks", "Bo")
    assert Templates([f"{SLOT} speaks"]).match(" speaks") is None
    names = cluster([("a\0", "b\0"), ("a\0", "b\0"), ("b\0", "c\0")], ["a\0", "b\0", "b\0", "c\0"], least=2)
    assert names["a\0"] == names["b\0"] == "b_" and names["c\0"] == "c_"


def test_majority_share():
    pairs = [("t", "a"), ("t", "a"), ("t", "b"), ("u", "c")]
    assert majority_share(pairs) == 0.75
    assert majority_share(pairs, without_self=True) == 0.0  # ties count as wrong
    assert majority_share([("t", "a")] * 3, without_self=True) == 1.0
    assert majority_share([]) == 0.0


@pytest.mark.parametrize("reader", ["counterfact", "zsre"])
def test_source_from_a_real_split(folder, tmp_path, reader):
    out = tmp_path / "source"
    manifest = build_source(spec(reader), out)
    facts, held_out = lines(out / "facts.jsonl"), lines(out / "held_out.jsonl")
    assert manifest["records"] == 20 and json.loads((out / "manifest.json").read_text()) == manifest
    for line in facts + held_out:
        start, end = line["answer"]
        assert line["dataset"] == reader and end == len(line["text"]) and line["text"][start - 1] == " "
        if line["subject"]:
            begin, stop = line["subject"]
            assert line["text"][begin:stop].startswith(("Ada Tolvek", "Bo Lind")) and stop <= start
    build_dataset({"reader": reader}, out, tmp_path / "dataset")
    edits = {edit.identifier: edit for edit in read_edits(tmp_path / "dataset" / "edits.jsonl")}
    assert len(edits) == 20
    shown = {line["text"]: line for line in facts}
    for edit in edits.values():
        assert shown[f"{edit.prompt} {edit.truth}"]["kind"] == "prompt"
        assert shown[f"{edit.prompt} {edit.truth}"]["fact"] == edit.identifier
        assert edit.relation
        for probe in edit.locality:
            kind = "locality" if reader == "counterfact" else "unrelated"
            assert shown[f"{probe.prompt} {probe.answer}"]["kind"] == kind
    hidden = [line for line in held_out if line["kind"] == "rephrase"]
    assert len(hidden) == 8 and not {line["text"] for line in held_out} & set(shown)
    assert manifest["held_out_rephrasings"] == list(dict.fromkeys(line["fact"] for line in hidden))
    answers: dict[str, str] = {}
    for line in facts:
        prompt, answer = line["text"][: line["answer"][0]], line["text"][line["answer"][0] :]
        assert answers.setdefault(prompt, answer) == answer  # one truth per prompt
    assert (out / "text.txt").read_text().count("\n") == 30
    corpus = (out / "corpus.txt").read_text().splitlines()
    assert len(corpus) == len(facts) + 27 and not {line["text"] + "." for line in held_out} & set(corpus)


def test_counterfact_source_has_further_templates_and_kinds(folder, tmp_path):
    manifest = build_source(spec("counterfact"), tmp_path / "source")
    facts = lines(tmp_path / "source" / "facts.jsonl")
    held_out = lines(tmp_path / "source" / "held_out.jsonl")
    for line in facts + held_out:
        if line["kind"] == "template":  # never a trade in a template of tongues
            prompt = line["text"][: line["answer"][0] - 1]
            forms = TONGUE if line["text"][line["answer"][0] :] in TONGUES else TRADE
            begin, stop = line["subject"]
            assert prompt[:begin] + "{}" + prompt[stop:] in forms
    per_fact = [
        sum(line["fact"] == f"cf-{number}" and line["kind"] == "template" for line in facts)
        for number in range(20)
    ]
    assert max(per_fact) == 2
    kinds = manifest["rephrasing_kinds"]
    assert set(kinds) == {"template", "generated"} and not set(kinds["template"]) & set(kinds["generated"])
    assert len(manifest["relations"]) == 2
    assert 0 < manifest["majority_baseline"] <= 1


def test_source_choice(folder, tmp_path):
    records = [flat_record(number) for number in range(20)]
    records[3]["locality_prompt"] = records[1]["prompt"]  # asks about an edited subject
    records[5]["ground_truth"] = records[5]["target_new"] = "Rennish"  # changes nothing
    records[7]["target_new"] = "Klang"  # never a true answer
    records[9] = {
        **records[9],
        "subject": records[1]["subject"],
        "prompt": records[1]["prompt"],
    }  # contradicts
    (folder / "odd.json").write_text(json.dumps(records))
    manifest = build_source(spec("counterfact", file="odd.json", size=None), tmp_path / "source")
    chosen = {
        record["case_id"] for record in json.loads((tmp_path / "source" / "counterfact.json").read_text())
    }
    assert chosen == set(range(20)) - {3, 5, 7, 9}
    assert manifest["refused"]["locality subject is edited"] == 1
    assert manifest["refused"]["new answer equals true answer"] == 1
    assert manifest["closed"] == 19
    with pytest.raises(DataError, match=r"100 records are wanted.*closed_answers"):
        build_source(spec("counterfact", size=100), tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_source_is_reproducible_and_the_seed_matters(folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_source(spec("counterfact", seed=seed), tmp_path / name)
    first, second, third = ((tmp_path / name / "held_out.jsonl").read_bytes() for name in "abc")
    assert first == second != third


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"size": 0}, "size"),
        ({"closed_answers": "many"}, "closed_answers"),
        ({"held_out_rephrasings": 2}, "held_out_rephrasings"),
        ({"sise": 4}, "sise"),
        ({"reader": "x"}, "reader"),
    ],
)
def test_bad_source_settings_are_named(folder, tmp_path, change, name):
    with pytest.raises(SettingsError, match=name):
        build_source({**spec("counterfact"), **change}, tmp_path / "out")
