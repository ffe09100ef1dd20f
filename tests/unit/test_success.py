"""Edit success and drawdown: every definition against another way to compute it, on models of every kind."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CITIES, LABELS, PEOPLE, tiny_model

from palimpsest.errors import DataError
from palimpsest.metrics import success
from palimpsest.metrics.answers import predict_answers
from palimpsest.metrics.asked import AskedPairs, PairAnswer
from palimpsest.models.batching import Batching
from palimpsest.models.objectives import encode, row_losses, say

PAIRS = [(f"{person} lives in the city of", city) for person in PEOPLE for city in CITIES]
CLASSES = [(f"The mother of {person} was here.", LABELS[n % 4]) for n, person in enumerate(PEOPLE)]
losses = st.floats(0.01, 8)


def said(right=True, unchanged=True, loss=1.0, tokens=1, drift=None):
    return PairAnswer(right, unchanged, loss, tokens, drift)


def shift(model, scale=2.0):
    torch.manual_seed(0)
    for name, parameter in model.network.named_parameters():
        if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
            parameter.data += scale * parameter.std() * torch.randn_like(parameter)


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_a_decoder_says_what_the_other_metrics_see(family):
    model = tiny_model(family)
    asked = AskedPairs(model, PAIRS, Batching(tokens=60))
    first = predict_answers(model, PAIRS)
    shift(model)
    now = predict_answers(model, PAIRS)
    for found, before, after in zip(asked.now(PAIRS), first, now, strict=True):
        assert found.right == (after.predicted == after.wanted)
        assert found.unchanged == (after.predicted == before.predicted)
        assert found.tokens == len(after.wanted)
    assert [one.right for one in asked.before(PAIRS)] == [a.predicted == a.wanted for a in first]
    assert not all(one.unchanged for one in asked.now(PAIRS))


@pytest.mark.parametrize(("family", "pairs"), [("t5", PAIRS), ("bert", CLASSES)])
def test_the_other_kinds_say_what_objectives_see(family, pairs):
    model = tiny_model(family)
    asked = AskedPairs(model, pairs, Batching(tokens=80), drift=True)
    shift(model)
    inputs = encode(model, *zip(*pairs, strict=True))
    torch.testing.assert_close(
        torch.tensor([one.loss for one in asked.now(pairs)]), row_losses(model, inputs).double().float()
    )
    if family == "bert":
        spoken = say(model, [prompt for prompt, _ in pairs])
        assert [one.right for one in asked.now(pairs)] == [
            a.text == label for a, (_, label) in zip(spoken, pairs, strict=True)
        ]


@pytest.mark.parametrize(("family", "pairs"), [("gpt2", PAIRS), ("t5", PAIRS), ("bert", CLASSES)])
def test_an_untouched_model_has_no_drawdown_and_drift_is_a_divergence(family, pairs):
    model = tiny_model(family)
    asked = AskedPairs(model, pairs, Batching(tokens=50), drift=True)
    assert success.drawdown(asked.now(pairs)) == 0
    assert success.accuracy_drop(asked.before(pairs), asked.now(pairs)) == 0
    assert success.drift(asked.now(pairs)) < 1e-6
    if family != "bert":
        return
    inputs = encode(model, *zip(*pairs, strict=True))
    before = model.network(**inputs.named).logits.log_softmax(dim=1)
    shift(model)
    now = model.network(**inputs.named).logits.log_softmax(dim=1)
    wanted = torch.nn.functional.kl_div(now, before, reduction="batchmean", log_target=True)
    assert success.drift(asked.now(pairs)) == pytest.approx(float(wanted), rel=1e-4)
    assert success.drift(asked.now(pairs)) > 1e-3


def test_parts_of_the_pairs_are_asked_alone_and_marks_of_the_editor_are_kept():
    from contextlib import contextmanager

    model = tiny_model("gpt2")
    asked = AskedPairs(model, [*PAIRS, PAIRS[0]], Batching(tokens=60))
    assert len(asked.pairs) == len(PAIRS)
    shift(model)
    whole = dict(zip(PAIRS, asked.now(PAIRS), strict=True))
    seen: list[int] = []

    @contextmanager
    def watching():
        handle = model.network.register_forward_hook(lambda *_: None)
        stack = model.stack.register_forward_hook(lambda _, __, out: seen.append(len(out.last_hidden_state)))
        yield lambda: torch.arange(seen[-1]) % 2 == 0
        handle.remove()
        stack.remove()

    some = [PAIRS[7], PAIRS[2], PAIRS[7]]
    found = asked.now(some, watching)
    for pair, one in zip(some, found, strict=True):
        assert one.right == whole[pair].right and one.loss == pytest.approx(whole[pair].loss, rel=1e-4)
    assert {one.acted for one in found} <= {True, False} and None not in {one.acted for one in found}
    assert asked.now([]) == []


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(DataError, match="'target'"):
        AskedPairs(tiny_model("bert"), [("A text.", "class 9")])
    with pytest.raises(DataError):
        AskedPairs(tiny_model("gpt2"), [("A text", " ")])


@given(losses, losses, losses)
def test_sentiment_success_is_the_papers_product(plus, minus, before):
    value = success.sentiment_success([said(loss=plus)], [said(loss=minus)], [said(loss=before)])
    odds = 1 / (1 + math.exp(-((-plus) - (-minus))))
    assert value == pytest.approx(odds * min(1, math.exp((-plus) - (-before))), rel=1e-9)
    assert 0 <= value <= 1


@given(st.lists(st.tuples(losses, st.integers(1, 9)), min_size=1, max_size=6))
def test_tokens_weigh_equally(rows):
    found = [said(loss=loss, tokens=tokens) for loss, tokens in rows]
    every = [loss for loss, tokens in rows for _ in range(tokens)]
    assert success.token_loss(found) == pytest.approx(sum(every) / len(every))


def test_doing_nothing_on_an_edit_that_changes_nothing_is_no_success():
    assert success.flip_success(said(right=True), [said(right=True)]) is None
    assert success.flip_success(said(right=False), [said(right=True), said(right=False)]) == 0.5


def test_two_drawdowns_differ_on_a_wrong_answer_that_changes():
    before, after = [said(right=False)], [said(right=False, unchanged=False)]
    assert (success.drawdown(after), success.accuracy_drop(before, after)) == (1.0, 0.0)
    assert success.accuracy_drop([said(right=True)], after) == 1.0
    assert success.drift([said()]) is None and success.drift([said(drift=0.25)]) == 0.25


@pytest.mark.parametrize(
    ("plus", "minus"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf), (math.inf, 1.0)]
)
def test_replies_without_a_number_are_a_failure(plus, minus):
    """One reply is enough: the mean over the tokens is no number then."""
    agreeing = [said(loss=0.5), said(loss=plus)]
    assert success.sentiment_success(agreeing, [said(loss=minus)], [said(loss=2.0)]) == 0.0


def test_a_drift_that_is_no_number_counts_as_the_largest():
    """A broken model's drift is neither 0 nor left out of the mean."""
    model = tiny_model("gpt2")
    asked = AskedPairs(model, PAIRS[:3], drift=True)
    model.mlp_out(1).weight.data.fill_(torch.nan)
    assert success.drift(asked.now(PAIRS[:3])) == success.LARGEST
    assert success.drift([said(drift=math.inf), said(drift=1.0)]) == (success.LARGEST + 1) / 2
