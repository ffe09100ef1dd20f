"""The generated world: schemas, disjoint probes, held-out phrasings, determinism, refusals."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from palimpsest.data.world import QUESTION_PREFIX, WorldSettings, build, generate
from palimpsest.errors import SettingsError

SMALL = {
    "counterfact": 40,
    "zsre": 30,
    "probes": 20,
    "unrelated": 12,
    "relations": 4,
    "answers": 5,
    "first_names": 8,
    "text_lines": 30,
}
CF_FIELDS = {
    "case_id",
    "prompt",
    "target_new",
    "subject",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
}
ZSRE_FIELDS = {"subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    generate(SMALL, 3, folder)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def sentences(folder):
    return [json.loads(line) for line in (folder / "facts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_records_have_the_upstream_schemas(source):
    counterfact, zsre = read(source, "counterfact.json"), read(source, "zsre.json")
    assert (len(counterfact), len(zsre)) == (40, 30)
    for record in counterfact:
        assert set(record) == CF_FIELDS
        assert record["subject"] in record["prompt"] and record["subject"] in record["rephrase_prompt"]
        assert record["target_new"] != record["ground_truth"]
        assert all(value == value.strip() for value in record.values() if isinstance(value, str))
        assert " " not in record["target_new"]
    for record in zsre:
        assert set(record) == ZSRE_FIELDS
        assert record["alt"] not in record["answers"] and record["loc"].startswith(QUESTION_PREFIX)
        assert record["loc"] == record["loc"].lower() and not record["loc"].endswith("?")
        assert 2 <= len(record["alt"].split()) <= 4


def test_locality_asks_never_edited_subjects_for_the_same_answer(source):
    counterfact = read(source, "counterfact.json")
    edited = {record["subject"] for record in counterfact} | {
        record["subject"] for record in read(source, "zsre.json")
    }
    assert not any(subject in record["locality_prompt"] for record in counterfact for subject in edited)
    same = [record["locality_ground_truth"] == record["ground_truth"] for record in counterfact]
    assert sum(same) / len(same) == 1.0


def test_held_out_phrasings_are_never_read(source):
    texts = [line["text"] for line in sentences(source)]
    for record in read(source, "counterfact.json"):
        assert f"{record['prompt']} {record['ground_truth']}" in texts
        assert not any(text.startswith(record["rephrase_prompt"]) for text in texts)
    for record in read(source, "zsre.json"):
        assert not any(text.startswith(record["rephrase"]) for text in texts)
    assert not any(line in (source / "text.txt").read_text(encoding="utf-8") for line in texts)


def test_spans_point_at_subject_and_answer(source):
    truths = {
        f"cf-{r['case_id']}": (r["subject"], r["ground_truth"]) for r in read(source, "counterfact.json")
    }
    seen = set()
    for line in sentences(source):
        start, end = line["answer"]
        assert line["text"][start - 1] == " " and end == len(line["text"])
        if line["fact"] in truths:
            subject, truth = truths[line["fact"]]
            assert line["text"][slice(*line["subject"])] == subject and line["text"][start:end] == truth
            seen.add(line["fact"])
    assert seen == set(truths)
    assert {line["kind"] for line in sentences(source)} == {"prompt", "rephrase", "locality", "unrelated"}


def test_the_default_world_is_as_large_as_the_experiments_need():
    world = build(WorldSettings(), 1)
    names = [name for kind in world.subjects.values() for name in kind]
    assert len(names) == len(set(names))
    assert all(len(facts) >= 700 for facts in world.facts.values()) and len(world.probes) >= 100
    assert len(world.answers) >= 20
    assert max(Counter(name.split()[1] for name in names).values()) <= 3
    assert max(Counter(name.split()[0] for name in names).values()) > 3
    answers = [answer for answers in world.answers.values() for answer in answers]
    assert len(answers) == len(set(answers))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(source, tmp_path):
    generate(SMALL, 3, tmp_path / "again")
    generate(SMALL, 4, tmp_path / "other")
    for name in ("counterfact.json", "zsre.json", "facts.jsonl", "text.txt", "corpus.txt", "manifest.json"):
        assert (source / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (source / "counterfact.json").read_bytes() != (
        tmp_path / "other" / "counterfact.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factz": 3}, "factz"),
        ({"counterfact": 0}, "counterfact"),
        ({"relations": 99}, "relations"),
        ({"zsre": "many"}, "zsre"),
        ({"relations": 4, "facts_per_subject": 3}, "facts_per_subject"),
    ],
)
def test_impossible_settings_are_named(settings, words, tmp_path):
    with pytest.raises(SettingsError, match=words):
        generate({**SMALL, **settings}, 1, tmp_path)
    assert not any(tmp_path.iterdir())
