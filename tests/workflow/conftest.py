"""Fixtures that run the workflow once for many tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/workflow/snake.py is imported as `snake`

from snake import ROOT, run_snakemake, text_of


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources that a test may change; the smoke run is made with it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("Snakefile", "workflow", "config", "profiles", "envs", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="session")
def smoke(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run, made once: the directory it was made in. Tests that use it share one worker."""
    directory = tmp_path_factory.mktemp("smoke")
    done = run_snakemake(
        directory,
        "--cores",
        "2",
        "--configfile",
        str(checkout / "config" / "smoke.yaml"),
        snakefile=checkout / "Snakefile",
    )
    assert done.returncode == 0, text_of(done)[-6000:]
    return directory
