"""Files appear whole or not at all: write beside, flush, rename. One process at a time works on a folder of results."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError, PalimpsestError

try:
    import fcntl
except ImportError:  # not a POSIX system: nobody is kept out
    fcntl = None  # type: ignore[assignment]

AGAIN = "Make the file again"
PART = ".part"  # in the name of what is being written
HALF = (
    f".*-*{PART}*",
    ".tmp??????",
)  # what a killed writer leaves: ours, and safetensors', which writes beside as well
LOCK = ".lock"
CHECKPOINTS = "checkpoints"  # the only folder that a holder writes into below its own
ABANDONED = 60.0  # seconds without a change, of a file that nobody holds
WAIT = 2.0  # seconds for a process that was just killed to be gone


class WriteError(PalimpsestError):
    """A result could not be written; the previous content, if any, is untouched."""


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces `target`, on any error it vanishes.

    The temporary name keeps the target's suffix, because some writers choose their format by it. What killed writers of the
    same target left is removed: most folders have no holder (`only_one`) that would.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, f".{escape(target.stem)}-????????{PART}{escape(target.suffix)}")
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=PART + target.suffix
        )
    except OSError as error:
        raise WriteError(
            f"cannot write {target}: {error.strerror or error}. Check that the folder exists and is writable"
        ) from error
    temporary = Path(name)
    if not _claimed(handle):
        os.close(handle)
        handle = -1
    try:
        with _reported(target):
            yield temporary
            _settle(temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        if handle >= 0:
            os.close(handle)


@contextmanager
def whole_folder(folder: Path | str, drop: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder within `folder`; on success its files replace those of their names, on any error it vanishes.

    For libraries that write several files themselves: nothing of an earlier result is touched before the new one is whole.

    Args:
        drop: patterns of earlier files that go just before, in this order; first what vouches for the others. New files of
            these names take their places last, in the reverse order.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=folder, prefix=f".{folder.resolve().name}-", suffix=PART))
    except OSError as error:
        raise WriteError(
            f"cannot write into {folder}: {error.strerror or error}. Check that it is a folder and writable, with space left"
        ) from error
    try:
        with _reported(folder):
            yield half
            written = sorted(path for path in half.rglob("*") if path.is_file())
            for path in written:
                _settle(path)
            for old in [path for pattern in drop for path in folder.glob(pattern)]:
                old.unlink()
            # What vouches for the others comes last.
            vouching = {
                path: place for place, pattern in enumerate(drop) for path in written if path.match(pattern)
            }
            for path in sorted(written, key=lambda path: -vouching.get(path, len(drop))):
                target = folder / path.relative_to(half)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def _reported(target: Path) -> Iterator[None]:
    """What the system refuses while a result is written, as a WriteError; other errors are the program's own."""
    try:
        yield
    except Exception as error:
        if not _by_the_system(error):
            raise
        raise WriteError(
            f"cannot write {target}: {getattr(error, 'strerror', None) or error}. Free some space and run the command again"
        ) from error


def _by_the_system(error: Exception) -> bool:
    """safetensors wraps the system's error in one of its own, tokenizers in a bare one; neither library is imported here,
    since figures need none of them."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    return type(error) is Exception and "(os error " in str(error)


def _settle(path: Path) -> None:
    """Bring a written file to the disk, with the rights that any new file has."""
    with path.open("rb+") as written:
        _claimed(written.fileno())  # some writers put a file of their own in its place
        os.fsync(written.fileno())
    os.chmod(path, 0o666 & ~_umask())


def remove_abandoned(folder: Path, pattern: str = f".*-????????{PART}*") -> None:
    """Remove what killed writers left in a folder that several processes write into: files of ours that nobody holds.

    A file system without locks does not tell who writes, so nothing is removed there. On one where each machine sees its own
    locks only, the time since the last change does.
    """
    for half in folder.glob(pattern) if fcntl is not None else ():
        with suppress(OSError):  # it is being written, or has just become a result
            handle = os.open(half, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(handle).st_mtime > ABANDONED:
                    half.unlink()
            finally:
                os.close(handle)


def _claimed(handle: int) -> bool:
    """Whether others can see that this file is being written: a lock, which the system lets go of when the process ends."""
    if fcntl is None:
        return False
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def write_atomic(target: Path | str, write: Callable[[Path], Any]) -> None:
    """Call `write(path)` on a temporary path and move the result to `target`."""
    with atomic_path(target) as temporary:
        write(temporary)


def write_text(target: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(target, lambda path: path.write_text(text, encoding="utf-8"))


def write_json(target: Path | str, content: Any, indent: int | None = 2) -> None:
    """Write JSON atomically: sorted keys, two blanks of indent, no NaN (JSON has none).

    Without indent (None) it is written by the C encoder, ten times faster: for files only programs read.
    """
    text = json.dumps(content, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(target, text + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; errors name the file and what to do."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PalimpsestError(
            f"file {path} does not exist. Run the rule that makes it, or check the path"
        ) from error
    except OSError as error:
        raise PalimpsestError(
            f"file {path} cannot be read ({error.strerror or error}). Check the path and its rights"
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, no UTF-8, a number or a nesting beyond all bounds
        raise PalimpsestError(
            f"file {path} is not valid JSON ({error}). It may be truncated: delete it and make it again"
        ) from error


def read_object(path: Path | str, *fields: str) -> dict[str, Any]:
    """Read JSON that must be an object with these fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"expected an object, found {type(content).__name__}", file=path, remedy=AGAIN)
    for name in fields:
        if name not in content:
            raise DataError("the field is missing", file=path, field=name, remedy=AGAIN)
    return content


