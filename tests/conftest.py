"""Shared fixtures: tiny models of every family, and where real data lies (or a reason to skip)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # tests/tiny.py is imported as `tiny`


# The same examples everywhere; how long one takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "palimpsest", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("palimpsest")
# Modules whose fixture takes seconds: their tests share a worker.
TOGETHER = {"test_claims", "test_grace_claims", "test_figures", "test_grace_figures", "test_learned_figures"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Dear fixtures are made once, and whole workflows start first, so that no worker waits for one at the end."""
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: "workflow" not in item.path.parts)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Rows must not depend on how many threads a machine has."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real public data: $PALIMPSEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("PALIMPSEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        assert "PALIMPSEST_DATA" not in os.environ, f"PALIMPSEST_DATA names no folder: {folder}"
        pytest.skip(f"no real data: set PALIMPSEST_DATA (looked in {folder})")
    return folder


@pytest.fixture(params=["gpt2", "gptj", "llama"])
def model(request):
    """A fresh tiny model of each family."""
    from tiny import tiny_model

    return tiny_model(request.param)


@pytest.fixture
def gpt2():
    """A fresh tiny GPT-2."""
    from tiny import tiny_model

    return tiny_model("gpt2")
