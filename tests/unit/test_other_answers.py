"""New answers for examples: the draws of the form that looked at every answer for every record, without its quadratic cost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data import learning, other_answers
from palimpsest.data.learning import Amounts, build_examples
from palimpsest.data.other_answers import SHUFFLED, OtherAnswers
from palimpsest.edits import Edit

NAMES = ["Ada", "Ada Sorn", "Ben", "a", None, ""]
TEXTS = [
    "Velden",
    "Ada Works",
    "the Ada of Ada",
    "Ben Works",
    "Ben",
    "Ada",
    "works",
    "a",
    "banana",
    "Ada Sorn Works",
]


def as_it_was(said, subject, without, number, source):
    """The form until now: every answer for every record, and all of them drawn."""
    others = [text.replace(whose, subject) if whose and subject else text for text, whose in said]
    others = sorted(set(others) - set(without))
    return source.sample(others, len(others))[:number]


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(NAMES)), max_size=20),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from([*TEXTS, "Ben Sorn Works", "of"]), max_size=2),
    st.integers(1, 9),
    st.integers(0, 3),
)
@settings(max_examples=400, deadline=None)
def test_the_same_answers_from_the_same_seed(said, subject, without, number, seed):
    """And the source of random numbers stands where it stood, for what is drawn after."""
    first, second = random.Random(seed), random.Random(seed)
    wanted = as_it_was(said, subject, without, number, first)
    assert OtherAnswers(said).draw(subject, set(without), number, second) == wanted
    assert first.getstate() == second.getstate()


def test_many_answers_come_from_the_same_sorted_list(monkeypatch):
    """Above the bound fewer are drawn, each at most once, from what the old form drew from; up to it, the same."""
    said = [(f"answer {number % 1500}", None) for number in range(3000)]
    said += [(f"Person {number} Works", f"Person {number}") for number in range(50)]
    found = OtherAnswers(said).draw("Ada", {"answer 7"}, 8, random.Random(1))
    allowed = {f"answer {number}" for number in range(1500) if number != 7} | {"Ada Works"}
    assert len(set(found)) == 8 and set(found) <= allowed and len(allowed) > SHUFFLED
    everything = OtherAnswers(said).draw("Ada", {"answer 7"}, 9999, random.Random(1))
    assert sorted(everything) == sorted(allowed)
    monkeypatch.setattr(other_answers, "SHUFFLED", len(allowed))
    wanted = as_it_was(said, "Ada", {"answer 7"}, 8, random.Random(1))
    assert OtherAnswers(said).draw("Ada", {"answer 7"}, 8, random.Random(1)) == wanted


def facts(count, relations=3):
    """Records of few relations; one in nine answers names its subject."""
    made = []
    for number in range(count):
        subject, relation = f"Person {number}", number % relations
        answer = f"{subject} Works" if number % 9 == 0 else f"answer {number * 7 % count}"
        ways = tuple(f"{word} {relation} of {subject}" for word in ("Tell", "Say", "Give"))
        made.append(
            Edit(
                f"Relation {relation} of {subject} is", f"new {answer}", subject, f"e-{number}", answer, ways
            )
        )
    return made


@pytest.mark.parametrize("classes", [None, ["one", "two", "answer 7"]])
def test_whole_examples_are_the_same(monkeypatch, classes):
    """Probes drawn after the answers too; rephrasings as before they were cut at the number wanted."""
    records = facts(240)
    found = build_examples(records, [], 3, answers=classes)

    def alternatives(self, place, source):
        edit = self.own[place]
        answer = edit.truth or edit.target
        said = (
            self.said[self.groups[place]] if self.classes is None else [(one, None) for one in self.classes]
        )
        own = [edit.target] if edit.target != answer else []
        drawn = as_it_was(said, edit.subject, {answer, edit.target}, len(said), source)
        return [*own, *drawn][: self.amounts.alternatives]

    def rephrasings(self, edit):
        template = learning.template_of(edit.prompt, edit.subject)
        ways = [] if template is None else [w for w, n in self.ways[template].items() if n >= learning.SHARED]
        texts = [*edit.rephrasings, *(learning.fill(way, edit.subject or "") for way in sorted(ways))]
        free = [text for text in dict.fromkeys(texts) if text != edit.prompt and text not in self.blocked]
        return free[: self.amounts.rephrasings]

    monkeypatch.setattr(learning._Maker, "_alternatives", alternatives)
    monkeypatch.setattr(learning._Maker, "_rephrasings", rephrasings)
    assert build_examples(records, [], 3, answers=classes) == found


class Counted(str):
    """A text that counts how often it is compared or looked up."""

    looks = 0

    def __hash__(self):
        Counted.looks += 1
        return super().__hash__()

    def __eq__(self, other):
        Counted.looks += 1
        return super().__eq__(other)

    def __lt__(self, other):
        Counted.looks += 1
        return super().__lt__(other)


class CountedRandom(random.Random):
    """Random numbers, counted."""

    drawn = 0

    def getrandbits(self, count):
        CountedRandom.drawn += 1
        return super().getrandbits(count)


def test_the_work_grows_with_the_records_and_not_with_their_square(monkeypatch):
    """Counted, not timed: random numbers drawn, and answers looked at, for twice as many records of as many relations."""
    monkeypatch.setattr(learning.random, "Random", CountedRandom)
    counts = []
    for count in (2 * SHUFFLED, 4 * SHUFFLED):
        said = [(Counted(f"answer {number}"), f"Person {number}") for number in range(count)]
        Counted.looks = CountedRandom.drawn = 0
        answers = OtherAnswers(said)
        for number in range(count):
            answers.draw("Ada", {f"answer {number}"}, 8, CountedRandom(number))
        looks = Counted.looks
        CountedRandom.drawn = 0
        build_examples(facts(count, 1), [], amounts=Amounts(near=1, far=1))
        counts.append((looks, CountedRandom.drawn))
    for before, after in zip(*counts, strict=True):
        assert before > 0 and after < 3 * before  # 2 and a logarithm; the square would be 4
