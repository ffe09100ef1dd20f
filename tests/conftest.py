"""Shared fixtures: tiny models of every family, and where real data lies (or a reason to skip)."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # tests/tiny.py is imported as `tiny`


# The same examples everywhere; how long one takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "palimpsest", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("palimpsest")
# Tests start many commands, and each would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Workers take whole files, in this order: what takes minutes comes first, so that no worker waits for it at the end.
LONGEST = ("test_smoke", "test_interruption", "test_graph", "test_environments")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes in the tests of the mathematics and in a quarter of the others: in all it doubles their time.

    PALIMPSEST_SHAPES=all checks them everywhere, but never where bad input is the subject: the checker would refuse it
    before the code does, which no user has.
    """
    everywhere = os.environ.get("PALIMPSEST_SHAPES") == "all" or "numeric" in item.path.parts
    checked = everywhere or zlib.crc32(item.nodeid.encode()) % 4 == 0
    bad_input = item.path.stem in ("test_fuzz", "test_bad_input", "test_plain")
    jaxtyping.config.update("jaxtyping_disable", bad_input or not checked)


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
