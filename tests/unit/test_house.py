"""The limits of the house, read from the syntax tree of every source file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT / "src")))
def test_limits(file):
    """At most 400 lines; print only in cli.py; no star import, no eval or exec, no pickle; a docstring at the top."""
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "say in a sentence what the file is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"*", "pickle", "joblib", "dill"}, f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"line {node.lineno}"
            assert node.func.id != "print" or file.name == "cli.py", f"line {node.lineno}"


def test_no_two_classes_have_one_name():
    """But for each editor's Settings, and what a file keeps to itself."""
    found: dict[str, list[str]] = {}
    for file in SOURCES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name != "Settings" and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(file.name)
    assert not {name: files for name, files in found.items() if len(files) > 1}


def test_imports_run_one_way():
    """edits <- data, models <- statistics, learning <- editors <- protocols <- runs; drawing and judging know no model."""
    allowed = {
        "data": {"edits", "data"},
        "models": {"edits", "models"},
        "statistics": {"edits", "models", "statistics"},
        "learning": {"edits", "models", "learning"},
        "editors": {"edits", "models", "statistics", "learning", "editors"},
        "metrics": {"edits", "models", "metrics"},
        "protocols": {"edits", "data", "models", "learning", "editors", "metrics", "protocols", "results"},
        "figures": {"figures", "published", "results", "claims"},
        "claims": {"figures", "published", "results", "claims"},
    }
    everywhere = {"errors", "files", "interruption", "plain", "provenance", "text_files"}
    for file in SOURCES:
        parts = file.relative_to(ROOT / "src" / "palimpsest").parts
        layer = "claims" if parts[0].startswith("claim") else parts[0].removesuffix(".py")
        if layer not in allowed:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("palimpsest"):
                names = (
                    [node.module]
                    if node.module != "palimpsest"
                    else [f"palimpsest.{a.name}" for a in node.names]
                )
                for name in names:
                    used = name.split(".")[1] if "." in name else ""
                    used = "claims" if used.startswith("claim") else used
                    assert used in allowed[layer] | everywhere | {""}, f"{file.name} imports {name}"


def test_the_map_of_what_editors_share_is_whole():
    """Each module of the folder stands on it once."""
    folder = ROOT / "src" / "palimpsest" / "editors" / "shared"
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    entries = re.findall(r"^    (\w+(?:, \w+)*)  ", text, re.MULTILINE)
    named = [name for entry in entries for name in entry.split(", ")]
    assert sorted(named) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_who_cites_the_specification_names_its_page():
    """An editor of one's own need not have one."""
    for file in (ROOT / "src" / "palimpsest" / "editors").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        pages = re.findall(r"docs/spec/\w+\.md", text)
        assert pages or not re.search(r"\b[Ss]pec(, section| quirk)? \w?\d|\(Q\d", text), file.name
        assert all((ROOT / page).is_file() for page in pages), file.name


def test_extras_that_are_named_exist():
    """In messages, comments and documents: what to install, and "the extra" with its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    folders = [ROOT / name for name in ("config", "docs", "profiles", "src", "workflow")]
    files = [ROOT / "README.md", *(file for folder in folders for file in folder.rglob("*"))]
    for file in files:
        if file.suffix in (".md", ".py", ".yaml", ".smk"):
            text = " ".join(file.read_text(encoding="utf-8").split())
            named |= set(re.findall(r"\bextra `(\w+)`", text))
            named |= {name for group in re.findall(r'"\.\[([\w,]+)\]"', text) for name in group.split(",")}
    assert named >= {"court", "slurm"} and named <= set(project["optional-dependencies"]), named


def test_style_is_clean():
    """ruff finds nothing, and formatting changes nothing."""
    for command in (("check", "."), ("format", "--check", ".")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
