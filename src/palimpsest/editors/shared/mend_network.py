"""MEND's editor networks: they turn the factors of a gradient into those of an edit (MEND, sections 3.1 and 3.2, Eq. 3).

For each matrix W [m, n], z = [u; delta] of every token, normalised, goes through two blocks

    y = z + clamp(s * (U V z + b) + o, min=0),    V [r, n+m], U [n+m, r],

and is split into (u~, delta~). One network serves all matrices of a shape; s and o (one row a matrix) tell them apart.
U starts at zero, so at first the output equals the normalised input (Q4). clamp, not relu: its gradient at 0 is 1, and the
argument is exactly 0 at the start, where relu would never let U move.

Without the identity initialisation (Table 6) the paper only speaks of other starting values; the released code then also leaves
out the "z +" of both blocks, so that no factor of an edit is negative. `init: xavier` is the released form, `xavier_residual`
the paper's words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.editors.shared.gradient_factors import Factors

TRANSFORMS = ("combined", "separate", "x_only", "delta_only", "one_sided")
INITS = ("identity", "identity_xavier", "xavier", "xavier_residual")
EPSILON = 1e-7


class RunningNorm(nn.Module):
    """Zero mean and unit variance for each dimension, by all tokens seen in training (Welford's sums, merged by Chan).

    Count and sums are part of the state: a training that goes on, or a loaded editor, has them (Q5).
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "t width"]) -> None:
        """Count t tokens in."""
        if not len(rows):
            return
        rows = rows.to(torch.float64)
        new, total = len(rows), self.count + len(rows)
        mean = rows.mean(dim=0)
        gap = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(dim=0) + gap**2 * self.count * new / total
        self.mean += gap * new / total
        self.count.copy_(total)

    def forward(self, rows: Float[Tensor, "t width"]) -> Float[Tensor, "t width"]:
        """(v - mean) / (standard deviation + 1e-7); one token alone, seen first, is its own mean and gives 0."""
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return ((rows - self.mean) / (deviation + EPSILON)).to(rows.dtype)


class Block(nn.Module):
    """y = z + clamp(s * (U V z + b) + o, min=0); with `init` "xavier" without the first term."""

    def __init__(self, width: int, rank: int, modes: int, init: str, generator: torch.Generator):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))  # V
        self.up = nn.Parameter(torch.zeros(width, rank))  # U
        self.bias = nn.Parameter(torch.zeros(width))
        if init == "identity":
            nn.init.normal_(self.down, generator=generator)  # as released; the paper says Xavier (Q3)
        else:
            nn.init.xavier_uniform_(self.down, generator=generator)
        if init.startswith("xavier"):  # Table 6: no identity at the start
            gain = nn.init.calculate_gain("relu")
            nn.init.xavier_uniform_(self.up, gain=gain, generator=generator)
        self.residual = init != "xavier"
        self.scale = nn.Parameter(torch.ones(modes, width)) if modes else None
        self.shift = nn.Parameter(torch.zeros(modes, width)) if modes else None

    def forward(self, rows: Float[Tensor, "t width"], mode: int) -> Float[Tensor, "t width"]:
        """Rows of one matrix."""
        inner = rows @ self.down.T @ self.up.T + self.bias
        if self.scale is not None and self.shift is not None:
            inner = self.scale[mode] * inner + self.shift[mode]
        found = inner.clamp(min=0)
        return rows + found if self.residual else found


class Stack(nn.Module):
    """The blocks one after the other."""

    def __init__(self, width: int, rank: int, blocks: int, modes: int, init: str, generator: torch.Generator):
        super().__init__()
        rank = min(rank, width)
        self.blocks = nn.ModuleList(Block(width, rank, modes, init, generator) for _ in range(blocks))

    def forward(self, rows: Float[Tensor, "t width"], mode: int) -> Float[Tensor, "t width"]:
        """Rows of one matrix."""
        for block in self.blocks:
            rows = block(rows, mode)
        return rows


class FactorEditor(nn.Module):
    """g for the matrices of one shape (n, m): normalises (u, delta) and maps them.

    `transform`: "combined" as in the paper; "separate" networks for u and delta; "x_only" and "delta_only" map one and
    pass the other on, "one_sided" maps the shorter one (Table 6).
    """

    def __init__(
        self,
        shape: tuple[int, int],
        modes: int,
        transform: str,
        norm: bool,
        rank: int,
        blocks: int,
        init: str,
        generator: torch.Generator,
    ):
        super().__init__()
        n, m = shape
        self.width, self.norm = n, norm
        self.norm_u, self.norm_delta = RunningNorm(n), RunningNorm(m)
        if transform == "one_sided":
            transform = "delta_only" if n > m else "x_only"

        def stack(width: int) -> Stack:
            return Stack(width, rank, blocks, modes, init, generator)

        self.both = stack(n + m) if transform == "combined" else None
        self.u = stack(n) if transform in ("separate", "x_only") else None
        self.delta = stack(m) if transform in ("separate", "delta_only") else None

    def forward(self, factors: Factors, mode: int) -> Factors:
        """(u~, delta~); in training mode the tokens are counted in first."""
        if self.training and self.norm:
            self.norm_u.update(factors.u)
            self.norm_delta.update(factors.delta)
        u, delta = factors.u, factors.delta
        if self.norm:
            u, delta = self.norm_u(u), self.norm_delta(delta)
        if self.both is not None:
            mapped = self.both(torch.cat([u, delta], dim=1), mode)
            return Factors(mapped[:, : self.width], mapped[:, self.width :])
        u = u if self.u is None else self.u(u, mode)
        delta = delta if self.delta is None else self.delta(delta, mode)
        return Factors(u, delta)


class MendNetwork(nn.Module):
    """The editor networks of all edited matrices, and a step size alpha for each.

    Args:
        shapes: (n, m) of each matrix W [m, n], in the order of the matrices.
        share: one network for each shape; False gives each matrix its own, without s and o, as released.
        alpha0: all step sizes at the start.
        seed: of the initial weights.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        share: bool = True,
        transform: str = "combined",
        norm: bool = True,
        rank: int = 1920,
        blocks: int = 2,
        init: str = "identity",
        alpha0: float = 1e-4,
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.alpha = nn.Parameter(torch.full((len(shapes),), float(alpha0)))
        self.editors = nn.ModuleDict()
        self._places: list[tuple[str, int]] = []
        for number, shape in enumerate(shapes):
            name = f"{shape[0]}x{shape[1]}" if share else f"matrix_{number}"
            mode = sum(place == name for place, _ in self._places)
            self._places.append((name, mode))
        for number, (name, _) in enumerate(self._places):
            if name not in self.editors:
                modes = sum(place == name for place, _ in self._places) if share else 0
                self.editors[name] = FactorEditor(
                    shapes[number], modes, transform, norm, rank, blocks, init, generator
                )

    def forward(self, number: int, factors: Factors) -> Factors:
        """(u~, delta~) of matrix `number`."""
        name, mode = self._places[number]
        return self.editors[name](factors, mode)

    def tokens_seen(self) -> int:
        """Tokens that the normalisation of the least used network has seen."""
        return min(int(norm.count) for norm in self.modules() if isinstance(norm, RunningNorm))
