"""The same search in its plain form: one edit at a time, all rows padded together, whole model, full logits.

This is the yardstick: tests hold the fast form to it, benchmarks measure the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.editors.shared.target_sequences import build_sequences
from palimpsest.editors.shared.target_vectors import Search, TargetVectors
from palimpsest.edits import Edit
from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import block_output


def search_target_vectors_plain(
    model: LanguageModel, edits: Sequence[Edit], contexts: Sequence[str], search: Search
) -> TargetVectors:
    """As `search_target_vectors`, for models whose loss is read at the last block."""
    results = [_search_one(model, edit, contexts, search) for edit in edits]
    z, initial, losses, finite = zip(*results, strict=True)
    return TargetVectors(
        torch.stack(z), torch.stack(initial), list(losses), torch.tensor(finite, device=model.device)
    )


def _search_one(
    model: LanguageModel, edit: Edit, contexts: Sequence[str], search: Search
) -> tuple[Tensor, Tensor, list[float], bool]:
    rows = build_sequences(model, [edit], contexts)
    index = torch.arange(len(rows.subject))
    site = model.block(search.layer) if search.site == "block" else model.mlp_out(search.layer)
    wide = torch.promote_types(model.dtype, torch.float32)
    delta = torch.zeros(model.width, dtype=wide, device=model.device, requires_grad=True)
    seen: dict[str, Tensor] = {}

    def add_delta(_, __, output):
        hidden = block_output(output).clone()
        seen.setdefault("initial", hidden[0, rows.subject[0]].detach().to(wide))
        hidden[index, rows.subject] = hidden[index, rows.subject] + delta.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    losses: list[float] = []
    optimiser, before = None, None
    handle = site.register_forward_hook(add_delta)
    try:
        for step in range(search.steps):
            logits = model.network(
                input_ids=rows.tokens.input_ids, attention_mask=rows.tokens.attention_mask, use_cache=False
            ).logits.to(wide)
            norm = seen["initial"].norm()
            log_p = logits.log_softmax(dim=2)
            rewriting = -(
                log_p[rows.read_row, rows.read_column, rows.read_token] * rows.read_weight.to(wide)
            ).sum()
            guard = log_p[rows.kl[0], rows.subject[rows.kl[0]]]
            before = guard.detach() if before is None else before
            divergence = (guard.exp() * (guard - before)).sum()
            loss = rewriting + search.kl_weight * divergence + search.decay * delta.norm() / norm**2
            losses.append(float(loss.detach()))
            if (
                step == search.steps - 1
                or not torch.isfinite(loss)
                or (search.early_stop and loss < search.stop_loss)
            ):
                break
            if optimiser is None:
                rate = (
                    search.learning_rate_ratio * float(norm)
                    if search.learning_rate_ratio
                    else search.learning_rate
                )
                optimiser = torch.optim.Adam([delta], lr=rate)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                largest = search.clamp * norm
                if delta.norm() > largest:
                    delta.mul_(largest / delta.norm())
    finally:
        handle.remove()
    initial = seen["initial"]
    return (initial + delta).detach(), initial, losses, bool(torch.isfinite(torch.tensor(losses)).all())
