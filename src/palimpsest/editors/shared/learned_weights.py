"""What SERAC learns, by name: the weights of the scope classifier and of the counterfactual model, none of the base's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from palimpsest.editors.shared.counterfactual import EditReader
from palimpsest.editors.shared.scope_classifier import ScopeClassifier
from palimpsest.learning.artefact import REMEDY, TrainedError

SCOPE, COUNTERFACTUAL = "scope.", "counterfactual."


def learned(classifier: ScopeClassifier, reader: EditReader) -> dict[str, Tensor]:
    """Weights by name, as they are (not copied); a model that is the base itself has none of its own."""
    found = {f"{SCOPE}{name}": tensor for name, tensor in classifier.network.state_dict().items()}
    if reader.model is reader.base:
        return found
    seen: set[int] = set()  # tied weights have two names; one is enough
    for name, tensor in reader.model.network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[f"{COUNTERFACTUAL}{name}"] = tensor.detach()
    return found


def take(classifier: ScopeClassifier, reader: EditReader, tensors: Mapping[str, Tensor]) -> None:
    """Give both the weights that `learned` gave.

    Raises:
        TrainedError: a tensor is missing or of another shape; nothing has changed then.
    """
    own = learned(classifier, reader)
    for name, tensor in own.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            shape = None if found is None else tuple(found.shape)
            raise TrainedError(
                f"the training of serac has {name} of shape {shape}, but {tuple(tensor.shape)} is expected. {REMEDY}"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
