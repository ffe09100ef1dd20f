"""Dialogue sentiment: the released form, the generated entities, and what their edits are judged by."""

from __future__ import annotations

import json

import pytest

from palimpsest.data.conversations import QUESTIONS, SENTIMENTS
from palimpsest.data.prepare import build_dataset, load_edits
from palimpsest.data.world_sentiment import generate_sentiment
from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.examples import Sampler, read_examples

SMALL = {"entities": 12, "learning": 20, "valid": 4, "first_names": 8, "text_lines": 20}
ENTITY = {"ent": "tea", "pos": ["I love it.", "So good."], "neg": ["I hate it."]}


def read(tmp_path, records):
    (tmp_path / "blender_test.json").write_text(json.dumps(records))
    return load_edits({"reader": "conversations", "file": "blender_test.json"}, tmp_path)[0]


def test_replies_of_the_edited_sentiment_are_wished_for(tmp_path):
    edits = read(tmp_path, [{**ENTITY, "ent": f"tea {number}"} for number in range(40)])
    assert {edit.target for edit in edits} == set(SENTIMENTS.values())
    for edit in edits:
        wished = "pos" if edit.target == SENTIMENTS["pos"] else "neg"
        found = {
            kind: [p.answer for p in edit.portability if p.kind == f"sentiment_{kind}"]
            for kind in ("with", "against")
        }
        assert found["with"] == ENTITY[wished] and edit.prompt == f"Topic: {edit.subject}"
        assert found["against"] == ENTITY["neg" if wished == "pos" else "pos"]
        assert all(edit.subject in probe.prompt for probe in edit.portability)
    assert (
        len({p.prompt.replace(e.subject, "{}") for e in edits for p in e.portability}) == len(QUESTIONS) == 13
    )


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({**ENTITY, "neg": []}, "neg"),
        ({**ENTITY, "pos": []}, "pos"),
        ({**ENTITY, "ent": " "}, "ent"),
        ({**ENTITY, "neg": ["I love it."]}, "neg"),
        ({"ent": "tea", "pos": ["Good."]}, "neg"),
    ],
)
def test_an_entity_without_both_sentiments_is_named(tmp_path, record, field):
    with pytest.raises(DataError) as error:
        read(tmp_path, [ENTITY, record])
    assert error.value.field == field and "number 1" in str(error.value)


def test_the_generated_entities(tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        generate_sentiment(SMALL, seed, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "three" / path.name).read_bytes()
    splits = [
        json.loads((tmp_path / "one" / f"blender_{s}.json").read_text()) for s in ("train", "val", "test")
    ]
    names = [entity["ent"] for split in splits for entity in split]
    assert len(names) == len(set(names)) == 36 and "held" not in splits[0][0]
    said = {entity["ent"]: entity for split in splits for entity in split}
    read_of: dict[str, set[str]] = {}
    for line in (tmp_path / "one" / "facts.jsonl").read_text().splitlines():
        fact = json.loads(line)
        entity = fact["text"][slice(*fact["subject"])]
        reply = fact["text"][slice(*fact["answer"])]
        signs = [sign for sign in SENTIMENTS if reply == SENTIMENTS[sign] or reply in said[entity][sign]]
        assert len(signs) == 1
        read_of.setdefault(entity, set()).add(signs[0])
    assert set(read_of) == set(names)
    assert all(len(signs) == 1 for signs in read_of.values())  # one opinion of each entity
    with pytest.raises(SettingsError, match="'replies'"):
        generate_sentiment({"replies": 99}, 1, tmp_path / "bad")


def test_an_entity_teaches_both_sentiments(tmp_path):
    generate_sentiment(SMALL, 1, tmp_path / "world")
    spec = {
        "reader": "conversations",
        "file": "blender_test.json",
        "learning": {"file": "blender_train.json"},
    }
    build_dataset(spec, tmp_path / "world", tmp_path / "out")
    path = tmp_path / "out" / "learning.jsonl"
    examples = read_examples(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(examples) == 40
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["prompt"] == other["prompt"] and one["alternatives"] == [other["answer"]]
        assert one["implied"] == other["opposed"] and one["opposed"] == other["implied"]
    draw = Sampler(examples, 0, hard_share=1.0).draw(4)[0]
    assert draw.outside.near and draw.edit.target in SENTIMENTS.values()
