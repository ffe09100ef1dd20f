"""Palimpsest: a reproducible replication of lifelong language-model editing.

The public names are loaded when they are first used, so that `import palimpsest` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "Edit": "palimpsest.edits",
    "Probe": "palimpsest.edits",
    "PalimpsestError": "palimpsest.errors",
    "load_model": "palimpsest.models.loading",
    "LanguageModel": "palimpsest.models.loading",
    "make_editor": "palimpsest.editors",
    "preset_settings": "palimpsest.command_line.commands",
    "save_state": "palimpsest.editors.base",
    "load_state": "palimpsest.editors.base",
    "CovarianceStatistics": "palimpsest.statistics.covariance",
    "collect_covariance": "palimpsest.statistics.covariance",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
