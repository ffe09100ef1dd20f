"""Real files that a scale names: which are missing, and what those that are there hold."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest.data.sources import locate
from palimpsest.data.text import DEFAULT_FILES
from palimpsest.errors import DataError

FILE_KEYS = frozenset({"file", "targets", "implied", "true_false", "names", "files"})
WHOLE = 32 << 20  # bytes; of a larger file the first and the last of them are read


def files_named(spec: Mapping[str, Any]) -> Iterator[str]:
    """Files of this machine that the entry of a source or a data set names, those of its parts too."""
    for key, value in spec.items():
        if key == "hub":
            continue
        if isinstance(value, Mapping):
            yield from files_named(value)
            if key == "text" and not (value.get("files") or value.get("hub")):
                yield from DEFAULT_FILES
        elif key in FILE_KEYS:
            yield from (name for name in ([value] if isinstance(value, str) else value or ()))


def missing_files(spec: Mapping[str, Any]) -> list[str]:
    """What `locate` says of each file that is not there."""
    found = []
    for name in dict.fromkeys(files_named(spec)):
        try:
            locate(name)
        except DataError as error:
            found.append(str(error))
    return found


def file_digests(spec: Mapping[str, Any]) -> dict[str, str]:
    """Digest of the content of each file that is there, by name: another content is another input."""
    found = {}
    for name in dict.fromkeys(files_named(spec)):
        try:
            path = locate(name)
        except DataError:  # named when it is needed
            continue
        found[name] = content_digest(path)
    return found


def content_digest(path: Path | str) -> str:
    """Digest of a file, or of all files in a directory; of large ones only length, start and end are read."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        stat = file.stat()
        whole.update(f"{file.relative_to(path)}\n{_digest(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()[:16]


@functools.cache
def _digest(file: Path, size: int, written: int) -> str:
    del written  # only tells whether the file was read before
    found = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        found.update(stream.read(WHOLE))
        if size > WHOLE:
            stream.seek(max(WHOLE, size - WHOLE))
            found.update(stream.read())
    return found.hexdigest()
