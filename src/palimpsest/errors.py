"""What can go wrong, as one family of exceptions whose text a stranger can act on."""

from __future__ import annotations


class PalimpsestError(Exception):
    """Base of every error raised on purpose. The command line prints its text without a traceback."""


class DataError(PalimpsestError):
    """A file, record or field is not what its schema says."""

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        record: object = None,
        field: str | None = None,
        remedy: str = "",
    ):
        place = [f"file {file}"] if file is not None else []
        place += [f"record {record}"] if record is not None else []
        place += [f"field '{field}'"] if field is not None else []
        text = (", ".join(place) + ": " if place else "") + what
        super().__init__(f"{text}. {remedy}" if remedy else text)
        self.file, self.record, self.field = file, record, field


class SettingsError(PalimpsestError):
    """A setting has a wrong name, type or value."""


class ModelError(PalimpsestError):
    """A model cannot be loaded, is of an unknown family, or lacks what an editor needs."""


class StatisticsError(PalimpsestError):
    """Pre-training statistics are missing, damaged, or belong to another model."""


class EditError(PalimpsestError):
    """One edit cannot be made. Protocols record it as a failed edit and go on."""


class DivergedEdit(EditError):
    """The optimisation or the solve of an edit left the finite numbers."""
