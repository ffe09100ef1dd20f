"""GRACE's codebook: the worked example, exact look-up, labels, splits, overwriting, deleting, and the released rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.editors.shared.codebook import Codebook, Forgotten, slack
from palimpsest.editors.shared.nearest import nearest, squared_norms
from palimpsest.errors import EditError, PalimpsestError

A, B, C, D = (1,), (2,), (3,), (4,)


def book(rules="corrected", split="half", width=1, **extra) -> Codebook:
    """Values of one number."""
    return Codebook(width, 1, rules=rules, split=split, **extra)


def teach(codebook: Codebook, q, label, radius=1.0, edit=None):
    """Make an edit at a point; its value is the sum of its label."""
    query = torch.tensor([float(q)]) if isinstance(q, int | float) else q
    value = torch.tensor([float(sum(label))])
    return codebook.update(query, label, radius, lambda: value, edit or f"{q}:{label}")


def label_at(codebook: Codebook, q: float):
    """The label that fires at a point, or None."""
    match = codebook.look_up(torch.tensor([[q]]))
    return codebook.taught[int(match.entry[0])].label if bool(match.fired[0]) else None


def worked_example(**extra) -> Codebook:
    """Edits 1 to 5 of the worked example, each action checked."""
    codebook = book(**extra)
    steps = [(0, A, "init"), (0.5, A, "hit"), (1.8, A, "expand"), (2.5, B, "split"), (9, C, "add")]
    for q, label, action in steps:
        assert teach(codebook, q, label).action == action
        if action == "hit":
            assert codebook.radii.tolist() == [1.0]
        if action == "expand":
            assert codebook.radii.tolist() == pytest.approx([1.8]) and len(codebook) == 1
    return codebook


def test_worked_example_split_in_half():
    codebook = worked_example()
    assert codebook.radii.tolist() == pytest.approx([1.25 - 1e-5, 1.25, 1.0], abs=1e-7)
    assert [label_at(codebook, q) for q in (1.2, 1.3, 7.9, 8.0)] == [A, B, None, C]


def test_worked_example_capped():
    """Q7: no radius grows on a split, and none starts above the initial one."""
    codebook = worked_example(split="capped")
    assert codebook.radii.tolist() == pytest.approx([1.25 - 1e-5, 1.0, 1.0], abs=1e-7)
    assert [label_at(codebook, q) for q in (1.2, 1.3, 8.0)] == [A, None, C]


def test_a_split_in_half_makes_small_balls_grow_and_a_capped_one_does_not():
    """Q7, at the radius where it was seen: .01."""
    for split, grown in (("half", True), ("capped", False)):
        codebook = book(split=split)
        teach(codebook, 0, A, radius=0.01)
        assert teach(codebook, 3.54, B, radius=4.0).action == "split"
        assert (float(codebook.radii[0]) > 1.7) is grown
        assert float(codebook.radii[1]) == pytest.approx(1.77)


def test_the_same_place_with_a_new_target():
    """Q5: corrected rules overwrite the entry; the released ones lose both edits."""
    codebook = worked_example()
    update = teach(codebook, 0, D)
    assert (update.action, update.entry) == ("overwrite", 0)
    assert label_at(codebook, 0.0) == D and len(codebook) == 3
    assert float(codebook.radii[0]) == pytest.approx(1.25 - 1e-5) and codebook.values[0] == 4
    with pytest.raises(PalimpsestError, match="replaced"):
        codebook.forget("0:(1,)")
    codebook = worked_example(rules="official")
    assert teach(codebook, 0, D).action == "split"
    assert [codebook.radii[i].item() for i in (0, 3)] == pytest.approx([-1e-5, 0.0], abs=1e-9)
    assert label_at(codebook, 0.0) is None


def test_labels_are_compared_token_by_token_not_by_their_mean():
    """Q6: permuted answers count as equal in the released code, equal ones behind longer prompts as different."""
    first, permuted = (20, 21, 1), (21, 20, 1)
    for rules, action in (("corrected", "overwrite"), ("official", "hit")):
        codebook = book(rules)
        teach(codebook, 0, first)
        assert teach(codebook, 0, permuted).action == action
    masked, longer = (-100, -100, 20, 21), (-100, -100, -100, 20, 21)
    codebook = book("official")
    teach(codebook, 0, masked)
    assert teach(codebook, 0.5, longer).action == "split"


def test_moving_average_moves_the_key_and_measures_to_the_old_one():
    codebook = book(expand="moving_average")
    teach(codebook, 0, A)
    teach(codebook, 1.5, A)
    assert codebook.keys.tolist() == [[0.75]] and codebook.radii.tolist() == [1.5]
    assert float(codebook._squared[0]) == pytest.approx(0.75**2)


def test_forty_keys_of_large_norm_find_themselves():
    """Worked example 9; by the released distances a key is .01 to .27 away from itself (Q4)."""
    torch.manual_seed(0)
    keys = torch.randn(40, 64)
    keys *= 300 / keys.norm(dim=1, keepdim=True)
    codebook, released = book(width=64), book("matrix_distance", width=64)
    for number, key in enumerate(keys):
        teach(codebook, key, (number,), radius=1e-3, edit=str(number))
        teach(released, key, (number,), radius=1e-3, edit=str(number))
    match = codebook.look_up(keys)
    assert match.fired.all() and match.entry.tolist() == list(range(40)) and match.distance.max() == 0
    assert not released.look_up(keys).fired.all()


def test_of_equally_near_keys_the_oldest_answers():
    codebook = book()
    for q, label in ((4, A), (0, B), (8, C)):
        teach(codebook, q, label)
    assert int(codebook.look_up(torch.tensor([[2.0]])).entry) == 0
    assert int(codebook.look_up(torch.tensor([[6.0]])).entry) == 0


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([1e-3, 1.0, 3e3]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_shortlist_never_loses_the_nearest_key(count, asked, width, offset, low):
    """Against every distance in float64, with a large common part, repeated keys, and products of few digits."""
    generator = torch.Generator().manual_seed(count * 1000 + asked * 100 + width)
    keys = torch.randn(count, width, generator=generator) + offset
    keys[count // 2] = keys[0]
    queries = torch.cat([torch.randn(asked, width, generator=generator) + offset, keys[-1:]])
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if low else "highest")
        index, distance = nearest(keys, squared_norms(keys), queries)
        alone = [nearest(keys, squared_norms(keys), query[None])[0].item() for query in queries]
    finally:
        torch.set_float32_matmul_precision(precision)
    every = (queries.double()[:, None] - keys.double()[None]).norm(dim=2)
    assert torch.equal(distance, every.min(dim=1).values)
    assert index.tolist() == [row.tolist().index(min(row.tolist())) for row in every] == alone


points = st.lists(
    st.tuples(st.floats(-8, 8, width=16), st.integers(0, 2), st.sampled_from([0.5, 1.0, 3.0])), max_size=12
)


@given(points, st.sampled_from(["capped", "half"]))
@settings(max_examples=200, deadline=None)
def test_what_holds_after_any_stream(stream, split):
    """Every edit fires at its own place right after it is made, with its own label; capped radii only shrink on splits;
    each action leaves the number of entries that it should.
    """
    codebook = book(split=split)
    for number, (q, label, radius) in enumerate(stream):
        before, radii = len(codebook), codebook.radii.tolist()
        update = teach(codebook, q, (label,), radius, edit=str(number))
        assert len(codebook) == before + (update.action in ("init", "add", "split"))
        match = codebook.look_up(torch.tensor([[q]]))
        assert bool(match.fired[0]) and codebook.taught[int(match.entry[0])].label == (label,)
        if split == "capped" and update.action != "expand":
            assert all(new <= old for old, new in zip(radii, codebook.radii.tolist(), strict=False))
    assert sum(codebook.actions.values()) == len(stream)


@given(points)
@settings(max_examples=100, deadline=None)
def test_revert_is_exact(stream):
    """A codebook after an update and its revert is the one before."""
    codebook = book(expand="moving_average")
    for number, (q, label, radius) in enumerate(stream):
        tensors, plain = codebook.tensors(), codebook.plain()
        codebook.revert(teach(codebook, q, (label,), radius, edit=str(number)))
        assert codebook.plain() == plain
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in codebook.tensors().items())
        teach(codebook, q, (label,), radius, edit=str(number))


def test_every_position_can_be_forgotten():
    """E2, C24: the entry goes, all others keep radius and value, whichever position it has."""
    for gone in range(6):
        codebook = book()
        for i in range(6):
            teach(codebook, 10 * i, (i,), edit=f"edit {i}")
        codebook.forget(f"edit {gone}")
        assert label_at(codebook, 10.0 * gone) is None
        for i in set(range(6)) - {gone}:
            assert label_at(codebook, 10.0 * i) == (i,)
        assert codebook.radii.tolist() == [1.0] * 5
        assert codebook.values[:, 0].tolist() == [i for i in range(6) if i != gone]
        teach(codebook, 99, (6,), edit="after")
        assert label_at(codebook, 99.0) == (6,)


def test_forgetting_an_edit_that_shares_its_entry():
    """The others keep theirs: the ball shrinks to what they need, and stays where it is even when its first edit goes."""
    for gone, key, radius in (("c", 0.0, 1.0), ("a", 0.0, 1.8), ("b", 0.0, 1.8)):
        codebook = book()
        for edit, q in (("a", 0), ("b", 0.5), ("c", 1.8)):
            teach(codebook, q, A, edit=edit)
        assert codebook.forget(gone) == Forgotten(deleted=0, kept=1)
        assert codebook.keys.tolist() == [[key]] and codebook.radii.tolist() == pytest.approx([radius])
        for edit, q in (("a", 0.0), ("b", 0.5), ("c", 1.8)):
            if edit != gone:
                assert label_at(codebook, q) == A
        if gone == "c":
            assert label_at(codebook, 1.8) is None


@given(points, st.data())
@settings(max_examples=100, deadline=None)
def test_forgetting_everything_in_any_order_leaves_nothing(stream, data):
    codebook = book()
    for number, (q, label, radius) in enumerate(stream):
        teach(codebook, q, (label,), radius, edit=str(number))
    held = [edit for taught in codebook.taught for edit in taught.edits]
    for edit in data.draw(st.permutations(held)):
        codebook.forget(edit)
    assert len(codebook) == 0


def test_it_goes_round_and_refuses_what_does_not_fit():
    """Q18: values alone are not a codebook; keys, radii and labels come back too."""
    first, second = worked_example(), book()
    second.load(first.tensors(), first.plain())
    assert second.plain() == first.plain()
    for q in torch.linspace(-3, 12, 61).tolist():
        assert label_at(first, q) == label_at(second, q)
    teach(second, 20, D)
    assert len(first) == 3 and len(second) == 4
    wide = Codebook(2, 1)
    with pytest.raises(PalimpsestError, match="keys of shape"):
        wide.load(first.tensors(), first.plain())
    missing = {name: tensor for name, tensor in first.tensors().items() if name != "radii"}
    with pytest.raises(PalimpsestError, match="radii of shape None"):
        second.load(missing, first.plain())
    assert len(second) == 4


def test_states_that_are_not_finite():
    """They make no entry, and no entry answers them."""
    codebook = worked_example()
    with pytest.raises(EditError, match="not finite"):
        teach(codebook, float("nan"), D)
    assert len(codebook) == 3
    match = codebook.look_up(torch.tensor([[float("nan")], [0.0]]))
    assert match.fired.tolist() == [False, True] and match.entry.tolist() == [-1, 0]


@pytest.mark.parametrize("rules", ["corrected", "official"])
@pytest.mark.parametrize("far", [float("inf"), float("-inf"), float("nan"), 1e30, 3e38])
def test_nothing_fires_at_an_infinite_distance(rules, far):
    """Nor where the square of a query's length overflows: what rounding may add is then no reason to fire."""
    codebook = book(rules=rules, width=2)
    for point, label in (([1.0, -1.0], A), ([20.0, 30.0], B)):
        teach(codebook, torch.tensor(point), label)
    for queries in ([[far, 0.0]], [[far, 1.0], [1.0, -1.0]], [[far, far], [1.0, -1.0], [far, -far]]):
        match = codebook.look_up(torch.tensor(queries))
        near = [query == [1.0, -1.0] for query in queries]
        assert match.fired.tolist() == near
        assert [at for at, own in zip(match.entry.tolist(), near, strict=True) if own] == [0] * sum(near)
        if rules == "corrected":
            assert ((match.entry >= 0) == match.distance.isfinite()).all()


