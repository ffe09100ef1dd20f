"""The source digest: what a job can reach, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from palimpsest.errors import PalimpsestError
from palimpsest.provenance import file_fingerprint, git_state, import_closure, source_digest, versions


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package called palimpsest: runs -> shared, one.py -> tools; the registry imports everything."""
    files = {
        "__init__.py": "from palimpsest import runs, one, two",
        "runs.py": "from palimpsest.editors import make_editor\nfrom palimpsest import shared\n",
        "shared.py": "import json\n",
        "editors/__init__.py": "from palimpsest.editors import one, two",
        "editors/one.py": "def lazy():\n    from . import tools\n",
        "editors/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from palimpsest.editors import one\nfrom ..shared import x\n",
        "editors/tools.py": "from palimpsest.shared import y\n",
    }
    for name, text in files.items():
        (tmp_path / "palimpsest" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "palimpsest" / name).write_text(text)
    return tmp_path


def test_closure_follows_imports_of_every_kind_but_not_leaves(package: Path):
    assert set(import_closure("palimpsest.runs", root=package)) == {"palimpsest.runs", "palimpsest.shared"}
    assert set(import_closure("palimpsest.editors.one", root=package)) == {
        "palimpsest.editors.one", "palimpsest.editors.tools", "palimpsest.shared",
    }  # fmt: skip
    # what only a type checker sees changes no number
    assert set(import_closure("palimpsest.editors.two", root=package)) == {
        "palimpsest.editors.two",
        "palimpsest.shared",
    }


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ("editors/one.py", True),
        ("editors/tools.py", True),
        ("shared.py", True),
        ("editors/two.py", False),
        ("__init__.py", False),
        ("editors/__init__.py", False),
    ],
)
def test_digest_changes_exactly_with_what_is_reached(package: Path, changed: str, differs: bool):
    before = source_digest("palimpsest.editors.one", root=package)
    file = package / "palimpsest" / changed
    file.write_text(file.read_text() + "\n# changed\n")
    assert (source_digest("palimpsest.editors.one", root=package) != before) is differs


def test_digest_covers_files_that_are_read(package: Path, tmp_path: Path):
    table = tmp_path / "printed.csv"
    table.write_text("a\n1\n")
    before = source_digest("palimpsest.shared", root=package, files=[table])
    table.write_text("a\n2\n")
    assert source_digest("palimpsest.shared", root=package, files=[table]) != before


def test_real_editors_do_not_reach_each_other():
    closure = set(
        import_closure("palimpsest.runs.run", "palimpsest.protocols.consecutive", "palimpsest.editors.memit")
    )
    assert "palimpsest.editors.memit" in closure
    assert not {f"palimpsest.editors.{name}" for name in ("ft", "rome", "comeba_hk")} & closure
    assert not any(
        name.startswith(("palimpsest.figures", "palimpsest.cli", "palimpsest.experiments"))
        for name in closure
    )


def test_unknown_module_is_named():
    with pytest.raises(PalimpsestError, match=r"palimpsest\.editors\.nowhere"):
        source_digest("palimpsest.editors.nowhere")


def test_fingerprint_is_of_content(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "b")
    with pytest.raises(PalimpsestError, match="missing"):
        file_fingerprint(tmp_path / "missing")


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # wherever temporary folders lie
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_commit_and_whether_the_source_was_changed(tmp_path: Path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", "a.py")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("x = 2\n")
    index = tmp_path / ".git" / "index"
    git("checkout", "-q", "a.py")
    os.utime(tmp_path / "a.py", (1, 1))  # a plain `git status` would write the index anew, under a lock
    before = index.read_bytes()
    assert git_state(tmp_path)["dirty"] is False and index.read_bytes() == before
    (tmp_path / "a.py").write_text("changed again")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_versions_name_what_changes_numbers():
    assert {"python", "palimpsest", "torch", "numpy"} <= set(versions())