def read_records(path: Path | str, remedy: str = AGAIN) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, each with its place ("line 3") for messages.

    Raises DataError that names file and line: a missing or unreadable file, a line that is no object or not whole, or half a
    character (a lone surrogate), which no file and no tokenizer takes.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise DataError("the file does not exist", file=path, remedy=remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read ({error})", file=path, remedy=remedy) from error
    for number, line in enumerate(lines, start=1):
        place = f"line {number}"
        try:
            content = json.loads(line)
            if "\\u" in line:
                json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
            raise DataError(f"not valid JSON ({error})", file=path, record=place, remedy=remedy) from error
        if not isinstance(content, dict):
            what = f"expected an object, found {type(content).__name__}"
            raise DataError(what, file=path, record=place, remedy=remedy)
        yield place, content


def proves_damage(error: BaseException) -> bool:
    """Whether an error while a checkpoint is read or taken over is the checkpoint's own: it is cut off, changed, missing, or of
    another form. A machine that is short of memory, or a disk or device that fails, says nothing about it."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return isinstance(cause, FileNotFoundError)
    text = str(error).lower()
    if type(error).__name__ == "SafetensorError":
        return "os error" not in text and "i/o error" not in text
    if isinstance(error, RuntimeError):  # torch has one of its own for memory and, since 2.8, for devices
        return type(error) is RuntimeError and not any(word in text for word in ("memory", "cuda", "nccl"))
    return not isinstance(error, MemoryError)


def unreadable_now(path: Path, error: BaseException) -> PalimpsestError:
    """What is raised instead of beginning anew."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return PalimpsestError(
        f"the checkpoint {path} cannot be taken over now ({type(error).__name__}: {first}). It is kept: see to the memory or the "
        "disk and start the same command again, or remove it to begin anew"
    )


class Pace:
    """How often a long job writes down how far it is: saving takes at most this share of the time since the last save."""

    SHARE = 0.05

    def __init__(self) -> None:
        self._saved_at, self._cost = -math.inf, 0.0

    def due(self) -> bool:
        """Whether enough time has passed for another save (the first one is always due)."""
        return time.monotonic() - self._saved_at >= self._cost / self.SHARE

    @contextmanager
    def saving(self) -> Iterator[None]:
        """For the length of a save: how long it takes decides when the next is due."""
        start = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start


class BusyError(PalimpsestError):
    """Another process works on the same folder of results."""


@contextmanager
def only_one(folder: Path | str | None) -> Iterator[None]:
    """Hold a folder of results for the length of a block; what killed writers left half-written there is removed.

    Only there and among its checkpoints: folders below may be those of others, who write into them at the same time.

    The system lets go of the lock when the process ends, however it ends. None holds nothing.

    Raises:
        BusyError: another process holds the folder; nothing has changed then.
        WriteError: the folder cannot be made or written.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    new = not folder.exists()
    try:
        held = _lock(folder / LOCK)
    except OSError as error:
        raise WriteError(
            f"cannot write into {folder}: {error.strerror or error}. Check that it is a folder and writable, with space left"
        ) from error
    try:
        for place in (folder, folder / CHECKPOINTS):
            for half in (path for pattern in HALF for path in place.glob(pattern)):
                if half.is_symlink():
                    continue
                if half.is_file():
                    half.unlink(missing_ok=True)
                elif PART in half.name:  # of `whole_folder`; others' folders are not ours to remove
                    shutil.rmtree(half, ignore_errors=True)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(held)
        if new:
            with suppress(OSError):  # there is something in it, or another process has begun there
                folder.rmdir()  # bad input leaves nothing, not even a place for results


def _lock(path: Path) -> int:
    """Descriptor of the locked file; its folder is made."""
    until = time.monotonic() + WAIT
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if (held := _try_lock(path)) is not None:
                return held
        except FileNotFoundError:  # who made the folder left nothing in it and has just taken it away
            if time.monotonic() > until:
                raise
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise BusyError(
                    f"another process is working on {path.parent}. Wait until it has ended, or give another folder"
                ) from error
        time.sleep(0.05)


def _try_lock(path: Path) -> int | None:
    """The same at once, or BlockingIOError; None when the file was removed meanwhile: a lock on that keeps nobody out."""
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(held), path.stat()):
            return held
    except BlockingIOError:
        os.close(held)
        raise
    except FileNotFoundError:  # its owner has ended; a third process may hold the next one
        pass
    except OSError:  # a file system without locks
        return held
    os.close(held)
    return None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
