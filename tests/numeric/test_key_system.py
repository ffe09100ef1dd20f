"""Solves on kept factors, held to `torch.linalg.solve` of the whole matrix in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared import key_system
from palimpsest.editors.shared.factors import FactoredCovariance, factored
from palimpsest.editors.shared.key_system import KeySystem, Past
from palimpsest.errors import DivergedEdit

F64 = torch.float64


def spread(width: int, generator: torch.Generator, decades: float) -> torch.Tensor:
    """A covariance whose eigenvalues fall over so many powers of ten, in random directions."""
    directions, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=F64))
    values = 10.0 ** torch.linspace(0, -decades, width, dtype=F64)
    return (directions * values) @ directions.T


def batches(count: int, size: int, width: int, generator: torch.Generator, strength: float = 1.0):
    """Keys and residuals of some batches; d = 5."""
    for _ in range(count):
        keys = strength * torch.randn(size, width, generator=generator, dtype=F64)
        yield keys, torch.randn(size, 5, generator=generator, dtype=F64)


def plain(covariance, lam, weight, past, keys, residuals):
    """The update by LU of the whole matrix, as the released code has it."""
    whole = lam * covariance.to(F64) + weight * past.T @ past + keys.T @ keys
    return torch.linalg.solve(whole, keys.T @ residuals).T


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(2, 40),
    size=st.integers(1, 12),
    count=st.integers(1, 6),
    decades=st.floats(0, 5),
    lam=st.floats(0.1, 1e4),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, F64]),
)
@settings(max_examples=60, deadline=None)
def test_every_batch_is_the_plain_solution(seed, width, size, count, decades, lam, weighted, dtype):
    """Whatever the shapes, and however often keys are folded in on the way."""
    generator = torch.Generator().manual_seed(seed)
    covariance = (spread(width, generator, decades) + 1e-6 * torch.eye(width, dtype=F64)).to(dtype)
    weight = lam if weighted else 1.0
    system, past, seen = KeySystem(FactoredCovariance(covariance), lam, weight), Past(), []
    for keys, residuals in batches(count, size, width, generator):
        earlier = torch.cat(seen) if seen else torch.zeros(0, width, dtype=F64)
        update, past = system.solve(keys, residuals, past)
        assert worst(update, plain(covariance, lam, weight, earlier, keys, residuals)) < 1e-6
        seen.append(keys)
    whole = torch.cat(seen)
    assert torch.allclose(past.all(), whole.T @ whole, rtol=1e-10, atol=1e-10)


def test_a_hundred_batches_do_not_drift():
    """Condition 1e6, width 96: 5e-9 after 100 batches (5e-10 to 1e-9 seen), with several new factors on the way."""
    generator = torch.Generator().manual_seed(0)
    covariance = spread(96, generator, 6)
    system, past, seen = KeySystem(FactoredCovariance(covariance), 2.0), Past(), torch.zeros(0, 96, dtype=F64)
    for keys, residuals in batches(100, 3, 96, generator):
        update, past = system.solve(keys, residuals, past)
        assert worst(update, plain(covariance, 2.0, 1.0, seen, keys, residuals)) < 5e-9
        seen = torch.cat([seen, keys])
    assert system.fallbacks == 0


def test_strong_keys_in_directions_that_are_hardly_known():
    """Where the whole matrix can no longer be factored in float64, the kept factor still solves it, to the guard."""
    generator = torch.Generator().manual_seed(1)
    covariance = FactoredCovariance(spread(30, generator, 12))
    ((keys, residuals),) = batches(1, 4, 30, generator, strength=1e3)
    with pytest.raises(DivergedEdit, match="not positive definite"):
        KeySystem(covariance, 1.0, solver="cholesky").solve(keys, residuals)
    system = KeySystem(covariance, 1.0)
    update, _ = system.solve(keys, residuals)
    assert system.fallbacks == 0
    # what was asked for: the new keys give their residuals, up to what C_0 holds against it
    assert worst(update @ keys.T, residuals.T) < 1e-4


def test_the_guard_is_needed_and_sees_a_wrong_solution(monkeypatch, caplog):
    """A factor of another matrix (as a forgotten renewal would leave it) is noticed, and solved the plain way."""
    generator = torch.Generator().manual_seed(2)
    covariance = FactoredCovariance(spread(20, generator, 2))
    covariance._factor = torch.eye(20, dtype=F64)
    ((keys, residuals),) = batches(1, 2, 20, generator)
    right = plain(covariance.matrix, 1.0, 1.0, torch.zeros(0, 20, dtype=F64), keys, residuals)
    system = KeySystem(covariance, 1.0)
    with caplog.at_level("INFO"):
        assert worst(system.solve(keys, residuals)[0], right) < 1e-10
    assert system.fallbacks == 1 and "solved anew" in caplog.text
    monkeypatch.setattr(key_system, "RESIDUAL", float("inf"))
    assert worst(KeySystem(covariance, 1.0).solve(keys, residuals)[0], right) > 1e-3


@pytest.mark.parametrize("solver", key_system.SOLVERS)
def test_an_indefinite_or_singular_covariance_is_named(solver):
    """Which layer, what is wrong with it, what to do; many independent keys can still make it solvable."""
    indefinite = torch.diag(torch.tensor([2.0, 1.0, -1.0, 3.0]))
    system = KeySystem(FactoredCovariance(indefinite, "the covariance of layer 7"), 1.0, solver=solver)
    keys, residuals = torch.ones(1, 4, dtype=F64) / 10, torch.ones(1, 2, dtype=F64)
    with pytest.raises(DivergedEdit, match=r"layer 7 is not positive definite.*3 x 3.*Use more tokens"):
        system.solve(keys, residuals)
    with pytest.raises(DivergedEdit, match="layer 7 is not positive definite"):
        system.covariance.solve(keys.T)
    strong = 10 * torch.eye(4, dtype=F64)
    update, _ = system.solve(strong, torch.ones(4, 2, dtype=F64))
    whole = indefinite.to(F64) + strong.T @ strong
    assert torch.allclose(update @ whole, torch.ones(2, 4, dtype=F64) @ strong)
    with pytest.raises(DivergedEdit, match="not finite"):
        system.solve(keys * float("nan"), residuals)


@given(seed=st.integers(0, 1000), stop=st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_going_on_from_a_state_gives_the_same_bytes(seed, stop):
    """Interrupted after any batch: recent keys, their products and a renewed factor come out as they were."""
    generator = torch.Generator().manual_seed(seed)
    covariance, work = spread(24, generator, 3), list(batches(8, 2, 24, generator))
    unbroken, system = [], KeySystem(FactoredCovariance(covariance), 1.5)
    past = Past()
    for number, (keys, residuals) in enumerate(work):
        if number == stop:
            kept = {name: tensor.clone() for name, tensor in past.tensors().items()}
        update, past = system.solve(keys, residuals, past)
        unbroken.append(update)
    resumed, past = KeySystem(FactoredCovariance(covariance), 1.5), Past.load(kept, torch.device("cpu"))
    for number in range(stop, 8):
        update, past = resumed.solve(*work[number], past)
        assert torch.equal(update, unbroken[number])


def test_a_past_that_is_only_a_sum_goes_on():
    """A state of the former form, or of the plain solver: sums of products and nothing else."""
    generator = torch.Generator().manual_seed(5)
    covariance = FactoredCovariance(spread(20, generator, 2))
    work = list(batches(3, 2, 20, generator))
    kept, plain_way = KeySystem(covariance, 1.0), KeySystem(covariance, 1.0, solver="cholesky")
    _, past = plain_way.solve(*work[0])
    assert set(past.tensors()) == {"summed"}
    other = past = Past.load(past.tensors(), torch.device("cpu"))
    for keys, residuals in work[1:]:
        ours, past = kept.solve(keys, residuals, past)
        theirs, other = plain_way.solve(keys, residuals, other)
        assert worst(ours, theirs) < 1e-10


def test_going_back_to_an_older_past():
    """A batch that failed later on is taken back; the next one is solved as if it had never been."""
    generator = torch.Generator().manual_seed(4)
    system = KeySystem(FactoredCovariance(spread(16, generator, 2)), 1.0)
    work = list(batches(6, 2, 16, generator))
    past, updates = Past(), []
    for keys, residuals in work:
        system.solve(keys + 1, residuals, past)
        update, past = system.solve(keys, residuals, past)
        updates.append(update)
    other, fresh = KeySystem(system.covariance, 1.0), Past()
    for (keys, residuals), update in zip(work, updates, strict=True):
        ours, fresh = other.solve(keys, residuals, fresh)
        assert torch.equal(ours, update)


def test_one_factor_serves_all_editors_and_batches(monkeypatch):
    """MEMIT at two lambdas, ROME and COMEBA-HK on the same statistics: one factorisation for each layer."""
    model, made = tiny_model("gpt2"), []
    statistics = random_statistics(model, (1, 2))
    plain_factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(
        torch.linalg,
        "cholesky_ex",
        lambda matrix, **named: (made.append(len(matrix)), plain_factor(matrix, **named))[1],
    )
    common = {"steps": 2, "context_texts": [[""]]}
    for name, own in (
        ("memit", {"layers": [1, 2], "lam": 5.0}),
        ("memit", {"layers": [1, 2], "lam": 50.0}),
        ("rome", {"layers": [1]}),
        ("comeba_hk", {"layers": [1, 2], "lam": 5.0}),
    ):
        editor = make_editor(name, model, common | own, statistics)
        assert not editor.edit(some_edits(4)).failed and not editor.edit(some_edits(6)[4:]).failed
        editor.remove()
    assert made.count(model.inner_width) == 2
    assert factored(statistics, 1) is factored(statistics, 1, "cpu")


@pytest.mark.parametrize("name", ["memit", "comeba_hk"])
def test_editors_write_the_same_with_both_solvers(name):
    """Switched off, each batch forms and factors its matrix; the updates agree."""
    records = {}
    for solver in key_system.SOLVERS:
        model = tiny_model("gpt2")
        settings_ = {"layers": [1, 2], "steps": 3, "lam": 5.0, "context_texts": [[""]], "solver": solver}
        editor = make_editor(name, model, settings_, random_statistics(model, (1, 2)))
        for start in range(0, 6, 2):
            report = editor.edit(some_edits(6)[start : start + 2], record=True)
        records[solver] = report.record["updates"]
    for layer, update in records["woodbury"].items():
        assert worst(update, records["cholesky"][layer]) < 1e-4
