"""Target vectors that were searched beforehand, on the untouched model, and are used by several runs.

In single-round editing every batch starts from the untouched model, so z depends on the edit, the search and the contexts,
and not on the method, its lambda or the batch size. One search then serves all of them, and they differ in nothing but
what they are compared for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.editors.shared.target_vectors import Search, TargetVectors
from palimpsest.edits import Edit
from palimpsest.errors import PalimpsestError
from palimpsest.files import read_object, write_atomic, write_json
from palimpsest.provenance import file_fingerprint

TENSORS, DESCRIPTION = "targets.safetensors", "targets.json"
KEY = ("name", "prompt", "target", "subject")  # z is searched at the subject's last token


@dataclass
class StoredTargets:
    """z of many edits, with all that it depends on.

    Attributes:
        vectors: z, h_0, losses and whether each search stayed finite, for all edits.
        edits: [name, prompt, target, subject] of each.
        about: fingerprint of the model, the search, contexts: what must agree with the run that uses them.
    """

    vectors: TargetVectors
    edits: list[list[str]]
    about: dict[str, Any]

    def __post_init__(self) -> None:
        self._places = {tuple(key): place for place, key in enumerate(self.edits)}

    def save(self, folder: Path | str, **more: Any) -> None:
        """Write tensors, then the description that vouches for them; `more` is noted beside."""
        folder, found = Path(folder), self.vectors
        tensors = {"z": found.z, "initial": found.initial, "finite": found.finite}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(folder / TENSORS, lambda path: save_file(tensors, path))
        content = {"about": self.about, "edits": self.edits, "losses": [_text(row) for row in found.losses]}
        content["tensors"] = file_fingerprint(folder / TENSORS)
        write_json(folder / DESCRIPTION, content | more)

    @classmethod
    def load(cls, folder: Path | str) -> StoredTargets:
        """Read what `save` wrote."""
        folder = Path(folder)
        content = read_object(folder / DESCRIPTION, "tensors", "losses", "edits", "about")
        if not (folder / TENSORS).is_file() or file_fingerprint(folder / TENSORS) != content.get("tensors"):
            raise PalimpsestError(
                f"file {folder / TENSORS} is missing or not the one that {DESCRIPTION} was written with. "
                "Delete the folder and make it again with palimpsest targets"
            )
        try:
            tensors = load_file(folder / TENSORS)
            losses = [[float(value) for value in row] for row in content["losses"]]
            vectors = TargetVectors(tensors["z"], tensors["initial"], losses, tensors["finite"])
            if any(len(key) != len(KEY) for key in content["edits"]):  # files of before the subject was noted
                raise ValueError(f"its edits are not noted by {', '.join(KEY)}")
            if {len(losses), *map(len, tensors.values())} != {len(content["edits"])}:
                raise ValueError("its edits, vectors and losses are not equally many")
            return cls(vectors, content["edits"], dict(content["about"]))
        except (SafetensorError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise PalimpsestError(
                f"{folder} holds no target vectors ({error!r}). Delete it and make it again with palimpsest targets"
            ) from error

    def check(self, about: Mapping[str, Any]) -> None:
        """Refuse the targets of another model, search or set of contexts, naming what differs."""
        for name, wanted in about.items():
            if self.about.get(name) != wanted:
                raise PalimpsestError(
                    f"the stored target vectors are of {name} {self.about.get(name)!r}, this run has {wanted!r}. "
                    "Search them again with palimpsest targets"
                )

    def look_up(self, batch: Sequence[Edit], device: torch.device) -> TargetVectors:
        """The part of `vectors` that belongs to a batch, in its order."""
        missing = [edit for edit in batch if _key(edit) not in self._places]
        if missing:
            raise PalimpsestError(
                f"the stored target vectors lack {len(missing)} edits, the first: {missing[0].prompt!r}. "
                "They were searched for another sample: search them again with palimpsest targets"
            )
        places = [self._places[_key(edit)] for edit in batch]

        def rows(tensor: Tensor) -> Tensor:
            return tensor[places].to(device)

        found = self.vectors
        losses = [found.losses[place] for place in places]
        return TargetVectors(rows(found.z), rows(found.initial), losses, rows(found.finite))


def about_targets(fingerprint: str, search: Search, contexts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What z depends on besides the edit, as it reads from JSON."""
    return {
        "model": fingerprint,
        "search": {name: getattr(search, name) for name in Search.__dataclass_fields__},
        "contexts": [list(group) for group in contexts],
    }


def keys_of(edits: Sequence[Edit]) -> list[list[str]]:
    """What an edit is found by."""
    return [list(_key(edit)) for edit in edits]


def _key(edit: Edit) -> tuple[str, ...]:
    return (edit.identifier or edit.prompt, edit.prompt, edit.target, edit.subject or "")


def _text(losses: Sequence[float]) -> list[str]:
    """JSON has no NaN, text has."""
    return [repr(float(loss)) for loss in losses]
