"""Least squares against stored keys, batch after batch, on a factor that is kept (spec 8.2, "Woodbury").

A batch with keys K [b, d_k] (rows) solves A X = K^T with

    A = B + G^T G,   B = lambda C_0 + w K_f^T K_f,   G = [sqrt(w) H; K]

where K_f are past keys already folded into B, H the m past keys since, and w their weight. With B = L L^T and
V = L^{-1} G^T [d_k, m + b] the inverse of the large matrix is that of a small one:

    X = B^{-1} G^T S^{-1} E = L^{-T} V S^{-1} E,   S = I + V^T V,   E the last b columns of the identity.

That is 2 d_k^2 b operations for the two triangular solves and 2 d_k^2 b for the guard, instead of d_k^3 / 3. The inverse
itself is never formed or updated, so nothing drifts from batch to batch: every batch is solved from L, which is
renewed when the keys since the last folding are a quarter as many as a key is long.

Guard: |A X - K^T| <= 1e-9 |K| for every key, with A applied as it is stored. Where it does not hold, or B has no factor, A
is formed and factored as in `solve.py`. (An inverse that is kept and updated breaks the guard as soon as strong keys
lie in directions that C_0 hardly knows; from the factor of B it holds even where A itself can no longer be factored.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.editors.shared.factors import FactoredCovariance
from palimpsest.editors.shared.solve import cholesky_solve, finite_pair

log = logging.getLogger(__name__)

SOLVERS = ("woodbury", "cholesky")
RESIDUAL = 1e-9  # of each column of A X - K^T, relative to its key
FOLD = 0.25  # past keys, as a share of d_k, from which a new factor is cheaper than a growing V
PARTS = ("summed", "recent", "whitened", "gram")  # of a Past
DIRECT = 0.5  # keys of a batch and of the past from which forming A is cheaper


@dataclass(frozen=True, eq=False)
class Past:
    """Keys of earlier batches, float64. Never changed in place: an old one can be gone back to.

    Attributes:
        summed: K_f^T K_f [d_k, d_k]; None: nothing was folded yet.
        recent: H [m, d_k]; whitened: sqrt(w) L^{-1} H^T [d_k, m]; gram: its products with itself [m, m]. None: m = 0.
            The last two follow from the others up to rounding; they are kept so that a resumed run goes on bit for bit.
    """

    summed: Float64[Tensor, "d_k d_k"] | None = None
    recent: Float64[Tensor, "m d_k"] | None = None
    whitened: Float64[Tensor, "d_k m"] | None = None
    gram: Float64[Tensor, "m m"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those there are, for an editor's state."""
        found = {part: getattr(self, part) for part in PARTS}
        return {part: tensor for part, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Past:
        """From an editor's state."""
        found = [tensors.get(part) for part in PARTS]
        return cls(*(None if tensor is None else tensor.to(device) for tensor in found))

    def all(self) -> Float64[Tensor, "d_k d_k"] | None:
        """K'^T K' of all past keys."""
        return _plus(self.summed, self.recent)


NOTHING = Past()


class KeySystem:
    """Solves for one layer.

    Args:
        covariance: C_0 with its factor.
        lam: lambda.
        weight: w, of past keys in A (1, or lambda in the released form, spec 1.3).
        solver: "woodbury", or "cholesky" for forming and factoring A in every batch.
    """

    def __init__(
        self, covariance: FactoredCovariance, lam: float, weight: float = 1.0, solver: str = "woodbury"
    ):
        self.covariance, self.lam, self.weight, self.solver = covariance, lam, weight, solver
        self.fallbacks = 0  # batches that the guard sent the plain way
        self._folded: tuple[Tensor, Tensor] | None = None  # K_f^T K_f, and L of the B it makes

    def solve(
        self, keys: Float[Tensor, "b d_k"], residuals: Float[Tensor, "b d"], past: Past = NOTHING
    ) -> tuple[Float64[Tensor, "d d_k"], Past]:
        """Delta = R^T X^T [d, d_k], and the past of the next batch.

        Raises:
            DivergedEdit: keys or residuals are not finite, or A is not positive definite.
        """
        keys, residuals = finite_pair(keys, residuals)
        solution, after = self._small(keys, past) if self.solver == "woodbury" else (None, None)
        if solution is None:
            stored, earlier = self.lam * self.covariance.wide(), past.all()
            if earlier is not None:
                stored += self.weight * earlier
            stored += keys.T @ keys
            solution = cholesky_solve(stored, keys.T, self.covariance.where)
        if after is None:
            after = Past(summed=_plus(past.all(), keys))
        return residuals.T @ solution.T, after

    def _small(
        self, keys: Float64[Tensor, "b d_k"], past: Past
    ) -> tuple[Float64[Tensor, "d_k b"] | None, Past | None]:
        """(X, the next past); X is None where the plain way must be gone, the past where all keys must be folded."""
        recent = 0 if past.recent is None else len(past.recent)
        width, total = keys.shape[1], recent + len(keys)
        base = self._factor(past.summed) if total <= DIRECT * width else None
        if base is None:
            return None, None
        factor, scale = base
        new = torch.linalg.solve_triangular(factor, keys.T, upper=False) / scale
        gram, whitened = new.T @ new, new
        if past.whitened is not None and past.gram is not None:
            cross = past.whitened.T @ new
            gram = torch.cat([torch.cat([past.gram, cross], 1), torch.cat([cross.T, gram], 1)])
            whitened = torch.cat([past.whitened, new], dim=1)
        identity = torch.eye(total, dtype=gram.dtype, device=gram.device)
        small, info = torch.linalg.cholesky_ex(gram + identity)
        chosen = whitened @ torch.cholesky_solve(identity[:, recent:], small)
        solution = torch.linalg.solve_triangular(factor.T, chosen, upper=True) / scale
        if int(info) or not self._holds(solution, keys, past):
            self.fallbacks += 1
            log.info(
                "%s: the kept factor did not solve this batch to 1e-9, solved anew", self.covariance.where
            )
            return None, None
        if total > FOLD * width:
            return solution, None
        root = math.sqrt(self.weight)
        weights = torch.ones(total, dtype=gram.dtype, device=gram.device)
        weights[recent:] = root
        return solution, Past(
            past.summed,
            keys if past.recent is None else torch.cat([past.recent, keys]),
            (whitened * weights).contiguous(),
            gram * weights * weights[:, None],
        )

    def _factor(self, summed: Tensor | None) -> tuple[Tensor, float] | None:
        """(L', s) with B = (s L') (s L')^T; None where B is not positive definite."""
        if summed is None:
            shared = self.covariance.factor
            return None if shared is None else (shared, math.sqrt(self.lam))
        if self._folded is None or self._folded[0] is not summed:
            factor, info = torch.linalg.cholesky_ex(self.lam * self.covariance.wide() + self.weight * summed)
            if int(info):
                return None
            self._folded = (summed, factor)
        return self._folded[1], 1.0

    def _holds(self, solution: Float64[Tensor, "d_k b"], keys: Float64[Tensor, "b d_k"], past: Past) -> bool:
        """Whether X solves A X = K^T, with A as it is stored."""
        product = self.lam * self.covariance.times(solution) + keys.T @ (keys @ solution)
        if past.summed is not None:
            product += self.weight * (past.summed @ solution)
        if past.recent is not None:
            product += self.weight * (past.recent.T @ (past.recent @ solution))
        left = (product - keys.T).norm(dim=0)
        return bool((left <= RESIDUAL * keys.norm(dim=1)).all())  # false for NaN too


def _plus(summed: Tensor | None, keys: Tensor | None) -> Tensor | None:
    """summed + K^T K, a new tensor unless there are no keys."""
    if keys is None:
        return summed
    products = keys.T @ keys
    return products if summed is None else summed + products
