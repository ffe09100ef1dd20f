"""What training leaves: a folder with the weights that were learned and a description that vouches for them.

`weights.safetensors` is written first and `trained.json`, which names its digest, last: a folder without it holds nothing.
The base model's weights are not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.edits import Edit
from palimpsest.errors import DataError, PalimpsestError, SettingsError
from palimpsest.files import read_json, write_atomic, write_json
from palimpsest.models.loading import LanguageModel
from palimpsest.provenance import file_fingerprint

WEIGHTS, DESCRIPTION, FORMAT = "weights.safetensors", "trained.json", 1
KINDS: dict[str, type] = {
    "editor": str,
    "model": str,
    "model_name": str,
    "data": str,
    "settings": dict,
    "seed": int,
    "steps": int,
    "best_step": int,
    "validation": dict,
    "learned": list,
}
FIELDS = tuple(KINDS)
REMEDY = "Train it again: palimpsest train-editor"


class TrainedError(PalimpsestError):
    """A trained editor is missing, damaged, or of another model, editor or setting."""


@dataclass
class TrainedEditor:
    """An editor that was trained.

    Attributes:
        editor: its name.
        model, model_name: fingerprint and name of the model it was trained on.
        data: digest of the learning examples.
        settings: all settings, as plain data.
        seed: of the training.
        steps, best_step: steps done, and the one whose state this is.
        validation: values then.
        learned: identifiers of the facts it was trained or validated on; it must not be judged on them.
        tensors: what was learned.
    """

    editor: str
    model: str
    model_name: str
    data: str
    settings: dict[str, Any]
    seed: int
    steps: int
    best_step: int
    validation: dict[str, float]
    learned: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path | str) -> None:
        """Write both files, each whole or not at all."""
        folder = Path(folder)
        (folder / DESCRIPTION).unlink(missing_ok=True)  # an old description must not vouch for new weights
        # Copies, because safetensors refuses tensors that share memory.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.tensors.items()}
        write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path))
        content = {name: getattr(self, name) for name in FIELDS}
        write_json(
            folder / DESCRIPTION,
            content | {"format": FORMAT, "weights": file_fingerprint(folder / WEIGHTS)},
        )

    @classmethod
    def load(cls, folder: Path | str) -> TrainedEditor:
        """Read what `save` wrote; a missing, foreign or damaged file is refused by name."""
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise TrainedError(f"{folder} holds no trained editor ({DESCRIPTION} is missing). {REMEDY}")
        content = read_json(folder / DESCRIPTION)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else content
            raise TrainedError(
                f"file {folder / DESCRIPTION}, field 'format': {found!r}, but this is {FORMAT}. {REMEDY}"
            )
        missing = [name for name in FIELDS if name not in content]
        if missing:
            raise TrainedError(f"file {folder / DESCRIPTION} lacks the field {missing[0]!r}. {REMEDY}")
        weights = folder / WEIGHTS
        if not weights.is_file() or file_fingerprint(weights) != content.get("weights"):
            raise TrainedError(
                f"file {weights} is missing or not the one that {DESCRIPTION} was written with. {REMEDY}"
            )
        for name, kind in KINDS.items():
            if not isinstance(content[name], kind) or isinstance(content[name], bool):
                raise TrainedError(
                    f"file {folder / DESCRIPTION}, field {name!r}: {content[name]!r:.60}. {REMEDY}"
                )
        try:
            return cls(**{name: content[name] for name in FIELDS}, tensors=load_file(weights))
        except SafetensorError as error:
            raise TrainedError(f"file {weights} is damaged ({error}). {REMEDY}") from error

    def check(self, model: LanguageModel, editor: str, settings: Any) -> None:
        """Refuse to serve another editor, model or setting than it was trained for, naming what differs.

        Args:
            settings: the editor's Settings, or a dict. Settings named in the class attribute `EDIT_TIME` of the
                Settings are not looked at: they say how to edit, not what was learned.
        """
        if self.editor != editor:
            raise TrainedError(
                f"this was trained for the editor {self.editor!r}, not {editor!r}. Give the folder of {editor}, or train it: "
                "palimpsest train-editor"
            )
        if self.model != model.fingerprint:
            raise TrainedError(
                f"{editor} was trained on model {self.model_name} with fingerprint {self.model}, the model at hand is "
                f"{model.name} with fingerprint {model.fingerprint}. Train it for this model: palimpsest train-editor"
            )
        free: frozenset[str] = getattr(type(settings), "EDIT_TIME", frozenset())
        given = plain_settings(settings)
        for name in sorted(set(given) | set(self.settings)):
            if name not in free and given.get(name) != self.settings.get(name):
                raise TrainedError(
                    f"{editor} was trained with {name} = {self.settings.get(name)!r}, but {given.get(name)!r} is asked for. "
                    "Leave the setting out, or train it with this one: palimpsest train-editor"
                )

    def refuse_learned(self, edits: Sequence[Edit]) -> None:
        """Raise DataError when an edit is a fact that the editor was trained on: its results would flatter."""
        learned = set(self.learned)
        found = [edit.identifier for edit in edits if edit.identifier and edit.identifier in learned]
        if found:
            raise DataError(
                f"{len(found)} of {len(edits)} edits were used to train {self.editor}, the first: {found[0]}",
                field="edits",
                remedy="Ask for fewer edits, or set a larger part of the data set aside (`reserve`) and train again",
            )

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what was learned."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors and the list of facts, as plain data for `run.json`."""
        content = {name: getattr(self, name) for name in FIELDS if name != "learned"}
        return content | {"kind": "trained editor", "weights": self.fingerprint}


def plain_settings(settings: Any) -> dict[str, Any]:
    """Settings as they read from JSON: lists for tuples.

    Raises SettingsError when a value is nothing that JSON can hold.
    """
    content: Mapping[str, Any] = (
        asdict(settings)
        if is_dataclass(settings) and not isinstance(settings, type)
        else dict(settings or {})
    )
    try:
        return json.loads(json.dumps(content))
    except TypeError as error:
        raise SettingsError(f"a setting cannot be written down ({error})") from error
