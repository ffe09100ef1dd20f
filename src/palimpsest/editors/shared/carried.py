"""What an editor keeps by layer from batch to batch, beside the weights: into its state and out of it.

By layer there is a tensor, or a `Past` (key_system.py: keys of earlier batches). A state has them as "name.layer" and
"name.layer.part".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from palimpsest.editors.shared.key_system import Past

Carried = Mapping[int, Tensor | Past]


def carried_tensors(name: str, kept: Carried) -> dict[str, Tensor]:
    """For a state: copies, so that a later batch does not change a state that was taken before it."""
    found: dict[str, Tensor] = {}
    for layer, one in kept.items():
        parts = (
            {"": one} if isinstance(one, Tensor) else {f".{part}": own for part, own in one.tensors().items()}
        )
        found |= {f"{name}.{layer}{part}": tensor.clone() for part, tensor in parts.items()}
    return found


def read_carried(
    name: str, tensors: Mapping[str, Tensor], layers: Iterable[int], device: torch.device
) -> dict[int, Tensor | Past]:
    """From a state; of layers for which nothing was kept, nothing."""
    found: dict[int, Tensor | Past] = {}
    for layer in layers:
        own = f"{name}.{layer}"
        parts = {
            key.removeprefix(f"{own}."): one for key, one in tensors.items() if key.startswith(f"{own}.")
        }
        if own in tensors:
            found[layer] = tensors[own].to(device)
        elif parts:
            found[layer] = Past.load(parts, device)
    return found


def carried_bytes(kept: Carried) -> int:
    """Size of all of it."""
    parts = [[one] if isinstance(one, Tensor) else list(one.tensors().values()) for one in kept.values()]
    return sum(tensor.nbytes for own in parts for tensor in own)
