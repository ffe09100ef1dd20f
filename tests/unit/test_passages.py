"""Passages that are to be continued otherwise: made of a text, and as records of a file."""

from __future__ import annotations

import json

import pytest

from palimpsest.data.prepare import build_dataset, load_edits
from palimpsest.errors import DataError
from palimpsest.learning.examples import read_examples

LINES = [" ".join(f"w{line}-{number}" for number in range(20 + 6 * line)) for line in range(6)]
SPEC = {"reader": "passages", "file": "text.txt"}


def test_a_text_gives_passages_with_another_ones_end(tmp_path):
    """Spec 3.6: ten words that another text goes on with; the front of a passage is cut, its end never."""
    (tmp_path / "text.txt").write_text("\n".join([*LINES, "too short to be cut"]) + "\n")
    edits, manifest = load_edits(SPEC, tmp_path)
    assert manifest["edits"] == 5 and manifest["schema"] == "continuations"  # 20 words are too few
    lines = LINES[1:]
    ends = [" ".join(line.split()[-10:]) for line in lines]
    for edit, line, end in zip(edits, lines, ends, strict=True):
        assert f"{edit.prompt} {edit.truth}" == " ".join(line.split()[-(len(edit.prompt.split()) + 10) :])
        assert edit.truth == end and edit.target in ends and edit.target != edit.truth
        words = edit.prompt.split()
        assert 14 <= len(words) <= 30 and len(edit.rephrasings) == 3
        for text in edit.rephrasings:
            assert edit.prompt.endswith(text) and len(words) / 2 - 1 <= len(text.split()) < len(words)
    assert load_edits(SPEC, tmp_path)[0] == edits
    made = build_dataset({**SPEC, "reserve": 2}, tmp_path, tmp_path / "out")
    learned = read_examples(tmp_path / "out" / "learning.jsonl")
    assert {one.identifier for one in learned} == set(made["reserved"])
    for one in learned:
        assert one.answer in ends and one.alternatives and all(not other.near for other in one.outside)


def test_records_of_a_file_are_taken_as_they_are(tmp_path):
    record = {"passage": "a b c d e f", "continuation": "g h", "new": "x y"}
    (tmp_path / "pairs.json").write_text(json.dumps([record]))
    (edit,), _ = load_edits({**SPEC, "file": "pairs.json"}, tmp_path)
    assert (edit.prompt, edit.truth, edit.target) == ("a b c d e f", "g h", "x y")
    assert edit.rephrasings == ("b c d e f", "c d e f", "d e f")
    (tmp_path / "text.txt").write_text("one short line\n")
    with pytest.raises(DataError, match="text.txt: 0 lines have at least 24 words.*longer passages"):
        load_edits(SPEC, tmp_path)
