"""The linear algebra of key-value writers, in float64.

Delta = R K^T A^{-1} with A = lambda C_0 + (keys of the past) + K K^T symmetric and positive definite: a Cholesky
factor is enough (half the work of the released code's LU; the same numbers, spec 8.2). `key_system.py` solves with it where
the factor that it keeps does not serve.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.editors.shared.factors import not_definite
from palimpsest.errors import DivergedEdit


def finite_pair(
    keys: Float[Tensor, "b d_k"], residuals: Float[Tensor, "b d"]
) -> tuple[Float64[Tensor, "b d_k"], Float64[Tensor, "b d"]]:
    """Both in float64, on the device of the keys; raises DivergedEdit unless all of it is finite."""
    keys = keys.to(torch.float64)
    residuals = residuals.to(keys)
    if not (torch.isfinite(keys).all() and torch.isfinite(residuals).all()):
        raise DivergedEdit("keys or residuals are not finite")
    return keys, residuals


def cholesky_solve(
    matrix: Float[Tensor, "n n"], right: Float[Tensor, "n m"], where: str = "the covariance"
) -> Float[Tensor, "n m"]:
    """matrix^{-1} right for symmetric positive definite matrices; says what to do when it is not."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise DivergedEdit(not_definite(where, int(info)))
    return torch.cholesky_solve(right, factor)
