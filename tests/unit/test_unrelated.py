"""Made-up unrelated questions that learned editors leave alone: of the sort that tables ask, but none of theirs."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from palimpsest.data.learning import build_examples
from palimpsest.data.prepare import build_dataset
from palimpsest.data.unrelated import CHOICES, FRAMES, unrelated_questions
from palimpsest.data.world import Syllables, generate
from palimpsest.data.world_names import UNRELATED_QUESTIONS
from palimpsest.edits import Edit, Probe, read_edits
from palimpsest.learning.examples import read_examples

WORLD = {"counterfact": 96, "zsre": 96, "probes": 24, "text_lines": 10}
# Words in which any question is put.
ASKING = set("who when where what which how many is are was does the a of in there".split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world whose few unrelated questions are all asked by tables, as at the mini scale, and one that has enough."""
    made = tmp_path_factory.mktemp("worlds")
    generate({**WORLD, "unrelated": 16}, 1, made / "few")
    generate({**WORLD, "unrelated": 96}, 1, made / "many")
    return made


def words_of(texts) -> set[str]:
    return {word for text in texts for word in text.split()}


def test_wordings_of_tables_are_not_learned():
    """Neither whole nor by the words that tell one question from another."""
    made = words_of(text for text, _ in islice(unrelated_questions(UNRELATED_QUESTIONS, 0), 2_000))
    assert words_of(UNRELATED_QUESTIONS) & made <= ASKING
    assert len(made & {word for words in CHOICES.values() for word in words}) > 120


def test_examples_hold_questions_of_the_sort_that_tables_ask_and_none_of_theirs(folder, tmp_path):
    manifest = build_dataset({"reader": "zsre", "reserve": 40}, folder / "few", tmp_path)
    aside = set(manifest["reserved"])
    tables = [edit for edit in read_edits(tmp_path / "edits.jsonl") if edit.identifier not in aside]
    asked = {probe.prompt for edit in tables for probe in edit.locality}
    assert len(asked) == 16
    seen = []
    for example in read_examples(tmp_path / "learning.jsonl"):
        # The world's facts are asked in whole sentences, with a capital and a question mark.
        mine = [one for one in example.outside if one.prompt[0].islower() and "?" not in one.prompt]
        seen += [one.prompt for one in mine]
        assert len(mine) == 2 and not any(one.near for one in mine)
        assert sum(not one.near for one in example.outside) == 6
    assert len(set(seen)) == len(seen) >= 80
    assert words_of(seen) & words_of(asked) <= ASKING  # other wordings, and other things
    assert manifest["learning"]["made_up_far_of_each"] == 2


@pytest.mark.parametrize(("world", "reader"), [("many", "zsre"), ("few", "counterfact")])
def test_none_are_made_where_records_have_their_own_or_tables_ask_no_such_thing(
    folder, tmp_path, world, reader
):
    manifest = build_dataset({"reader": reader, "reserve": 40}, folder / world, tmp_path)
    found = read_examples(tmp_path / "learning.jsonl")
    asked = {one.prompt for example in found for one in example.outside if one.prompt[0].islower()}
    assert manifest["learning"]["made_up_far_of_each"] == 0
    assert bool(asked) == (world == "many")
    known = {probe.prompt for edit in read_edits(tmp_path / "edits.jsonl") for probe in edit.locality}
    assert asked <= known


def test_the_rest_of_an_example_is_as_it_is_without_them():
    """Near prompts, rephrasings and answers do not move, and far prompts only make room."""
    edits = [
        Edit(f"The town of S{n} is", "b", f"S{n}", f"e-{n}", "a", locality=(Probe("who is zorp", "Bo"),))
        for n in range(8)
    ]
    found, _ = build_examples(edits[4:], edits[:4])
    apart, _ = build_examples(edits[4:], [Edit("Another?", "b")])
    for one, other in zip(found, apart, strict=True):
        mine, its = one.pop("outside"), other.pop("outside")
        assert one == other and [row for row in mine if row["near"]] == [row for row in its if row["near"]]
        assert len([row for row in mine if row not in its]) == 2
        assert [row["prompt"] for row in its if row not in mine] == ["who is zorp"]


def test_same_seed_same_questions_about_nothing_that_is_taken():
    """The words that are taken are those that would have been drawn first."""
    first = [text for text, _ in islice(unrelated_questions([], 0), 19)]
    assert first == [text for text, _ in islice(unrelated_questions([], 0), 19)]
    assert first != [text for text, _ in islice(unrelated_questions([], 1), 19)]
    taken = Syllables(random.Random("0 words")).words(5)
    again = islice(unrelated_questions([f"About {text.upper()}!" for text in [*first, *taken]], 0), 19)
    known = words_of(FRAMES) | words_of(word for words in CHOICES.values() for word in words)
    made = [word for text in first for word in text.split() if word not in known]
    later = words_of(text for text, _ in again)
    assert len(set(made)) == len(made) == 19 and not set(made) & later
    assert not words_of(first) & later - words_of(FRAMES)
