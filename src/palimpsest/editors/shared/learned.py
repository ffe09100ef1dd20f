"""How an editor that learns takes up what it was trained to: used by the `build` of MEND and SERAC."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from palimpsest.editors.base import Editor, read_settings
from palimpsest.errors import SettingsError
from palimpsest.learning.artefact import TrainedEditor
from palimpsest.models.loading import LanguageModel


def open_trained(
    editor: type[Editor], model: LanguageModel, settings: Any, trained: Any
) -> tuple[Any, TrainedEditor]:
    """The editor's Settings and what it learned, checked against each other and against the model.

    Args:
        settings: as for every editor; what is left out is taken from the training.
        trained: a TrainedEditor, or the folder of a saved one.

    Raises:
        SettingsError: nothing was trained, or a setting has a wrong name or value.
        TrainedError: it was trained for another editor or model, or with other settings.
    """
    if trained is None:
        raise SettingsError(
            f"{editor.name} learns before it edits. Train it with `palimpsest train-editor` and pass the "
            "folder as trained=... (--trained on the command line)"
        )
    found = TrainedEditor.load(trained) if isinstance(trained, str | Path) else trained
    if not isinstance(found, TrainedEditor):
        raise SettingsError(f"trained must be a folder or a TrainedEditor, not {type(trained).__name__}")
    given = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else settings
    if given is not None and not isinstance(given, dict):
        read_settings(editor, given)  # refuses it
    own = found.settings if found.editor == editor.name else {}
    chosen = read_settings(editor, {**own, **(given or {})})
    found.check(model, editor.name, chosen)
    return chosen, found
