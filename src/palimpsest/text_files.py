"""Texts that people give: read line by line, refused with file and line where they are no UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from palimpsest.errors import DataError


def text_lines(path: Path | str, remedy: str = "Check the path") -> Iterator[str]:
    """Lines of a UTF-8 text with their ends, one after another: of a large file only one is in memory.

    Args:
        remedy: what to do where there is no such file.

    Raises:
        DataError: while it is read, a missing or unreadable file, or a line that is no UTF-8, named by its number.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            yield from file
    except FileNotFoundError as error:
        raise DataError("the file does not exist", file=path, remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (OSError, ValueError) as error:  # ValueError: what no file name can hold
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the file cannot be read ({reason})", file=path, remedy="Check the path and its rights"
        ) from error


def _not_utf8(path: Path | str) -> DataError:
    """The error for a text in another encoding. Which line it is tells only a second look: texts are decoded by the block."""
    what, place = "not UTF-8 text", None
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                what += f" (byte {error.start + 1} of the line is {line[error.start]:#04x})"
                place = f"line {number}"
                break
    remedy = "Save the file as UTF-8 text, unpacked (iconv -f LATIN1 -t UTF-8, where it is Latin-1)"
    return DataError(what, file=path, record=place, remedy=remedy)
