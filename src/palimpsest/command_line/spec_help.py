"""The keys of a SPEC for `--help`, taken from the code that reads them, so that the two cannot part.

Modules are only parsed, as in provenance.py: importing them would load torch for a page of help. Names and defaults are those
of a settings dataclass or of a constant that lists keys; words are those of the dataclass's docstring or of `spec_words.py`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from functools import cache
from typing import Any

from palimpsest.command_line.spec_words import NOTES, PARTS, WORDS, Part
from palimpsest.errors import PalimpsestError
from palimpsest.provenance import module_file

WIDTH = 118
INDENT = 26  # where the explanations start
NOTHING = object()
# "batch, length: rows a step; seed: ..." in an `Attributes` section, after `inspect.cleandoc`.
ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")
FURTHER = re.compile(r"; (?=\w+(?:, \w+)*: )")
AS_JSON = {"None": "null", "True": "true", "False": "false"}
PYTHON = re.compile(rf"`?\b({'|'.join(AS_JSON)})\b`?")
SENTENCE_END = re.compile(r"\.(?: (?=[A-Z])|$)")


def text(command: str, flag: str = "--spec") -> str:
    """The part of a command's help that lists the keys; nothing for a command without a SPEC."""
    parts = PARTS.get(command, ())
    if not parts:
        return ""
    heading = f"keys of {flag} (* must be given; in brackets what holds when one is left out):"
    blocks = [heading, *(_block(part) for part in parts), *([NOTES[command]] if command in NOTES else [])]
    return "\n" + "\n\n".join(blocks) + "\n"


def keys(part: Part) -> dict[str, Any]:
    """Names of the keys of a part, in order, with their defaults; NOTHING where there is none."""
    found: dict[str, Any] = {}
    for place in part.read:
        found |= _keys(place)
    found = {name: default for name, default in found.items() if name not in part.without}
    return found | {name: NOTHING for name in part.further if name not in found}


def required(part: Part) -> set[str]:
    """Those that must be given: fields of dataclasses without a default, and what the part says."""
    fields = {
        name
        for place in part.read
        if _is_class(place)
        for name, default in _keys(place).items()
        if default is NOTHING
    }
    listed = {name for place in part.must_read for name in _keys(place)}
    return (fields | listed | set(part.must)) & set(keys(part))


def words(part: Part) -> dict[str, str]:
    """Explanation of each key: the part's own, else that of a docstring, else the common one."""
    told: dict[str, str] = {}
    for place in (*part.read, *part.explained_by):
        if _is_class(place):
            told |= _told(place)
    return {name: part.words.get(name) or told.get(name) or WORDS.get(name, "") for name in keys(part)}


def _block(part: Part) -> str:
    explained, must = words(part), required(part)
    lines: list[str] = []
    first: dict[str, str] = {}  # explanation -> the key that has it: some explain several at once
    for name, default in sorted(keys(part).items(), key=lambda entry: entry[0] not in must):
        said = explained[name]
        shown = f"see {first[said]}" if said in first else said
        first.setdefault(said, name)
        if default not in (NOTHING, None) and "when left out" not in said:
            shown += f" [{_plain(default)}]"
        left = f"    {name}{'*' if name in must else ''}"
        if len(left) > INDENT - 2:
            lines, left = [*lines, left], ""
        body = textwrap.wrap(shown, WIDTH - INDENT, break_on_hyphens=False)
        lines += [(left if number == 0 else "").ljust(INDENT) + line for number, line in enumerate(body)]
    return "\n".join([f"  {part.title}", *lines])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# Reading the code --------------------------------------------------------------------------------------------------------


@cache
def _tree(module: str) -> ast.Module:
    file = module_file(f"palimpsest.{module}")
    if file is None:
        raise PalimpsestError(f"there is no module palimpsest.{module}. Correct spec_words.py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(place: str) -> tuple[str, ast.ClassDef | ast.Assign | ast.AnnAssign]:
    """The class or constant "module:NAME" means, and the module it is in; imported names are followed."""
    module, _, name = place.partition(":")
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in [getattr(t, "id", "") for t in targets]:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in [entry.asname or entry.name for entry in node.names]:
            return _find(f"{(node.module or '').removeprefix('palimpsest.')}:{name}")
    raise PalimpsestError(f"palimpsest.{module} has no {name}. Correct spec_words.py")


def _is_class(place: str) -> bool:
    return isinstance(_find(place)[1], ast.ClassDef)


def _keys(place: str) -> dict[str, Any]:
    """Fields of a dataclass and of those it is made from; or names in a constant: a set, a tuple, or a dict with defaults."""
    module, node = _find(place)
    if not isinstance(node, ast.ClassDef):
        value = _value(module, node.value)
        if isinstance(value, dict):
            return value
        return dict.fromkeys(sorted(value) if isinstance(value, set) else value, NOTHING)
    found: dict[str, Any] = {}
    for base in node.bases:
        found |= _keys(f"{module}:{ast.unparse(base)}")
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            found[entry.target.id] = NOTHING if entry.value is None else _value(module, entry.value)
    return found


def _value(module: str, node: ast.AST | None) -> Any:
    """A default as plain data; as it is written where it is no literal."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        made = next((word.value for word in node.keywords if word.arg == "default_factory"), None)
        return _value(module, made.body) if isinstance(made, ast.Lambda) else {}
    if isinstance(node, ast.Name):
        found, constant = _find(f"{module}:{node.id}")
        return _value(found, constant.value) if not isinstance(constant, ast.ClassDef) else node.id
    assert node is not None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _told(place: str) -> dict[str, str]:
    """Field -> first sentence of what the docstring's `Attributes` say, base classes first."""
    module, node = _find(place)
    assert isinstance(node, ast.ClassDef)
    told: dict[str, str] = {}
    for base in node.bases:
        told |= _told(f"{module}:{ast.unparse(base)}")
    lines = inspect.cleandoc(ast.get_docstring(node) or "").partition("Attributes:\n")[2].splitlines()
    entries: list[str] = []
    for line in lines:
        if ENTRY.match(line):
            entries.append(line)
        elif entries:
            entries[-1] += " " + line.strip()
    for entry in (part for whole in entries for part in FURTHER.split(whole.strip())):
        names, _, said = entry.partition(": ")
        for name in names.split(", "):
            told[name] = PYTHON.sub(lambda word: AS_JSON[word[1]], SENTENCE_END.split(said)[0])
    return told
