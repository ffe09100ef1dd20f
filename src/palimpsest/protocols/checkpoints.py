"""Checkpoints of a run: all it needs to go on after a crash and end with the same rows.

A checkpoint is `step-000012-KEY.safetensors` (tensors) and `step-000012-KEY.json` (plain data, the digest of the tensors, and
shape and type of those that are zero throughout, as after a reset: they are not written), KEY a digest of what the run is.
The JSON file is written last, so a checkpoint without it never happened. The last two are kept: should the newest be damaged,
the one before serves. The last two of other runs in the same folder (another seed, other code) stay too, until a run there has
ended. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from palimpsest import interruption
from palimpsest.errors import PalimpsestError
from palimpsest.files import Pace, proves_damage, read_json, unreadable_now, write_atomic, write_json
from palimpsest.provenance import file_fingerprint

log = logging.getLogger(__name__)

KEPT = 2
SMALL = 1024  # bytes
GPU = "random.gpu"  # name of the random state of the GPU that the model lies on


class GpuStateError(RuntimeError):
    """A GPU does not take its random state. A RuntimeError of its own, so that it never counts as damage (files.py)."""


@dataclass
class Checkpoint:
    """Tensors and plain data of one moment between two batches."""

    step: int
    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
        folder: where they lie; made when the first is saved.
        key: what a run is (spec, seed, fingerprints). Checkpoints with another key are not used.
        every_batch: save after every batch, however long it takes.
    """

    def __init__(self, folder: Path | str, key: Mapping[str, Any], every_batch: bool = False):
        self.folder, self.every_batch = Path(folder), every_batch
        text = json.dumps(dict(key), sort_keys=True)
        self.key = json.loads(text)  # as it will read from a file: lists, text keys
        self._name = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._pace = Pace()

    def due(self) -> bool:
        """Whether enough time has passed for another save: small states are saved after every batch."""
        return self.every_batch or self._pace.due()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one checkpoint and drop those before the last two."""
        with interruption.saving(), self._pace.saving():
            self._save(checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        tensors_path, plain_path = self._paths(checkpoint.step)
        # Copies, because safetensors refuses tensors that share memory.
        tensors = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()
        }
        zeros = {name: _form(tensor) for name, tensor in tensors.items() if _is_zero(tensor)}
        kept = {name: tensor for name, tensor in tensors.items() if name not in zeros}
        write_atomic(tensors_path, lambda temporary: save_file(kept, temporary))
        content = {"key": self.key, "tensors": file_fingerprint(tensors_path), "plain": checkpoint.plain}
        content["zeros"] = zeros
        write_json(plain_path, content, indent=None)
        for old in self._steps()[:-KEPT]:
            self.drop(old)
        self._drop_superfluous()

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint of this very run, or None.

        One that is damaged is removed with a warning, lest it crowd out the new ones; those of other runs stay as they are.

        Raises:
            PalimpsestError: one cannot be read now, which says nothing about what it holds: it is kept.
        """
        for path in self._others():
            log.warning(
                "checkpoint %s is not used: it is of a run with other settings, data, model or code. It stays until a run "
                "has ended in this folder",
                path.name,
            )
        for step in reversed(self._steps()):
            tensors_path, plain_path = self._paths(step)
            try:
                content = read_json(plain_path)
                if content["key"] != self.key:
                    raise PalimpsestError(f"file {plain_path} has the name of a run that it is not of")
                if file_fingerprint(tensors_path) != content["tensors"]:
                    raise PalimpsestError(
                        f"file {tensors_path} is not the one that {plain_path} was written with"
                    )
                tensors = load_file(tensors_path)
                tensors |= {name: _zeros(*form) for name, form in content.get("zeros", {}).items()}
                return Checkpoint(step, tensors, content["plain"])
            except (
                PalimpsestError,
                SafetensorError,
                OSError,
                LookupError,
                AttributeError,
                TypeError,
            ) as error:
                if not proves_damage(error):
                    raise unreadable_now(plain_path, error) from error
                log.warning("checkpoint of step %d is not used: %s", step, error)
                self.drop(step)
        return None

    def clear(self) -> None:
        """Remove all checkpoints, those of other runs too: the folder holds the results of this run now."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def drop(self, step: int) -> None:
        """Remove one that does not serve."""
        tensors_path, plain_path = self._paths(step)
        plain_path.unlink(missing_ok=True)  # first: without it the checkpoint does not count
        tensors_path.unlink(missing_ok=True)

    def place(self, step: int) -> Path:
        """The JSON file of one checkpoint, for messages."""
        return self._paths(step)[1]

    def _steps(self) -> list[int]:
        names = (path.stem.split("-")[1] for path in self.folder.glob(f"step-*-{self._name}.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _others(self) -> list[Path]:
        """JSON files of other runs, the newest last."""
        found = [path for path in self.folder.glob("step-*.json") if not path.stem.endswith(f"-{self._name}")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _drop_superfluous(self) -> None:
        """All but the last two of other runs, and tensors whose writer was killed before it wrote their JSON file."""
        for path in self._others()[:-KEPT]:
            path.unlink()
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def _paths(self, step: int) -> tuple[Path, Path]:
        stem = f"step-{step:06d}-{self._name}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"


def _is_zero(tensor: torch.Tensor) -> bool:
    """Whether every bit of a tensor in main memory is 0 (-0.0 is kept); small ones are not worth a look."""
    return tensor.nbytes > SMALL and not bool(tensor.reshape(-1).view(torch.uint8).any())


def _form(tensor: torch.Tensor) -> tuple[list[int], str]:
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _zeros(shape: list[int], dtype: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype))


def random_state(
    device: torch.device | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State of every global source of random numbers (torch, numpy, Python), as tensors and plain data.

    Args:
        device: where the model lies. Of the GPUs only this one has a say: the others are those of other jobs.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    words_of_numpy = np.asarray(keys, dtype=np.int64)
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(words_of_numpy)}
    if device is not None and device.type == "cuda":
        tensors[GPU] = torch.cuda.get_rng_state(device)
    version, words, python_gauss = random.getstate()
    plain = {
        "python": [version, list(words), python_gauss],
        "numpy": [str(name), int(position), int(has_gauss), float(gauss)],
    }
    return tensors, plain


def set_random_state(
    tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any], device: torch.device | None = None
) -> None:
    """Put back what `random_state` gave; `device`: where the model lies now, whatever number it has among the visible ones.

    Raises:
        GpuStateError: the GPU does not take its state, which says nothing about the state.
    """
    torch.set_rng_state(tensors["random.torch"])
    name, position, has_gauss, gauss = plain["numpy"]
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, gauss))
    version, words, python_gauss = plain["python"]
    random.setstate((version, tuple(words), python_gauss))
    if GPU in tensors and device is not None and device.type == "cuda":
        try:
            torch.cuda.set_rng_state(tensors[GPU].cpu(), device)
        except (LookupError, RuntimeError, AssertionError) as error:
            raise GpuStateError(f"cuda: {device} does not take its random state ({error})") from error


def seed_everything(seed: int) -> None:
    """Seed every global source of random numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
