"""The generated worlds of the lifelong tasks: upstream forms, disjoint questions, the changed rule, determinism."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from palimpsest.data.lifelong_readers import ANNOTATIONS
from palimpsest.data.tables import read_table
from palimpsest.data.world import generate
from palimpsest.data.world_biographies import (
    KINDS,
    BiographySettings,
    build_biographies,
    generate_biographies,
)
from palimpsest.data.world_claims import generate_claims
from palimpsest.data.world_labels import TOPICS, generate_labels
from palimpsest.data.world_qa import NOUNS, QaSettings, build_qa, generate_qa, phrasings
from palimpsest.data.world_sentiment import generate_sentiment
from palimpsest.errors import SettingsError

QA = {"edit_facts": 12, "upstream_facts": 20, "relations": 3, "answers": 4, "first_names": 6}
LABELS = {"documents": 48, "upstream": 24, "tuning": 12, "stream": 48}
LIVES = {"people": 6, "cities": 6, "first_names": 6, "text_lines": 20}
WORLDS = [(generate_qa, QA), (generate_labels, LABELS), (generate_biographies, LIVES)]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("generate", "settings"), WORLDS, ids=["qa", "labels", "biographies"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(generate, settings, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        generate(settings, seed, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "manifest.json" in files
    for name in files:
        one = (tmp_path / "one" / name).read_bytes()
        assert one == (tmp_path / "two" / name).read_bytes()
        assert one != (tmp_path / "three" / name).read_bytes()


@pytest.mark.parametrize(
    ("generate", "settings"),
    [
        *WORLDS,
        (generate, {"counterfact": 24, "zsre": 24, "probes": 12, "text_lines": 10}),
        (generate_claims, {"subjects": 12, "learning": 18, "first_names": 6}),
        (generate_sentiment, {"entities": 8, "learning": 8, "valid": 4, "text_lines": 10}),
    ],
)
def test_a_world_that_was_broken_off_has_no_old_manifest(generate, settings, tmp_path, monkeypatch):
    module = sys.modules[generate.__module__]
    for name in ("write_text", "write_json"):
        monkeypatch.setattr(
            module, name, lambda *_: (_ for _ in ()).throw(OSError("the disk is full")), raising=False
        )
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OSError, match="full"):
        generate(settings, 1, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("generate", "settings", "named"),
    [
        (generate_qa, {"stale": 2}, "stale"),
        (generate_qa, {"edits": 2}, "edits"),
        (generate_labels, {"classes": 1}, "classes"),
        (generate_labels, {"classes": 3}, "classes"),
        (generate_labels, {"late": 1900}, "late"),
        (generate_biographies, {"people": True}, "people"),
        (generate_biographies, {"sentences": 99}, "sentences"),
    ],
)
def test_impossible_settings_are_named(generate, settings, named, tmp_path):
    with pytest.raises(SettingsError, match=rf"setting '?{named}'?"):
        generate(settings, 1, tmp_path)


def test_questions_have_many_phrasings_and_upstream_ones_are_disjoint(tmp_path):
    assert all(len(set(phrasings(relation))) >= 21 for relation in NOUNS)
    generate_qa(QA, 3, tmp_path)
    zsre, nq, pairs = (rows(tmp_path / name) for name in ("zsre.jsonl", "nq.jsonl", "pairs.jsonl"))
    assert len(zsre) == 12 and len(nq) == 20
    asked = {question for record in zsre for question in (record["input"], *record["filtered_rephrases"])}
    assert len(asked) == 12 * 21
    for record in zsre:
        assert len(set(record["filtered_rephrases"])) == 20
        title = record["output"][0]["provenance"][0]["title"]
        assert title in record["input"] and all(title in text for text in record["filtered_rephrases"])
        assert record["output"][0]["answer"] not in record["alternatives"]
    upstream = {record["question"] + "?" for record in nq}
    assert not asked & upstream and len(upstream) == 20
    read = {
        kind: [pair for pair in pairs if pair["kind"] == kind] for kind in ("upstream", "stale", "held_out")
    }
    assert upstream <= {pair["prompt"] for pair in read["upstream"]}
    # The model never reads a right answer to an edit question, nor a held-out phrasing.
    truth = {q: r["output"][0]["answer"] for r in zsre for q in (r["input"], *r["filtered_rephrases"])}
    assert all(truth.get(pair["prompt"]) != pair["answer"] for pair in read["stale"])
    assert not {p["prompt"] for p in read["held_out"]} & {p["prompt"] for p in read["upstream"]}


def test_a_thousand_edits_exist_with_default_sizes():
    edits, upstream = build_qa(QaSettings(), 1)
    assert len(edits) * 11 // 2 >= 1000 and len(upstream) == 300
    questions = {(fact.subject, fact.relation) for fact in edits}
    assert len(questions) == len(edits)
    assert not questions & {(fact.subject, fact.relation) for fact in upstream}
    # Edited subjects have upstream facts too: something near an edit to damage.
    assert {fact.subject for fact in edits} & {fact.subject for fact in upstream}


def topic_of(text, topics):
    words = Counter(topics[word] for word in text.replace(".", "").replace(",", "").split() if word in topics)
    return words.most_common(1)[0][0]


def test_the_rule_changes_for_half_of_the_topics(tmp_path):
    generate_labels({**LABELS, "stray": 0}, 3, tmp_path)
    topics = {word: number for number, (_, words) in enumerate(TOPICS) for word in words.split()}
    assert len(topics) == 12 * len(TOPICS), "no word in two topics"
    for name, number in (("upstream", 24), ("tuning", 12), ("stream", 48)):
        records = read_table(tmp_path / f"scotus_{name}.csv").records
        assert set(records[0]) == {"text", "label"} and len(records) == number
        for record in records:
            topic = topic_of(record["text"], topics)
            old = int(record["text"].split()[1]) < 1982
            assert old == (name == "upstream")
            assert int(record["label"]) == (topic if old else topic - topic % 2)
        counts = Counter(record["label"] for record in records)
        assert len(set(counts.values())) == 1 and len(counts) == (12 if name == "upstream" else 6)
    assert json.loads((tmp_path / "manifest.json").read_text())["labels"] == [name for name, _ in TOPICS]
    kinds = Counter(pair["kind"] for pair in rows(tmp_path / "pairs.jsonl"))
    assert kinds == {"upstream": 48, "held_out": 24}


def test_biographies_are_wrong_exactly_where_they_are_marked(tmp_path):
    people, records = build_biographies(BiographySettings(**LIVES), 3)
    assert len(set(people)) == len(records) == 6
    for name, record in zip(people, records, strict=True):
        true = record["wiki_bio_text"]
        assert len(record["gpt3_sentences"]) == len(record["annotation"]) == len(KINDS)
        assert true.startswith(name) and set(record["annotation"]) <= set(ANNOTATIONS)
        for sentence, value in zip(record["gpt3_sentences"], record["annotation"], strict=True):
            assert (sentence in true) == (value == "accurate")
    generate_biographies(LIVES, 3, tmp_path)
    facts = rows(tmp_path / "facts.jsonl")
    assert len(facts) == 6 * 3
    for fact in facts:
        text = fact["text"]
        assert text[slice(*fact["subject"])] in people
        assert (
            text[: fact["answer"][0]]
            == f"This is a Wikipedia passage about {text[slice(*fact['subject'])]}. "
        )
    assert len((tmp_path / "wiki_bio_concepts.txt").read_text().splitlines()) == 6
    assert len((tmp_path / "text.txt").read_text().splitlines()) == 20
