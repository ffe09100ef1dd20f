"""What the settings of all generated lifelong worlds share: plain numbers with bounds, unknown names refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from palimpsest.errors import SettingsError
from palimpsest.plain import build

T = TypeVar("T")


def from_settings(cls: type[T], settings: Mapping[str, Any]) -> T:
    """Build a settings dataclass from plain data; unknown names are refused."""
    return build(cls, settings, "the world")


def check_bounds(settings: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse what is no number between its bounds, naming setting and bound."""
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise SettingsError(
                f"world setting '{name}' is {value!r}; expected a number from {low} to {high}"
            )
