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
    adapter.attach()
    adapter.fixed = value.requires_grad_(True)
    try:
        return descend(model, inputs, value, steps, editor.settings.learning_rate)
    finally:
        adapter.fixed = None
        adapter.detach()


def fine_tune(model, batch, layer: int, steps: int, learning_rate: float) -> list[float]:
    """Losses of fine-tuning one matrix on a batch with the model's own loss; the weights are put back."""
    inputs = encode(model, [edit.prompt for edit in batch], [edit.target for edit in batch])
    weight = model.mlp_out(layer).weight
    kept = weight.detach().clone()
    try:
        return descend(model, inputs, weight.requires_grad_(True), steps, learning_rate)
    finally:
        weight.requires_grad_(False).copy_(kept)


def descend(model, inputs, tensor, steps: int, learning_rate: float) -> list[float]:
    """Losses before each step of a fresh Adam on one tensor."""
    optimiser, losses = torch.optim.Adam([tensor], lr=learning_rate), list[float]()
    for _ in range(steps):
        loss = whole_losses(model, inputs).mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses
