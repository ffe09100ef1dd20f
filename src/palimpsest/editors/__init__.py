"""Every editor is one file here: `editors/<name>.py` with `EDITOR = <its class>`.

For `make_editor` nothing else has to be registered; for runs and figures see docs/adding_an_editor.md. base.py is the
contract, shared/ holds what several editors use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import SettingsError
from palimpsest.plain import suggest

if TYPE_CHECKING:
    from palimpsest.editors.base import Editor
    from palimpsest.models.loading import LanguageModel


def editor_names() -> list[str]:
    """Names of all editors: the files of this folder that are not the contract."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base")
    )


def editor_class(name: str) -> type[Editor]:
    """The class of an editor; raises SettingsError with the known names."""
    if name not in editor_names():
        raise SettingsError(
            f"there is no editor {name!r}{suggest(name, editor_names())} (there are: {', '.join(editor_names())})"
        )
    return import_module(f"palimpsest.editors.{name}").EDITOR


def make_editor(
    name: str,
    model: LanguageModel,
    settings: Any = None,
    statistics: Any = None,
    seed: int = 0,
    trained: Any = None,
) -> Editor:
    """Build an editor on a loaded model.

    Args:
        name: as in `editor_names()`, for example "comeba_hk".
        settings: a dict, the editor's own Settings, or None for its defaults; wrong names and values are refused.
        statistics: CovarianceStatistics or the path of a saved one, for editors with `needs_statistics`.
        seed: of everything the editor draws at random.
        trained: for editors with `learns`: learning.artefact.TrainedEditor or the folder that `palimpsest train-editor` wrote.

    Raises:
        SettingsError: a wrong setting, `trained` for an editor that needs none, or `statistics` for one that learns.
    """
    editor = editor_class(name)
    if trained is not None and not editor.learns:
        raise SettingsError(f"{name} needs no training; leave `trained` out")
    if statistics is not None and editor.learns:
        raise SettingsError(
            f"{name} is built with what it learned, trained=..., and reads no statistics; leave them out"
        )
    return editor.build(model, settings, statistics if trained is None else trained, seed)
