"""Files of real data that a test needs."""

from __future__ import annotations

import pytest

from palimpsest.data.sources import locate
from palimpsest.errors import DataError


def have(*names: str) -> None:
    """Skip where a file (in its plain or gzipped form) is not there."""
    for name in names:
        try:
            locate(name)
        except DataError as error:
            pytest.skip(str(error))
