"""A gated adapter: beside one linear map of one block, vectors that take the place of its output where a rule says so.

GRACE, Defer and the memory network (and later methods of their kind) differ in the rule; what they share is here.

- The state that asks is the linear map's INPUT at one position of each row: `model.query` where it is set (the last
  prompt token of a decoder, `</s>` or `[SEP]` otherwise), else the last real token of the row.
- The rule decides once for each row of a pass, so rows in a padded batch are answered as they are alone.
- Which output positions are overwritten is `replacement`:
      "prompt_before"  those before the asking one: the released code's default (GRACE, spec 1.6)
      "last"           the asking one
      "prompt"         up to and including the asking one
      "all"            every one
- A step with kept keys and values is no new sequence: it asks nothing. What the prompt's pass overwrote stays in the
  kept keys and values; with "all", the row's decision holds for its new tokens too. So generation with kept keys and
  values gives what running the whole row for every token gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from palimpsest.errors import ModelError
from palimpsest.models.families import matrix_view
from palimpsest.models.hooks import Attachment, attach
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, asking
from palimpsest.models.upper import Upper

REPLACEMENTS = ("prompt_before", "last", "prompt", "all")


@dataclass(frozen=True)
class Override:
    """What a rule decides for the rows of a pass.

    Attributes:
        fired: rows whose output is overwritten [b].
        value: by what [b, d_out]; read only where `fired`.
        share: None overwrites; numbers [b] between 0 and 1 mix, 1 being all of `value` (Defer, while it trains).
    """

    fired: Bool[Tensor, " b"]
    value: Float[Tensor, "b d_out"]
    share: Float[Tensor, " b"] | None = None

    def rows(self, rows: Int[Tensor, " k"]) -> Override:
        """Some of the rows."""
        return Override(self.fired[rows], self.value[rows], None if self.share is None else self.share[rows])


@dataclass(frozen=True)
class Query:
    """What a pass asks: states [b, d_in] and the linear map's own outputs [b, d_out] at the asking positions."""

    states: Float[Tensor, "b d_in"]
    outputs: Float[Tensor, "b d_out"]


Rule = Callable[[Query], Override | None]


class GatedAdapter:
    """The hook on one linear map.

    Args:
        rule: decides for each pass; None leaves the pass as it is, bit for bit.
        replacement: one of `REPLACEMENTS`.
        shift: asks so many positions later, within the row (the released code asks a decoder at the first target
            token, Q1).

    Raises:
        ModelError: no such block or site, or it is no linear map.
    """

    def __init__(
        self,
        model: LanguageModel,
        layer: int,
        site: str,
        rule: Rule,
        replacement: str = "prompt_before",
        shift: int = 0,
    ):
        self.model, self.layer, self.site = model, layer, site
        self.module: nn.Module = model.linear(layer, site)
        self.value_width, self.key_width = matrix_view(self.module).shape
        self.rule, self.replacement, self.shift = rule, replacement, shift
        self.fixed: Tensor | None = (
            None  # value [d_out] that every row gets, or [b, d_out] one for each, whatever it asks: for training
        )
        self.latest: Override | None = None  # of the latest pass that asked
        self._attachment: Attachment | None = None

    def attach(self) -> None:
        """Hang the hook (once)."""
        if self._attachment is None:
            self._attachment = attach(self.model, {self.module: self._hook})

    def detach(self) -> None:
        """Take the hook off."""
        self.latest = None
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def query(self, inputs: Inputs) -> Query:
        """What encoded rows ask; blocks above the linear map are not run. No edit of the adapter changes it."""
        with asking(self.model, inputs):
            return self._seen(lambda: self.model.network(**inputs.named))

    def query_above(self, upper: Upper) -> Query:
        """The same for rows that stand at the adapter's block, which alone is run."""
        return self._seen(upper.run_to_map)

    @torch.no_grad()
    def _seen(self, run: Callable[[], object]) -> Query:
        """What the linear map is given in a pass, which ends there, and what it answers by itself."""
        seen: list[Query] = []

        def look(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen.append(self._asks(inputs[0], output))
            raise _SeenEnough

        handle = self.module.register_forward_hook(look, prepend=True)  # before the adapter's own
        try:
            run()
        except _SeenEnough:
            pass
        finally:
            handle.remove()
        return seen[0]

    @property
    def is_attached(self) -> bool:
        """Whether the hook hangs."""
        return self._attachment is not None

    def _hook(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        n, padding = output.shape[1], self.model.padding
        if padding is not None and padding.shape[1] > n:  # a step with kept keys and values
            return self._go_on(output) if self.replacement == "all" else None
        at = self._asking_positions(output)
        if self.fixed is not None:
            fixed = self.fixed if self.fixed.dim() == 1 else self.fixed[:, None]
            return torch.where(self._chosen(at, n)[..., None], fixed.to(output.dtype), output)
        self.latest = self.rule(self._asks(inputs[0], output))
        if self.latest is None:
            return None
        return overwrite(output, self.latest, self._chosen(at, n))

    def _asks(self, states: Float[Tensor, "b n d_in"], output: Float[Tensor, "b n d_out"]) -> Query:
        rows, at = torch.arange(len(output), device=output.device), self._asking_positions(output)
        return Query(states[rows, at], output[rows, at])

    def _go_on(self, output: Tensor) -> Tensor | None:
        decision, rows = self.latest, self.model.rows
        if decision is None:
            return None
        if rows is not None:
            decision = decision.rows(rows)
        return overwrite(output, decision, torch.ones_like(output[..., 0], dtype=torch.bool))

    def _asking_positions(self, output: Float[Tensor, "b n d_out"]) -> Int[Tensor, " b"]:
        b, at = len(output), self.model.query
        if at is not None and len(at) != b:
            raise ModelError(
                f"the pass has {b} rows, but {len(at)} positions were given to ask at. Use `asking_at` for one batch"
            )
        if at is not None and not self.shift:
            return at.to(output.device)
        places = torch.arange(output.shape[1], device=output.device)
        last = places[-1].expand(b)
        if self.model.padding is not None:
            last = (places * (self.model.padding != 0)).max(dim=1).values
        return last if at is None else torch.minimum(at.to(output.device) + self.shift, last)

    def _chosen(self, at: Int[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
        places = torch.arange(n, device=at.device)[None]
        if self.replacement == "all":
            return torch.ones(len(at), n, dtype=torch.bool, device=at.device)
        if self.replacement == "last":
            return places == at[:, None]
        return places <= at[:, None] if self.replacement == "prompt" else places < at[:, None]


def overwrite(
    output: Float[Tensor, "b n d_out"], decision: Override, chosen: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n d_out"]:
    """The output with a decision carried out at the chosen positions of the rows that fired."""
    value = decision.value.to(output.dtype)[:, None]
    if decision.share is not None:
        value = torch.lerp(output, value.expand_as(output), decision.share.to(output.dtype)[:, None, None])
    return torch.where((chosen & decision.fired[:, None])[..., None], value, output)


class _SeenEnough(Exception):
    """Ends a pass once the asking states are known."""
