"""How edits arrive and when we look. One file a protocol, found by name, each with a function `run`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from palimpsest.errors import SettingsError

PROTOCOLS = ("single_round", "consecutive", "lifelong", "simultaneous")


def protocol(name: str) -> Callable[..., Any]:
    """The function `run(stream, checkpoints) -> Progress` of a protocol; SettingsError names the known."""
    if name not in PROTOCOLS:
        raise SettingsError(f"there is no protocol {name!r} (there are: {', '.join(PROTOCOLS)})")
    return import_module(f"palimpsest.protocols.{name}").run


def protocol_part(name: str) -> ModuleType:
    """A module of this folder, loaded when it is needed: a run's digest then covers only its own protocol."""
    return import_module(f"palimpsest.protocols.{name}")
