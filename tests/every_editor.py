"""Every editor with settings for a tiny GPT-2: what all of them promise is tested on all of them.

A new editor goes into SETTINGS; the tests that are named in docs/adding_an_editor.md then have it.
"""

from __future__ import annotations

from typing import Any

import pytest
from memory_editors import trained
from tiny import random_statistics
from untrained_mend import settings_for, untrained

from palimpsest.editors import editor_class, make_editor
from palimpsest.editors.base import Editor
from palimpsest.models.loading import LanguageModel

WRITER = {"layers": [1, 2], "steps": 4, "learning_rate": 0.4, "context_texts": [[""], ["So"]]}
TUNER = {"layer": 2, "steps": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "comeba_hk": WRITER | {"lam": 5.0},
    "defer": TUNER,
    "ft": TUNER | {"loss": "prompt_last", "learning_rate": 1e-2, "epsilon": None},
    "ft_ewc": TUNER,
    "ft_retrain": TUNER | {"retrain_frequency": 2},
    "grace": TUNER | {"site": "mlp_in"},
    "lu": {"radius": 5.0},
    "memit": WRITER | {"lam": 5.0},
    "memory": TUNER,
    "mend": {},
    "retrieval": {},
    "rome": WRITER | {"layers": [2]},
    "serac": {},
}
# Keep texts and change nothing in the model: they train nothing at an edit, and cannot diverge.
KEEP_TEXTS = ("lu", "retrieval", "serac")


def build(name: str, model: LanguageModel, seed: int = 0, **changes: Any) -> Editor:
    """An editor on a tiny model; one that learns with networks as they start."""
    if name not in SETTINGS:
        pytest.fail(f"there are no settings for {name}: add it to SETTINGS in tests/every_editor.py")
    if name == "mend":
        return make_editor(name, model, settings_for(model, norm=False), seed=seed, trained=untrained(model))
    if name == "serac":
        return make_editor(name, model, seed=seed, trained=trained(model))
    needs = editor_class(name).needs_statistics
    statistics = random_statistics(model, (0, 1, 2)) if needs else None
    return make_editor(name, model, {**SETTINGS[name], **changes}, statistics, seed)
