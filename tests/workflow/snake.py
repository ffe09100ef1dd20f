"""Running Snakemake in tests: in a directory of its own, by the interpreter of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_snakemake(directory: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile", **environment: str):
    """Run Snakemake and capture everything; the caller judges the exit status."""
    command, env = _call(directory, arguments, snakefile, environment)
    return subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, timeout=3600, check=False
    )


def start_snakemake(
    directory: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile", **environment: str
):
    """The same, without waiting for it, in a session of its own; what it says goes nowhere."""
    command, env = _call(directory, arguments, snakefile, environment)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, cwd=directory, env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )


def _call(directory: Path, arguments: Sequence[str], snakefile: Path, environment: Mapping[str, str]):
    # Snakemake makes a folder for caches even when it keeps nothing there: the home may be read-only.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(directory / ".cache"), **environment}
    for name in ("PALIMPSEST_DATA", "PALIMPSEST_WARM", "PYTHONPATH"):
        if name not in environment:
            env.pop(name, None)
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(snakefile),
        "--directory",
        str(directory),
        *arguments,
    ], env


def text_of(done: subprocess.CompletedProcess) -> str:
    """Both streams: where a dry run prints depends on whether output is captured."""
    return done.stdout + done.stderr


def job_counts(done: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs of each rule, from the table of a dry run."""
    counts: dict[str, int] = {}
    for name, number in re.findall(r"^(\w+)\s+(\d+)\s*$", text_of(done), flags=re.MULTILINE):
        counts[name] = int(number)
    return counts
