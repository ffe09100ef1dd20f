"""Half precision: edits add up in float32 masters, what the model holds is their rounding."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from palimpsest.editors.shared.hook_layers import HookLayers
from palimpsest.editors.shared.weights import EditedWeights

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_hundred_tiny_edits_do_not_vanish(dtype):
    """Each is far below half a unit in the last place of every weight: added in half precision they would be lost."""
    model = tiny_model("gpt2", dtype)
    weights = EditedWeights(model, (1,))
    start = model.mlp_weight(1).clone()
    large = start.float().abs() > 0.5
    tiny = torch.full_like(weights.updates[1], 2.0**-14)
    naive = start.clone()
    for _ in range(100):
        weights.add(1, tiny)
        naive += tiny.to(dtype)
    assert torch.equal(naive[large], start[large]), (
        "this test needs edits that vanish when added in half precision"
    )
    assert torch.equal(model.mlp_weight(1), (start.float() + 100 * 2.0**-14).to(dtype))
    assert weights.updates[1].dtype == torch.float32
    weights.restore()
    assert torch.equal(model.mlp_weight(1), start)


@pytest.mark.parametrize("dtype", HALVES)
def test_hook_layers_round_the_sum_and_not_the_summands(dtype):
    """D = W_h - W_0 grows by less than its own rounding, a hundred times."""
    model = tiny_model("gpt2", dtype)
    hooked = HookLayers(model, (1,), 2.0)
    ones = torch.ones_like(hooked.difference[1])
    hooked.set_difference(1, ones)
    for _ in range(100):
        hooked.set_difference(1, hooked.difference[1] + 2.0**-14 * ones)
    assert (1.0 + torch.tensor(2.0**-14)).to(dtype) == 1.0
    assert torch.equal(hooked._shadow[1], ((1 + 100 * 2.0**-14) * ones).to(dtype))
