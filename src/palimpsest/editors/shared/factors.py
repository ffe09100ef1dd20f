"""C_0 of a layer with its Cholesky factor, made once for all that solve against it (spec 8.2).

One factor serves every lambda, since (lambda C_0)^{-1} = C_0^{-1} / lambda, and every batch and editor that was given
the same statistics. It stays in memory and is not written down: at GPT2-XL's width making it takes seconds of a run of
hours, and reading a third of a gigabyte for each layer would take no less.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.errors import DivergedEdit
from palimpsest.statistics.covariance import CovarianceStatistics

ROWS = 1024  # of C_0 that are widened at a time: a float64 copy of the whole would be twice its size


class FactoredCovariance:
    """C_0 [d_k, d_k] on one device, and L with L L^T = C_0 in float64, from the first time it is needed.

    Args:
        matrix: C_0, as it is stored (float32 or wider).
        where: which one it is, for messages.
    """

    def __init__(self, matrix: Float[Tensor, "d_k d_k"], where: str = "the covariance"):
        self.matrix, self.where = matrix, where
        self._factor: Tensor | None = None
        self._failed_at = 0  # order of the first leading minor that is not positive

    @property
    def factor(self) -> Float64[Tensor, "d_k d_k"] | None:
        """L, lower triangular; None where C_0 is not positive definite."""
        if self._factor is None and not self._failed_at:
            found, info = torch.linalg.cholesky_ex(self.matrix.to(torch.float64))
            self._failed_at = int(info)
            self._factor = None if self._failed_at else found
        return self._factor

    def wide(self) -> Float64[Tensor, "d_k d_k"]:
        """C_0 in float64: a copy."""
        return self.matrix.to(torch.float64, copy=True)

    def times(self, right: Float64[Tensor, "d_k b"]) -> Float64[Tensor, "d_k b"]:
        """C_0 right, products in float64."""
        return torch.cat([rows.to(torch.float64) @ right for rows in self.matrix.split(ROWS)])

    def solve(self, right: Float64[Tensor, "d_k b"]) -> Float64[Tensor, "d_k b"]:
        """C_0^{-1} right; raises DivergedEdit where C_0 is not positive definite."""
        if self.factor is None:
            raise DivergedEdit(not_definite(self.where, self._failed_at))
        return torch.cholesky_solve(right, self.factor)


def factored(
    statistics: CovarianceStatistics, layer: int, device: torch.device | str = "cpu"
) -> FactoredCovariance:
    """The covariance of a layer on a device, the same object for all who ask for it with these statistics."""
    key = ("factored", layer, str(device))
    if key not in statistics.derived:
        matrix = statistics.stored(layer).to(device)
        statistics.derived[key] = FactoredCovariance(matrix, f"the covariance of layer {layer}")
    found: FactoredCovariance = statistics.derived[key]
    return found


def not_definite(where: str, minor: int) -> str:
    """What is wrong with a matrix whose leading minor of this order is not positive, and what to do."""
    return (
        f"{where} is not positive definite (its leading {minor} x {minor} part is singular or indefinite: fewer "
        "independent keys in the corpus than the key is long, or a layer whose keys repeat, such as block 0 of a "
        "parallel-block model). Use more tokens, a larger lambda, or other layers"
    )
