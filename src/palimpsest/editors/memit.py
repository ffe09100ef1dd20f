"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al. 2023, ICLR; arXiv 2210.07229).

A batch of b facts is written into the MLP output matrices W^l [d, d_k] of a few layers l_1 < ... < l_E = L:

    z_i    = h_i^L + delta_i         searched so that the model says the target        (Eq. 16)
    R^l    = (z - h^L) / (L - l + 1)  spread over the remaining layers                  (Eq. 20)
    Delta  = R K^T (lambda C_0 + K K^T)^{-1}                                            (Eq. 14)

with K [d_k, b] the keys at the subjects' last tokens and C_0 [d_k, d_k] = E[k k^T] over a pre-training corpus.
Every call starts from lambda C_0 again: what earlier calls wrote is not protected. That is what COMEBA-HK changes.

Spec: docs/spec/comeba_hk.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.key_value import LeastSquaresSettings
from palimpsest.editors.shared.matrix_writer import MatrixWriter


@dataclass(frozen=True)
class Settings(LeastSquaresSettings):
    """MEMIT's hyper-parameters: those of `LeastSquaresSettings`, with MEMIT's lambda for GPT2-XL as default."""

    lam: float | None = 20000.0


class Memit(MatrixWriter):
    """Batch after batch, each solved against the pre-training statistics alone.

    The search of z (Eq. 16) is `shared/target_vectors.py`, the spread over the layers (Eq. 20) `shared/layer_writer.py`.
    """

    name = "memit"
    shares_targets = True
    settings_type = Settings

    def _solve(
        self, layer: int, keys: Float[Tensor, "b d_k"], residuals: Float[Tensor, "b d"]
    ) -> Float[Tensor, "d d_k"]:
        """Delta of Eq. 14; keys and residuals are rows here."""
        update, _ = self.system(layer).solve(keys, residuals)
        return update


EDITOR = Memit
