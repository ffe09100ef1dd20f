"""The fast search of target vectors is the plain one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared.target_vectors import Search, _Adam, search_target_vectors
from palimpsest.editors.shared.target_vectors_plain import search_target_vectors_plain
from palimpsest.edits import Edit

CONTEXTS = ["", "Therefore I say so", "The mother of Velden", "Because"]
SEARCH = Search(layer=1, steps=8, learning_rate=0.4, clamp=2.0, stop_loss=0.5)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
@pytest.mark.parametrize("site", ["block", "mlp"])
def test_fast_equals_plain(family, site):
    """All edits together, tails only, in float64: equal to one by one through the whole model, losses included."""
    model = tiny_model(family, torch.float64)
    search = replace(SEARCH, site=site)
    plain = search_target_vectors_plain(model, some_edits(), CONTEXTS, search)
    fast = search_target_vectors(model, some_edits(), CONTEXTS, search)
    assert torch.allclose(fast.initial, plain.initial, atol=1e-9)
    assert torch.allclose(fast.z, plain.z, atol=1e-6)
    for ours, theirs in zip(fast.losses, plain.losses, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-7)


def test_search_is_not_trivial():
    """Guards the test above: the vectors move, and edits stop at different steps."""
    model = tiny_model("gpt2", torch.float64)
    found = search_target_vectors(model, some_edits(), CONTEXTS, replace(SEARCH, steps=25, stop_loss=7.0))
    assert (found.delta.norm(dim=1) > 0.1).sum() >= 4  # the others were below the stop loss from the start
    assert len({len(losses) for losses in found.losses}) > 1
    assert all(losses[-1] < losses[0] for losses in found.losses if len(losses) > 1)


def test_result_does_not_depend_on_the_company():
    """An edit's vector is the same alone, in a batch, and in chunks."""
    model = tiny_model("gptj", torch.float64)
    edits = some_edits()
    together = search_target_vectors(model, edits, CONTEXTS, SEARCH).z
    alone = torch.cat([search_target_vectors(model, [edit], CONTEXTS, SEARCH).z for edit in edits])
    chunks = search_target_vectors(model, edits, CONTEXTS, replace(SEARCH, edits_at_once=4)).z
    assert torch.allclose(together, alone, atol=1e-7)
    assert torch.allclose(together, chunks, atol=1e-7)


def test_clamp_holds():
    """|delta| never passes clamp * |h_0|."""
    model = tiny_model("gpt2")
    found = search_target_vectors(model, some_edits(), CONTEXTS, replace(SEARCH, clamp=0.3, stop_loss=0.0))
    ratio = found.delta.norm(dim=1) / found.initial.norm(dim=1)
    assert (ratio <= 0.3 + 1e-5).all() and (ratio > 0.29).any()


def test_last_block_and_inner_loss_layer():
    """The edited block may be the last one (delta then only reaches the subject itself), the loss may be read below the top."""
    model = tiny_model("gpt2", torch.float64)
    for search in (replace(SEARCH, layer=3), replace(SEARCH, loss_layer=2)):
        found = search_target_vectors(model, some_edits(3), CONTEXTS, search)
        assert found.finite.all() and (found.delta.norm(dim=1) > 0).all()


def test_our_adam_is_adam():
    """Against the library's, with one learning rate per row."""
    torch.manual_seed(0)
    ours, rate = torch.zeros(3, 5, dtype=torch.float64), torch.tensor([[0.1], [0.2], [0.3]])
    theirs = [torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    optimisers = [torch.optim.Adam([row], lr=float(r)) for row, r in zip(theirs, rate, strict=True)]
    adam = _Adam(torch.zeros_like(ours), torch.zeros_like(ours))
    for _ in range(6):
        gradient = torch.randn(3, 5, dtype=torch.float64)
        ours = adam.step(ours, gradient, rate)
        for row, optimiser, g in zip(theirs, optimisers, gradient, strict=True):
            row.grad = g.clone()
            optimiser.step()
    assert torch.allclose(ours, torch.stack(theirs).detach(), atol=1e-7)


def test_non_finite_loss_is_told_apart():
    """A weight that overflows makes the edit fail, not the batch crash."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.network.transformer.h[3].mlp.c_proj.weight.fill_(float("nan"))
    found = search_target_vectors(model, some_edits(3), CONTEXTS, SEARCH)
    assert not found.finite.any()


def test_one_diverging_edit_does_not_take_others_along():
    """A token whose embedding is not finite poisons its lane; its mates are searched alone and succeed."""
    model = tiny_model("gpt2", torch.float64)
    edits = some_edits()
    bad = Edit(prompt="Zq lives in the city of", subject="Zq", target="Velden", identifier="bad")
    token = model.tokenizer("Zq")["input_ids"][0]
    assert all(token not in model.tokenizer(f"{edit.prompt} {edit.target}")["input_ids"] for edit in edits)
    with torch.no_grad():
        model.network.transformer.wte.weight[token] = float("nan")
        model.network.lm_head.weight = torch.nn.Parameter(
            torch.nan_to_num(model.network.lm_head.weight), requires_grad=False
        )
    fine = search_target_vectors(model, edits[:5], CONTEXTS, SEARCH)
    found = search_target_vectors(model, [*edits[:3], bad, *edits[3:5]], CONTEXTS, SEARCH)
    assert found.finite.tolist() == [True, True, True, False, True, True]
    assert torch.allclose(found.z[[0, 1, 2, 4, 5]], fine.z, atol=1e-6)


def test_fast_equals_plain_on_a_model_with_live_hooks():
    """From its second batch on COMEBA-HK searches on a model whose hook layers swap tokens, by the whole row's z-scores."""
    model = tiny_model("gpt2", torch.float64)
    settings = {"layers": [0, 1], "alpha_z": 0.8, "lam": 5.0, "steps": 5}
    used = make_editor("comeba_hk", model, settings, random_statistics(model, [0, 1]))
    edits = some_edits(6)
    used.edit(edits[:2])
    used.edit(edits[2:4])
    prompts = [edit.prompt for edit in edits[4:]]
    swaps = [
        swap for row in used.inspect(prompts, [edit.subject for edit in edits[4:]]) for swap in row["swapped"]
    ]
    assert any(swaps) and not all(swaps)
    plain = search_target_vectors_plain(model, edits[4:], CONTEXTS, SEARCH)
    fast = search_target_vectors(model, edits[4:], CONTEXTS, SEARCH)
    alone = search_target_vectors(model, edits[4:5], CONTEXTS, SEARCH)
    assert torch.allclose(fast.z, plain.z, atol=1e-6) and torch.allclose(fast.z[:1], alone.z, atol=1e-7)
    used.remove()
    assert not torch.allclose(fast.z, search_target_vectors(model, edits[4:], CONTEXTS, SEARCH).z, atol=1e-3)
