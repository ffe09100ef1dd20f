"""`python -m palimpsest` is the console script `palimpsest`; within a workflow a warm process does the work (warm.py)."""

from __future__ import annotations

import sys

from palimpsest.warm import hand_over

if __name__ == "__main__":
    status = hand_over(sys.argv[1:])
    if status is None:
        from palimpsest.cli import main

        status = main()
    sys.exit(status)
