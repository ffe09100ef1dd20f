"""`python -m palimpsest` is the console script `palimpsest`."""

from __future__ import annotations

import sys

from palimpsest.cli import main

if __name__ == "__main__":
    sys.exit(main())
