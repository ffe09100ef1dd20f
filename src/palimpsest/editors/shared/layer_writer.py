"""Writing a batch into several layers, one after the other: MEMIT Algorithm 1, COMEBA-HK Section 3 (spec 1.4, step 3).

Each layer takes an equal share of what is still missing at the last one:
    for i = 1..E at layer l_i:   R = (z - h) / (E - i + 1),   Delta = solve(l_i, K, R),   W^{l_i} += Delta
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.keys import KeyWalk


def write_layers(
    walk: KeyWalk,
    layers: Sequence[int],
    targets: Float[Tensor, "b d"],
    solve: Callable[[int, Tensor, Tensor], Tensor],
    write: Callable[[int, Tensor], None],
    record: dict[str, Any] | None = None,
) -> None:
    """Write target vectors z [b, d] into the layers.

    Args:
        walk: the batch's sequences, standing at the input of the first layer.
        solve: (layer, K [b, d_k], R [b, d]) -> Delta [d, d_k].
        write: (layer, Delta), after which the walk goes on through the changed layer.
        record: if given, keys, residuals, updates and distances to the target are noted by layer.
    """
    for i, layer in enumerate(layers):
        walk.advance(layer)
        keys, reached = walk.keys_and_state(layers[-1])
        missing = targets - reached.to(targets)
        residual = missing / (len(layers) - i)
        update = solve(layer, keys, residual)
        write(layer, update)
        if record is not None:
            record.setdefault("keys", {})[layer] = keys.cpu()
            record.setdefault("residuals", {})[layer] = residual.cpu()
            record.setdefault("updates", {})[layer] = update.float().cpu()
            record.setdefault("distance_to_target", {})[layer] = missing.norm(dim=1).cpu()
