"""Where records come from: a local JSON, JSON-lines or gzipped file, or a hub data set at a pinned revision.

Nothing that a data file says is ever used as a path or as code; file names come from the configuration only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError, SettingsError

DATA_VARIABLE = "PALIMPSEST_DATA"
PINNED = re.compile(r"[0-9a-f]{40}")
HUB_FIELDS = {"id", "revision", "file", "split", "config", "column"}
TRUNCATED = "The file may be truncated or was edited by hand: fetch it again and compare its sha256"


@dataclass(frozen=True)
class Source:
    """Raw records and where they came from.

    Attributes:
        name: what the configuration calls the file or hub data set (never a path of this machine).
        records: the list found in the file, not yet checked.
        sha256: of the uncompressed content, so that the plain and the gzipped form of a file agree.
        revision: commit of the hub data set, else None.
    """

    name: str
    records: list[Any]
    sha256: str
    revision: str | None = None


def check_limit(limit: Any, name: str = "limit") -> int | None:
    """How many are wanted, None for all; SettingsError names the setting where it is no whole number above 0."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise SettingsError(f"{name}: expected a whole number above 0 or null, found {limit!r}")
    return limit


def locate(name: str, folder: Path | str | None = None) -> Path:
    """Find a file by full path, or relative to `folder` or the data folder, plain or gzipped.

    Raises:
        DataError: when no such file exists; names the places that were looked at.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{name!r} is not a file name", field="file", remedy="Give the name of a data file")
    bases = [Path(folder)] if folder is not None else []
    bases += [Path(os.environ[DATA_VARIABLE]).expanduser()] if os.environ.get(DATA_VARIABLE) else []
    for base in [Path()] if Path(name).is_absolute() else [*bases, Path()]:
        for form in _forms(name):
            if os.path.isfile(base / form):  # False of what is too long for a path, too
                return base / form
    places = ", ".join(str(base) for base in bases) or "the working directory"
    raise DataError(
        f"the file does not exist (looked in {places}, plain and gzipped)",
        file=name,
        remedy=f"Set {DATA_VARIABLE} to the folder of the data files, or give a full path",
    )


def _forms(name: str) -> tuple[str, str]:
    return (name, name[: -len(".gz")]) if name.endswith(".gz") else (name, name + ".gz")


def read_bytes(path: Path | str, sha256: str | None = None) -> bytes:
    """Return the uncompressed content; `sha256`, if given, is that of the stored or the uncompressed bytes.

    Raises:
        DataError: unreadable, damaged or truncated file, or another checksum than the given one.
    """
    path = Path(path)
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})", file=path, remedy="Check the path and its rights"
        ) from error
    content = stored
    if stored[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(stored)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"not a whole gzip file ({error})", file=path, remedy=TRUNCATED) from error
    if sha256 is not None and str(sha256).lower() not in (digest(stored), digest(content)):
        raise DataError(
            f"its sha256 is {digest(content)}, expected {sha256}",
            file=path,
            remedy="Fetch the file again, or correct the checksum in the configuration",
        )
    return content


def read_text(path: Path | str, sha256: str | None = None) -> str:
    """Return the uncompressed content as text (UTF-8, with or without byte-order mark)."""
    return _decode(read_bytes(path, sha256), path)


def _decode(content: bytes, path: Path | str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", file=path, remedy=TRUNCATED) from error


def read_file(path: Path | str, sha256: str | None = None) -> Source:
    """Read the records of one file: a JSON list, an object with a list `records`, or JSON lines."""
    path = Path(path)
    content = read_bytes(path, sha256)
    return Source(path.name, parse_records(_decode(content, path), path), digest(content))


def parse_records(text: str, file: Path | str) -> list[Any]:
    """Turn the text of a JSON or JSON-lines file into a list of raw records.

    Raises:
        DataError: names the last whole record before a syntax error, and the line.
    """
    if not text.strip():
        raise DataError("the file is empty", file=file, remedy=TRUNCATED)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _parse_lines(text, file, error)
    if isinstance(content, dict) and isinstance(content.get("records"), list):
        content = content["records"]
    if isinstance(content, dict) and len(text.strip().splitlines()) == 1:
        content = [content]
    if not isinstance(content, list):
        kind = type(content).__name__
        raise DataError(
            f"expected a list of records, found {kind}", file=file, remedy="Give a file in an upstream form"
        )
    if not content:
        raise DataError("the list of records is empty", file=file, remedy=TRUNCATED)
    return content


def _parse_lines(text: str, file: Path | str, error: Exception) -> list[Any]:
    """Read JSON lines; a text whose first line is no whole object was meant as one JSON document."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as fault:
            if not records or not isinstance(records[0], dict):
                what = f"not valid JSON ({_reason(error)})"
                raise DataError(what, file=file, record=_last_whole_record(text), remedy=TRUNCATED) from error
            what = f"not valid JSON ({_reason(fault)})"
            raise DataError(what, file=file, record=f"on line {number}", remedy=TRUNCATED) from fault
    return records


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _last_whole_record(text: str) -> str | None:
    """Say where a JSON list breaks off: the number of the record that cannot be read (counted from 0)."""
    decoder, position, count = json.JSONDecoder(), text.find("[") + 1, 0
    if position == 0:
        return None
    separator = re.compile(r"[\s,]*")
    while match := separator.match(text, position):
        try:
            _, position = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        count += 1
    return f"number {count} (counted from 0)"


