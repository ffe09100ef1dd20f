"""What rows begin with alike is run once: the same vectors and keys as with nothing shared, and much less work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared import beginnings, lanes
from palimpsest.editors.shared.beginnings import take_apart
from palimpsest.editors.shared.keys import KeyWalk
from palimpsest.editors.shared.packing import Row, best_fit, pack_rows
from palimpsest.editors.shared.target_sequences import build_sequences
from palimpsest.editors.shared.target_vectors import Search, search_target_vectors
from palimpsest.models.partial import causal_mask, embed, row_positions, run_blocks
from palimpsest.models.tokens import TokenBatch

CONTEXTS = [
    "",
    "Therefore I say so and so it is that",
    "The mother of Velden lives in the city of",
    "Because",
]
SEARCH = Search(layer=1, steps=6, learning_rate=0.4, clamp=2.0, stop_loss=0.5)


def some_rows(draw_ids, lengths):
    width = max(lengths)
    mask = torch.tensor([[int(i < n) for i in range(width)] for n in lengths])
    return TokenBatch(torch.tensor(draw_ids)[:, :width] * mask, mask)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_rows_are_put_together_again(data):
    """Of any rows: beginning and rest are the row, a beginning ends before the limit, and rows of a group share it."""
    n_rows, groups = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=n_rows, max_size=n_rows))
    ids = [data.draw(st.lists(st.integers(1, 2), min_size=9, max_size=9)) for _ in range(n_rows)]
    group = torch.arange(n_rows) % min(groups, n_rows)
    limit = torch.tensor([data.draw(st.integers(0, n - 1)) for n in lengths])
    rows = some_rows(ids, lengths)
    apart = take_apart(rows, group, limit)
    assert (apart.offset <= limit).all() and (apart.offset == apart.tokens.lengths[apart.group]).all()
    for row, n in enumerate(lengths):
        beginning = apart.tokens.input_ids[apart.group[row], : int(apart.offset[row])]
        rest = apart.rest.input_ids[row, : int(apart.rest.lengths[row])]
        assert torch.cat([beginning, rest]).tolist() == rows.input_ids[row, :n].tolist()
    if apart.shared:
        left_out = int(rows.lengths.sum() - apart.rest.lengths.sum() - apart.tokens.lengths.sum())
        assert left_out * beginnings.WORTH >= int(rows.lengths.sum())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_states_are_those_of_whole_rows(family):
    """Through all blocks, in two stretches, at every token."""
    model = tiny_model(family, torch.float64)
    rows = build_sequences(model, some_edits(), CONTEXTS)
    tokens, last = rows.tokens, model.n_blocks - 1
    mask = causal_mask(tokens.attention_mask, model.dtype)
    with torch.no_grad():
        whole = run_blocks(model, embed(model, tokens), 0, last, mask, row_positions(tokens))
        apart = take_apart(tokens, rows.context, rows.subject)
        assert apart.shared >= 5, "these contexts are long enough to be shared"
        states = apart.embed(model)
        for first, end in ((0, 1), (2, last)):
            begun, kept = apart.run_beginnings(model, states.beginnings, first, end)
            states = beginnings.States(begun, apart.run_rest(model, states.rest, first, end, kept))
        expected = apart.split(whole)
    for group, n in enumerate(apart.tokens.lengths.tolist()):
        torch.testing.assert_close(states.beginnings[group, :n], expected.beginnings[group, :n])
    for row, n in enumerate(apart.rest.lengths.tolist()):
        torch.testing.assert_close(states.rest[row, :n], expected.rest[row, :n])


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_below_the_first_hook_beginnings_are_still_shared(family, monkeypatch):
    """Hooks on blocks 2 and 3 that read whole rows: the same keys and states as with nothing shared, of fewer tokens."""
    model, edits = tiny_model(family, torch.float64), some_edits()
    seen = []

    def whole(_module, arguments, output):
        real = model.padding[:, : output.shape[1], None].to(output)
        return (
            output
            + (arguments[0] * real).mean(dim=2, keepdim=True).sum(dim=1, keepdim=True)
            / real.sum(dim=1)[:, None]
        )

    handles = [model.mlp_out(layer).register_forward_hook(whole) for layer in (2, 3)]
    plain = beginnings.run_blocks
    monkeypatch.setattr(
        beginnings,
        "run_blocks",
        lambda m, states, *more: seen.append(states.shape[:2].numel()) or plain(m, states, *more),
    )

    def found():
        seen.clear()
        walk = KeyWalk(model, edits, [[""], CONTEXTS[1:]], 1, cut=False)
        keys = [*walk.keys_and_state(1)]
        shared = walk.apart.shared
        keys += walk.keys_and_state(3)
        walk.advance(3)
        source = lanes.run_once(model, build_sequences(model, edits, CONTEXTS), 2)
        return (
            [*keys, *walk.keys_and_state(3), source.at(torch.arange(4), source.rows.subject[:4])],
            shared,
            sum(seen),
        )

    ours, shared, few = found()
    monkeypatch.setattr(beginnings, "WORTH", 0)
    theirs, nothing, many = found()
    for handle in handles:
        handle.remove()
    assert shared and not nothing and few < many
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_vectors_and_keys_do_not_notice(family, monkeypatch):
    """Shared beginnings and lanes of any length against nothing shared, in float64."""
    model, edits = tiny_model(family, torch.float64), some_edits()

    def found():
        walk = KeyWalk(model, edits, [[""], CONTEXTS[1:]], 1, cut=True)
        first = walk.keys_and_state(3)
        walk.advance(2)
        return search_target_vectors(model, edits, CONTEXTS, SEARCH), (*first, *walk.keys_and_state(3)), walk

    shared, keys, walk = found()
    assert walk.apart.shared
    monkeypatch.setattr(beginnings, "WORTH", 0)
    whole, expected, walk = found()
    assert not walk.apart.shared
    assert torch.allclose(shared.z, whole.z, atol=1e-9) and (shared.z - shared.initial).norm() > 1
    for ours, theirs in zip(keys, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for slots in (1, 2.5):
        monkeypatch.setattr("palimpsest.editors.shared.packing.LENGTHS", (slots,))
        assert torch.allclose(search_target_vectors(model, edits, CONTEXTS, SEARCH).z, whole.z, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_hooks_that_read_whole_rows_are_given_whole_rows(dtype):
    """Live hook layers: the lower blocks see every token; above them is shared what the hooks left alike, in precise floats."""
    model, edits = tiny_model("gpt2", dtype), some_edits(6)
    settings = {
        "layers": [0, 1],
        "steps": 3,
        "learning_rate": 0.4,
        "lam": 5.0,
        "context_texts": [[""], ["So"]],
    }
    editor = make_editor("comeba_hk", model, settings, random_statistics(model, (0, 1)))
    assert not editor.edit(edits[:2]).failed
    editor.hooked.alpha.update(dict.fromkeys(editor.hooked.layers, 0.5))  # so that many tokens are swapped
    rows = build_sequences(model, edits, CONTEXTS)
    source = lanes.run_once(model, rows, 1)
    mask = causal_mask(rows.tokens.attention_mask, model.dtype)
    with torch.no_grad(), model.padding_of(rows.tokens.attention_mask):
        whole = run_blocks(model, embed(model, rows.tokens), 0, 1, mask, row_positions(rows.tokens))
    places = torch.arange(len(rows.subject)), rows.subject
    assert torch.equal(source.at(*places), whole[places])
    walks = []
    for share in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(beginnings, "WORTH", 8 if share else 0)
            for first in (0, 1):  # hooks on blocks 0 and 1, then only above the walk's first stretch
                walk = KeyWalk(model, edits, [[""], CONTEXTS[1:]], first, cut=False)
                assert not walk.apart.shared or not first
                walks.append([*walk.keys_and_state(2), walk])
                walk.advance(3)
                walks.append([*walk.keys_and_state(3), walk])
    for ours, theirs in zip(walks[:4], walks[4:], strict=True):
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1])
    plain = take_apart(rows.tokens, rows.context, rows.subject)
    assert (source.apart.offset <= plain.offset).all() and (source.apart.offset < plain.offset).any()
    if dtype == torch.bfloat16:
        assert not source.apart.shared
    for row in range(len(rows.subject)):  # what is shared is equal, token by token
        first = int(torch.nonzero(rows.context == rows.context[row])[0])
        n = int(source.apart.offset[row])
        torch.testing.assert_close(whole[row, :n], whole[first, :n])
    editor.remove()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_nothing_overlaps_in_a_lane(given_rows):
    """Every tail, own prefix and beginning has its slots; a beginning lies in a lane at most once."""
    rows, lengths = [Row(*row) for row in given_rows], [4, 0, 7]
    for slots in {max(row.tail for row in rows), 2 * max(row.tail for row in rows)}:
        packing = best_fit(rows, lengths, slots)
        taken, kept = set(), set()
        where = {(lane, group) for lane, group, _ in packing.beginnings}
        assert len(where) == len(packing.beginnings)
        for lane, group, first in packing.beginnings:
            mine = {(lane, first + i) for i in range(lengths[group])}
            assert not kept & mine
            kept |= mine
        for row, (lane, slot, first) in zip(rows, packing.rows, strict=True):
            mine, own = (
                {(lane, slot + i) for i in range(row.tail)},
                {(lane, first + i) for i in range(row.own)},
            )
            assert not taken & mine and not kept & own and slot + row.tail <= slots
            assert (lane, row.group) in where
            taken, kept = taken | mine, kept | own
        assert max(first for _, first in kept | {(0, -1)}) < max(packing.prefixes) or not kept


def test_lanes_are_as_long_as_is_cheapest():
    """Tails of four and one of six: lanes of eight hold no padding. With long beginnings of their own short lanes are cheaper."""
    model = tiny_model("gpt2")
    rows = [Row(6, 2, 0), Row(2, 2, 0), *[Row(4, 2, 0)] * 8]
    assert pack_rows(model, rows, [5]).size == sum(row.tail for row in rows)
    apart = [replace(row, group=i) for i, row in enumerate([rows[0], *rows[2:]])]
    assert pack_rows(model, apart, [5000] * len(apart)).slots == 6
