"""Scores of what was said: numbers worked out by hand, the official F1's two surprises among them."""

from __future__ import annotations

import math

import pytest

from palimpsest.metrics.said import LARGEST_LOSS, accuracy, exact, perplexity, squad_f1, token_f1

END = 1


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ([5, 6, END], [5, 6, END], 1.0),
        ([7, END], [5, END], 0.5),  # wrong, but the end token is shared: 1 of 2 and 1 of 2
        ([5, 5, 6, END], [5, 5, 6, END], 0.75),  # right, but three ids in four tokens
        ([5, 6, END], [5, END], 0.8),  # precision 2/3, recall 1: 2 x (2/3) / (5/3)
        ([5], [5, 6, 7, END], 0.4),  # no end was said: precision 1, recall 1/4
        ([7, 8], [5, 6], 0.0),
        ([], [5, END], 0.0),
    ],
)
def test_official_token_f1(said, wanted, value):
    assert token_f1(said, wanted) == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("1,454 feet", "The 1454 feet!", 1.0),  # punctuation and article do not count
        ("in New York", "New York City", 2 / 3),  # 2 shared of 3 and 3
        ("york york", "York", 2 / 3),  # precision 1/2, recall 1
        ("Paris", "Rome", 0.0),
        ("the", "", 1.0),
        ("", "Rome", 0.0),
    ],
)
def test_squad_f1(said, wanted, value):
    assert squad_f1(said, wanted) == pytest.approx(value)


def test_exact_is_on_stripped_ids():
    assert exact([5, 6, END], [5, 6, END], END)
    assert exact([5, 6], [5, 6, END], END)  # the space for tokens was used up before the end token
    assert not exact([5, END, 6], [5, 6], END)
    assert not exact([6, 5, END], [5, 6, END], END)  # the released mean test calls these equal (Q6)
    assert not exact([5, 6, END], [5, 6])


def test_accuracy():
    assert accuracy([3], [3]) == 1.0 and accuracy([2], [3]) == 0.0
    with pytest.raises(ValueError, match="a class is one number"):
        accuracy([1, 2], [1])


def test_perplexity():
    assert perplexity(0.0) == 1.0 and perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(math.nan) is None
    assert perplexity(math.inf) == math.exp(LARGEST_LOSS)
