"""Convert a model once: weights in PyTorch's `pytorch_model.bin` to safetensors, a SentencePiece tokenizer to tokenizer.json.

`.bin` files are pickles, and a pickle can run whatever its author wrote. Here alone they are read, by torch's restricted reader
(`weights_only=True`), which builds tensors and refuses to call anything else; then whatever is no tensor is refused too. Releases
of torch before 2.10 had holes in that reader (CVE-2025-32434, CVE-2026-24747) and are refused. Everything else in this project
reads safetensors.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from palimpsest.errors import ModelError
from palimpsest.files import only_one, read_object, whole_folder, write_atomic, write_json
from palimpsest.models.hub import pinned
from palimpsest.models.loading import load_model
from palimpsest.models.tokenizer_files import read_tokenizer

CONFIG, WHOLE, INDEX = "config.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
RECORD = "converted.json"
SAFE_TORCH = (2, 10)
TOKENIZER = (
    "*.model",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)


def convert(source: str, out: Path | str, tokenizer: str | None = None) -> dict[str, Any]:
    """Write a directory in hub format that `kind: path` reads: config.json, safetensors, tokenizer.json, converted.json.

    Weights keep their names and their precision; each `.bin` file becomes one safetensors file. Before the files take their
    places they are loaded as any job will load them; where that fails nothing is written, and an earlier conversion stays.

    Args:
        source: a directory with config.json and pytorch_model.bin (or its parts and their index), or `org/name@COMMIT`, of which
            these files are downloaded.
        out: the new directory; not `source`.
        tokenizer: a directory or `org/name@COMMIT` with the tokenizer, where the source has none.

    Returns:
        what was converted, as in converted.json: `source`, `tokenizer`, SHA-256 of each `.bin` file, `tensors`, `fingerprint`.

    Raises:
        ModelError: the source is no such model, its weights are something else than tensors, or torch is too old.
    """
    _refuse_old_torch()
    out = Path(out)
    folder = _folder(source)
    if out.resolve() == folder.resolve():
        raise ModelError(f"{out} is the directory that is converted. Give another one as --out")
    config = read_object(folder / CONFIG, "model_type")
    shards = _shards(folder)
    record: dict[str, Any] = {"source": source, "tokenizer": tokenizer, "sha256": {}, "tensors": 0}
    # What an earlier conversion left goes when the new one is whole.
    with only_one(out), whole_folder(out, (RECORD, CONFIG, "model*.safetensors*", *TOKENIZER)) as half:
        words = read_tokenizer(tokenizer or str(folder), source)
        where: dict[str, str] = {}
        size = 0
        progress = tqdm(
            shards, unit="file", desc="converting", mininterval=0.1 if sys.stderr.isatty() else 10.0
        )
        for number, shard in enumerate(progress):
            state = read_tensors(shard)
            many = f"-{number + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            name = f"model{many}.safetensors"
            _write(half / name, state)
            where |= dict.fromkeys(state, name)
            size += sum(tensor.nbytes for tensor in state.values())
            record["sha256"][shard.name] = _sha256(shard)
        if len(shards) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": where}
            write_json(half / "model.safetensors.index.json", index)
        words.save_pretrained(str(half))
        write_json(half / CONFIG, {key: value for key, value in config.items() if key != "auto_map"})
        try:
            record |= {"tensors": len(where), "fingerprint": load_model(half).fingerprint}
        except ModelError as error:  # it names the folder that is about to vanish
            raise ModelError(str(error).replace(str(half), source).replace(half.name, source)) from error
        write_json(half / RECORD, record)
    return record


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.bin` file, on the CPU, by torch's restricted reader: nothing in the file is called.

    Raises:
        ModelError: the file needs more than that reader allows, is damaged, or holds something else than named dense tensors.
    """
    _refuse_old_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # it raises many kinds; the reader needs one sentence
        reason = " ".join((str(error).splitlines() or [""])[0].split())[:160]
        raise ModelError(
            f"file {path}: the weights cannot be read as tensors alone ({type(error).__name__}: {reason}). The file is "
            "damaged, or it would run code, which was not run. Fetch it again, or look for safetensors of this model"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ModelError(
            f"file {path}: expected named tensors, found {type(content).__name__}. Give the weights of a model alone"
        )
    for name, value in content.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
        if not (isinstance(name, str) and plain):
            raise ModelError(
                f"file {path}, field {name!r:.60}: expected a dense tensor, found {type(value).__name__}. Give the weights of a "
                "model alone, without an optimiser's state"
            )
    return {name: value.detach() for name, value in content.items()}


def _refuse_old_torch() -> None:
    found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if found < SAFE_TORCH:
        raise ModelError(
            f"torch {torch.__version__} cannot be trusted to read .bin files without running them: that needs torch "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer (pip install -c constraints.txt torch)"
        )


def _folder(source: str) -> Path:
    """The source's directory; of a hub id a copy of its files at that commit."""
    place, options = pinned(source)
    if "revision" not in options:
        return Path(place)
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, "pytorch_model*.bin", INDEX, *TOKENIZER]
    try:
        return Path(snapshot_download(place, revision=options["revision"], allow_patterns=wanted))
    except Exception as error:  # the hub raises many kinds
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"cannot download {source}: {type(error).__name__}: {first}. Check name, commit and connection, or download its "
            "files and give the directory"
        ) from error


def _shards(folder: Path) -> list[Path]:
    """The `.bin` files of a directory, in order."""
    if (folder / INDEX).is_file():
        named = read_object(folder / INDEX, "weight_map")["weight_map"]
        names = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
        if not names or any(not re.fullmatch(r"[\w.-]+\.bin", name) for name in names):
            raise ModelError(
                f"file {folder / INDEX}, field 'weight_map': expected names of .bin files beside it"
            )
    else:
        names = [WHOLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} has no {missing[0]}. Give a directory with {CONFIG} and {WHOLE} (or its parts with {INDEX}); a model with "
            "model.safetensors needs no conversion"
        )
    return [folder / name for name in names]


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """One safetensors file. Tensors that share memory, as tied embeddings do, are written each for itself."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes
        seen.add(storage.data_ptr())
        apart[name] = tensor.contiguous() if alone else tensor.contiguous().clone()
    write_atomic(path, lambda place: save_file(apart, str(place), metadata={"format": "pt"}))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
