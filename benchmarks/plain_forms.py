"""FT and GRACE in their plain form: at every step the whole network and all logits.

Their losses are compared with the editors' in every measurement.
"""

from __future__ import annotations

import torch

from palimpsest.editors.shared.values_ahead import own_start
from palimpsest.models.objectives import asking, encode, judged, target_places


def whole_losses(model, inputs):
    """Loss of each row [b], by a pass of the whole network with all logits."""
    with asking(model, inputs):
        logits = model.network(**inputs.named, use_cache=False).logits
    return judged(logits[target_places(inputs)], inputs, target_places(inputs)).losses


def grace_value(editor, edit, steps: int) -> list[float]:
    """The losses of the search of one value, as Hartvigsen et al. do it: one edit, a fresh Adam, the whole network."""
    model, adapter = editor.model, editor.adapter
    inputs = encode(model, [edit.prompt], [edit.target])
    value = own_start(editor.seed, str(edit.identifier), adapter.value_width).to(model.device)
    value.requires_grad_(True)
    optimiser, losses = torch.optim.Adam([value], lr=editor.settings.learning_rate), []
    adapter.attach()
    adapter.fixed = value
    try:
        for _ in range(steps):
            loss = whole_losses(model, inputs).mean()
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    finally:
        adapter.fixed = None
        adapter.detach()
    return losses


def fine_tune(model, batch, layer: int, steps: int, learning_rate: float) -> list[float]:
    """Losses of fine-tuning one matrix on a batch with the model's own loss; the weights are put back."""
    inputs = encode(model, [edit.prompt for edit in batch], [edit.target for edit in batch])
    weight = model.mlp_out(layer).weight
    kept, losses = weight.detach().clone(), []
    optimiser = torch.optim.Adam([weight.requires_grad_(True)], lr=learning_rate)
    try:
        for _ in range(steps):
            loss = whole_losses(model, inputs).mean()
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    finally:
        weight.requires_grad_(False).copy_(kept)
    return losses
