"""Adam with its default betas and epsilon, for few steps on small tensors: the arithmetic of `torch.optim.Adam`, bit for bit.

The library's step costs more in bookkeeping than a pass above the edited layer of a small model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """A fresh one for each edit."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float):
        self.parameters, self.learning_rate, self.steps = list(parameters), learning_rate, 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters, given their gradients."""
        self.steps += 1
        size = self.learning_rate / (1 - BETAS[0] ** self.steps)
        root = math.sqrt(1 - BETAS[1] ** self.steps)
        rows = zip(self.parameters, gradients, self.means, self.squares, strict=True)
        for parameter, gradient, mean, square in rows:
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            parameter.addcdiv_(mean, square.sqrt().div_(root).add_(EPSILON), value=-size)