def test_rounding_at_the_border_does_not_decide():
    """Q4: what fires alone fires in a batch, whose sums may be rounded otherwise."""
    codebook = book(width=2)
    teach(codebook, torch.tensor([100.0, 0.0]), A)
    teach(codebook, torch.tensor([101.7, 0.0]), A)
    assert bool(codebook.look_up(torch.tensor([[101.7 + 5e-5, 0.0]])).fired)
    assert not bool(codebook.look_up(torch.tensor([[101.701, 0.0]])).fired)
    assert slack(1.7, 101.7) < 2e-4


def test_values_are_drawn_only_when_an_entry_is_made():
    """Q20."""
    drawn = []
    codebook = book()
    for q, label in ((0, A), (0.5, A), (1.8, A), (2.5, B), (0, D)):
        codebook.update(
            torch.tensor([float(q)]), label, 1.0, lambda: drawn.append(1) or torch.zeros(1), f"{q}"
        )
    assert len(drawn) == 3


def test_radii_of_small_pieces_after_many_splits():
    """Conflicting edits at a crowded place: radii shrink, every edit still answers at its own place."""
    codebook = book(split="capped")
    places = [i / 64 for i in range(64)]
    for i, q in enumerate(places):
        teach(codebook, q, (i,), edit=str(i))
    assert [label_at(codebook, q) for q in places] == [(i,) for i in range(64)]
    assert codebook.radii.max() <= 1 / 64
