"""MEND's edit: which matrices, the loss whose gradient is taken, and the change that the networks make of it.

W' = W - alpha_l sum_t delta~_t u~_t^T          (MEND, section 3.1; the released code adds: Q1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.gradient_factors import Factors, LowRank
from palimpsest.editors.shared.mend_network import MendNetwork
from palimpsest.editors.shared.weights import EditedWeights
from palimpsest.errors import ModelError, SettingsError
from palimpsest.models.families import matrix_view, part
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import NONE, Inputs, encode, without_end


@dataclass(frozen=True)
class Matrix:
    """An edited matrix: its name, its linear map, and the block it lies in (the number of blocks: above all of them)."""

    name: str
    module: Any
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m) of W [m, n]."""
        out, into = matrix_view(self.module).shape
        return int(into), int(out)


def chosen_matrices(
    model: LanguageModel, layers: Sequence[int], sites: Sequence[str], paths: Sequence[str]
) -> list[Matrix]:
    """Each site of each layer, in that order, then the linear maps at `paths` (dotted, from the network).

    Raises:
        ModelError: a layer, site or path does not exist or is no linear map.
        SettingsError: no matrix at all, one of them twice, or the output head (which may be tied to the embedding).
    """
    found = [
        Matrix(f"{layer}.{site}", model.linear(layer, site), layer) for layer in layers for site in sites
    ]
    for path in paths:
        try:
            module = part(model.network, path)
        except ModelError as error:
            raise ModelError(
                f"{model.name} has no part {path!r}. Give dotted paths from {type(model.network).__name__} in `paths`"
            ) from error
        matrix_view(module)  # refuses what is no linear map
        homes = [n for n, block in enumerate(model.blocks) if any(one is module for one in block.modules())]
        found.append(Matrix(path, module, homes[0] if homes else model.n_blocks))
    if not found:
        raise SettingsError("no matrix is edited: give `layers` and `sites`, or `paths`")
    if len({id(matrix.module) for matrix in found}) < len(found):
        raise SettingsError("a matrix is named twice in `layers`, `sites` and `paths`")
    if any(matrix.module is model.head for matrix in found):
        raise SettingsError("the output head cannot be edited: it may be tied to the embedding")
    return found


def lowest_block(model: LanguageModel, matrices: Sequence[Matrix]) -> int:
    """Number of the first block whose output, or what follows it, can change."""
    return min(*(matrix.block for matrix in matrices), model.n_blocks - 1)


class EditedMatrices(EditedWeights):
    """Masters of matrices that may lie anywhere in the network, by their number."""

    def __init__(self, model: LanguageModel, matrices: Sequence[Matrix]):
        self.matrices = list(matrices)
        super().__init__(model, tuple(range(len(self.matrices))))

    def module(self, layer: int) -> Any:
        """The linear map of a matrix."""
        return self.matrices[layer].module

    def called(self, layer: int) -> str:
        """What errors call a matrix."""
        return f"the matrix {self.matrices[layer].name}"


def edit_inputs(
    model: LanguageModel, prompts: Sequence[str], targets: Sequence[str], end_token: bool
) -> Inputs:
    """Prompts and targets; of a decoder the end token after the target counts only with `end_token`."""
    inputs = encode(model, prompts, targets)
    return inputs if end_token or model.kind != "decoder" else without_end(inputs)


def with_padding_targets(inputs: Inputs, padding: int, groups: int = 1) -> Inputs:
    """Spec E5: rows as a toolkit has them that aligns targets on the right and forgets to mask their padding.

    Of a decoder's rows whose target is t tokens shorter than the longest of its batch, the t places before it should give the
    padding token. The rows are `groups` batches of equally many.
    """
    targets = inputs.targets.clone()
    counts = (targets != NONE).sum(dim=1)
    longest = counts.view(groups, -1).amax(dim=1).repeat_interleave(len(counts) // groups)
    for row, missing in enumerate((longest - counts).tolist()):
        end = int(inputs.query[row])
        targets[row, max(0, end - missing) : end] = padding
    return replace(inputs, targets=targets)


def row_weights(inputs: Inputs, reduction: str, groups: int = 1) -> Float[Tensor, " b"]:
    """Weights of the rows' mean losses: their sum over edits, or the mean over all target tokens of the batch (Q6).

    The rows are `groups` batches of equally many.
    """
    counts = (inputs.targets != NONE).sum(dim=1).float().view(groups, -1)
    if reduction == "sum_over_edits":
        return torch.ones_like(counts).flatten()
    return (counts / counts.sum(dim=1, keepdim=True)).flatten()


def changes(
    network: MendNetwork,
    factors: Sequence[Factors],
    sign: str = "minus",
    alpha: Float[Tensor, " matrices"] | None = None,
) -> list[LowRank]:
    """The change of each matrix, with gradient to the networks and the step sizes.

    Args:
        sign: "minus", or "plus" as released (Q1).
        alpha: step sizes in place of the network's own.
    """
    alpha = network.alpha if alpha is None else alpha
    direction = -1.0 if sign == "minus" else 1.0
    found = []
    for number, one in enumerate(factors):
        mapped = network(number, one)
        found.append(LowRank(direction * alpha[number] * mapped.delta, mapped.u))
    return found


def order_in_network(model: LanguageModel, matrices: Sequence[Matrix]) -> list[int]:
    """For each matrix its rank in the network's own order of parameters (spec M2)."""
    places = {id(parameter): place for place, parameter in enumerate(model.network.parameters())}
    own = [places[id(matrix.module.weight)] for matrix in matrices]
    return [sorted(own).index(place) for place in own]
