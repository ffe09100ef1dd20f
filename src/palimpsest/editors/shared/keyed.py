"""What a lifelong run may ask of an editor that answers from a codebook of keys with radii, such as GRACE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:  # otherwise every editor would stand on the codebook, and its runs be made again with it
    from palimpsest.editors.shared.codebook import Codebook
    from palimpsest.editors.shared.gated_adapter import GatedAdapter


class Keyed(Protocol):
    """What `Editor.keyed` gives.

    Attributes:
        codebook: keys, values, radii, and what each entry was taught.
        adapter: where its values speak.
        radius: that of a new key; None while it was not measured.
    """

    codebook: Codebook
    adapter: GatedAdapter
    radius: float | None

    def queries(self, prompts: Sequence[str]) -> Float[Tensor, "n d_in"]:
        """States with which prompts ask the codebook, in their order."""

    def undo(self, edit: str) -> Any:
        """Take back the latest edit of this name; all others stay as they are."""