def read_hub(hub: Mapping[str, Any]) -> Source:
    """Read a hub data set at a pinned revision; code that the repository may hold is never run.

    Args:
        hub: `id` (owner/name), `revision` (40 hexadecimal digits), and either `file` (one file of the
            repository, read as a local one) or `split` (default "train") with an optional `config`.

    Raises:
        SettingsError: unknown or missing field, or a revision that is not a commit.
        DataError: the data set cannot be fetched, or its content is not as expected.
    """
    identifier, revision = check_hub(hub)
    if hub.get("file"):
        return replace(read_file(_download(hub)), name=f"{identifier}:{hub['file']}", revision=revision)
    rows = [dict(row) for row in _load_split(hub)]
    content = json.dumps(rows, sort_keys=True, ensure_ascii=True, default=str).encode()
    return Source(f"{identifier}:{hub.get('split', 'train')}", rows, digest(content), revision)


def hub_rows(hub: Mapping[str, Any]) -> Sequence[Any]:
    """Rows of a hub data set at a pinned revision, to be looked up by number: a split stays on disk and may be larger
    than memory. Fields and errors as for `read_hub`."""
    check_hub(hub)
    if hub.get("file"):
        return read_hub(hub).records
    rows: Sequence[Any] = _load_split(hub)
    return rows


def check_hub(hub: Mapping[str, Any]) -> tuple[str, str]:
    """Return id and revision of a hub entry, or say what is wrong with it."""
    if not isinstance(hub, Mapping) or (unknown := set(hub) - HUB_FIELDS):
        found = sorted(unknown) if isinstance(hub, Mapping) else type(hub).__name__
        raise SettingsError(f"hub: unexpected {found}; allowed are {', '.join(sorted(HUB_FIELDS))}")
    identifier, revision = hub.get("id"), hub.get("revision")
    if not isinstance(identifier, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", identifier):
        raise SettingsError(f"hub.id: expected a name such as owner/name, found {identifier!r}")
    if not isinstance(revision, str) or not PINNED.fullmatch(revision):
        raise SettingsError(
            f"hub.revision of {identifier}: expected a commit of 40 hexadecimal digits, found {revision!r}. "
            "A branch or tag can move; copy the commit from the data set's page"
        )
    for name in ("file", "config", "split", "column"):
        value = hub.get(name)
        if value is not None and (not isinstance(value, str) or _leads_out(value)):
            raise SettingsError(
                f"hub.{name} of {identifier}: expected a name inside the repository, found {value!r}"
            )
    return identifier, revision


def _leads_out(name: str) -> bool:
    """Whether a name could mean a place outside of the folder it is looked up in."""
    parts = name.replace("\\", "/").split("/")
    return "\0" in name or name.startswith("/") or ".." in parts or ":" in parts[0]


def _download(hub: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub["id"], hub["file"], repo_type="dataset", revision=hub["revision"]))
    except Exception as error:  # the hub's client raises many unrelated types; all mean the same to the user
        raise _hub_error(hub, error) from error


def _load_split(hub: Mapping[str, Any]) -> Any:
    import datasets

    # Versions before 4 could run a repository's loading script.
    guard = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
    try:
        split = hub.get("split", "train")
        return datasets.load_dataset(
            hub["id"], hub.get("config"), split=split, revision=hub["revision"], **guard
        )
    except Exception as error:  # see above
        raise _hub_error(hub, error) from error


def _hub_error(hub: Mapping[str, Any], error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    remedy = "Check id, revision, file or split, and the connection; offline, give a local file instead"
    return DataError(f"cannot be fetched from the hub ({reason})", file=hub["id"], remedy=remedy)


def open_source(spec: Mapping[str, Any], folder: Path | str | None = None) -> Source:
    """Read the records that `spec` names by `file` (with optional `sha256`) or by `hub`."""
    if (spec.get("file") is None) == (spec.get("hub") is None):
        raise SettingsError("give either 'file' or 'hub' of a data set, not both or none")
    if spec.get("hub") is not None:
        return read_hub(spec["hub"])
    name = spec["file"]
    source = read_file(locate(name, folder), spec.get("sha256"))
    return source if Path(name).is_absolute() else replace(source, name=name)


def digest(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()
