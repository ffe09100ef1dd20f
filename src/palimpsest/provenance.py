"""Where a result comes from: which source, which files, which versions made it.

The source digest is what makes the workflow rerun by content: it covers the modules a job can reach through its
imports, and nothing else, so that a change in one editor touches only that editor's runs. Nothing is imported to
find this out; the modules are only parsed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from palimpsest.errors import PalimpsestError

PACKAGE = "palimpsest"
# These find modules by name and compute nothing. Were their imports followed, every module would be in every digest;
# were their text digested, adding one editor (or raising the version) would rerun everything.
LEAVES = frozenset({PACKAGE, f"{PACKAGE}.editors", f"{PACKAGE}.figures", f"{PACKAGE}.protocols"})
REPORTED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
)


def source_root() -> Path:
    """The directory that holds the package directory."""
    return Path(__file__).resolve().parents[1]


def module_file(name: str, root: Path | None = None) -> Path | None:
    """The file of a module of the package, or None when there is no such module."""
    base = (root or source_root()).joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def import_closure(*modules: str, root: Path | None = None) -> dict[str, Path]:
    """All modules of the package that `modules` can import, with their files; leaves are left out.

    Imports inside functions count, imports under `if TYPE_CHECKING` do not: they change no number.
    """
    found: dict[str, Path] = {}
    root = root or source_root()  # once: this asks the disk
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name in LEAVES:
            continue
        file = module_file(name, root)
        if file is None:
            raise PalimpsestError(
                f"there is no module {name}. Check the name of the editor, protocol or figure"
            )
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(package, file.read_text(encoding="utf-8"), root)
    return found


def source_digest(*modules: str, root: Path | None = None, files: Iterable[Path] = ()) -> str:
    """Sixteen hexadecimal digits over the import closure of `modules` and over further `files` they read."""
    digest = hashlib.sha256()
    for name, file in sorted(import_closure(*modules, root=root).items()):
        digest.update(name.encode() + b"\0" + file.read_bytes())
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def digest_of_run(spec: Mapping[str, Any]) -> str:
    """Digest of the modules that can change a run's numbers."""
    return source_digest(
        "palimpsest.runs.run",
        f"palimpsest.protocols.{spec['protocol']}",
        f"palimpsest.editors.{spec['editor']}",
    )


def file_fingerprint(path: Path | str) -> str:
    """Sixteen hexadecimal digits over a file's bytes."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise PalimpsestError(
            f"cannot read {path}: {error.strerror}. Run the rule that makes it, or check the path"
        ) from error
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    found = {"python": platform.python_version(), PACKAGE: _package_version()}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(directory: Path | None = None) -> dict[str, Any]:
    """Commit of the source and whether it was changed since; both None outside a repository."""
    directory = directory or source_root()
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain"))}


@functools.cache  # a workflow asks for the same files hundreds of times, and parsing takes most of it
def _imports(package: str, text: str, root: Path) -> tuple[str, ...]:
    """Names of the package's modules that a source text in `package` imports."""
    found: dict[str, None] = {}
    for node in _reachable(ast.parse(text).body):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        else:
            base = _absolute(node, package)
            found |= dict.fromkeys((*(f"{base}.{alias.name}" for alias in node.names), base))
    inside = (name for name in found if name == PACKAGE or name.startswith(PACKAGE + "."))
    return tuple(name for name in inside if module_file(name, root))


def _reachable(statements: Iterable[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports in these statements and below, without those that only a type checker sees."""
    for node in statements:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and any(
            "TYPE_CHECKING" in (getattr(part, "id", None), getattr(part, "attr", None))
            for part in ast.walk(node.test)
        ):
            yield from _reachable(node.orelse)
        else:  # expressions hold no statements, and are most of a file
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _reachable(getattr(node, part, ()))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _package_version() -> str:
    from palimpsest import __version__

    return __version__


def _git(directory: Path, *arguments: str) -> str | None:
    # Without the lock that `status` takes to refresh the index: a run that is killed just then would leave it to the user's git.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
