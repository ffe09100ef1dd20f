"""What `palimpsest list KIND` shows: editors, figures, claims, and what a scale is made of, as plain data and as a table."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from palimpsest.config import read_yaml, repository_root
from palimpsest.errors import PalimpsestError

KINDS = ("editors", "figures", "claims", "datasets", "models", "experiments")
SCALELESS = ("editors", "claims")  # the same at every scale
WIDTH = 120  # of a table that goes into a file or another program
LONGEST_WORD = 40  # longer ones may be broken to fit
GAP = "  "
# Columns of a table, in order. What else there is stands in the last one, but for claims: the tests that they are made of
# are for the JSON form.
COLUMNS = {
    "editors": ("name", "title", "variants", "needs_statistics", "learns"),
    "claims": ("paper", "name", "text", "location"),
    "datasets": ("name", "title", "reader", "task", "source"),
    "models": ("name", "kind", "family", "preset", "source", "seed"),
}
EXPERIMENT_COLUMNS = ("name", "item", "title", "drawer", "protocol")
HEXADECIMAL = re.compile(r"[0-9a-f]{32,}")


def list_kind(kind: str, scale: str = "mini") -> list[dict[str, Any]]:
    """Objects with `name` and what else a reader wants to know.

    Raises:
        PalimpsestError: an unknown scale.
    """
    if kind == "editors":
        return _editors()
    if kind == "claims":
        return _claims()
    scale_file = repository_root() / "config" / f"{scale}.yaml"
    if not scale_file.is_file():
        known = sorted(path.stem for path in scale_file.parent.glob("*.yaml"))
        raise PalimpsestError(f"there is no scale {scale!r}. Known scales: {', '.join(known)}")
    content = read_yaml(scale_file)
    if kind in ("datasets", "models"):
        return [{"name": name, **{key: value for key, value in entry.items() if not isinstance(value, dict)}}
                for name, entry in content[kind].items()]  # fmt: skip
    declared: dict[str, Any] = {}
    for path in sorted((repository_root() / "config" / "experiments").glob("*.yaml")):
        declared |= read_yaml(path)["experiments"]
    wanted = [name for name in content["experiments"] if kind == "experiments" or name in declared]
    return [
        {
            "name": name,
            **{key: declared[name].get(key, "") for key in ("item", "title", "drawer", "protocol")},
        }
        for name in wanted
    ]


def table(kind: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as an aligned table with a header, as wide as the terminal; long cells go on in the next line."""
    if not entries:
        return f"There are no {kind} at this scale."
    wanted = COLUMNS.get(kind, EXPERIMENT_COLUMNS)
    keys = [key for key in wanted if any(_cell(entry.get(key)) for entry in entries)]
    rows = [[*(_cell(entry.get(key)) for key in keys), _rest(kind, entry, wanted)] for entry in entries]
    header = [*(key.replace("_", " ") for key in keys), "more"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    widths = _fitted([list(column) for column in zip(header, *rows, strict=True)])
    lines = [*_lines(header, widths), *_lines(["-" * width for width in widths], widths)]
    return "\n".join([*lines, *(line for row in rows for line in _lines(row, widths))])


def _rest(kind: str, entry: Mapping[str, Any], shown: Sequence[str]) -> str:
    if kind == "claims":
        return ""
    found = {key: _cell(value) for key, value in entry.items() if key not in shown}
    return "; ".join(f"{key}: {words}" for key, words in found.items() if words)


def _fitted(columns: Sequence[Sequence[str]]) -> list[int]:
    """Widths that fit into a line: the widest columns give way first, as far as their words allow."""
    widths = [max(map(len, column)) for column in columns]
    words = [max((len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    least = [min(longest, LONGEST_WORD) for longest in words]
    room = shutil.get_terminal_size((WIDTH, 24)).columns - len(GAP) * (len(widths) - 1)
    while sum(widths) > room:
        free = [place for place, width in enumerate(widths) if width > least[place]]
        if not free:  # rather a wide table than no words
            break
        widths[max(free, key=widths.__getitem__)] -= 1
    return widths


def _lines(cells: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    """One row; its cells are broken between words."""
    wrapped = [
        textwrap.wrap(cell, width, break_on_hyphens=False) or [""]
        for cell, width in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, wrapped))):
        parts = [lines[number] if number < len(lines) else "" for lines in wrapped]
        yield GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    """One value in words; nothing for what is not said."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = ", ".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)
    return HEXADECIMAL.sub(
        lambda digits: digits[0][:12] + "…", words
    )  # enough to know a commit or checksum by


def _editors() -> list[dict[str, Any]]:
    from palimpsest.editors import editor_class, editor_names

    found = []
    for name in editor_names():
        path = repository_root() / "config" / "editors" / f"{name}.yaml"
        content = read_yaml(path) if path.is_file() else {}
        variants = ["default", *(variant for variant in content.get("variants", {}) if variant != "default")]
        needs = {key: getattr(editor_class(name), key) for key in ("needs_statistics", "learns")}
        found.append({"name": name, "title": content.get("title", name), "variants": variants, **needs})
    return found


def _claims() -> list[dict[str, Any]]:
    from palimpsest.published import claims

    listed = []
    for path in sorted((repository_root() / "config" / "experiments").glob("*.yaml")):
        paper = read_yaml(path)["paper"]
        for claim in claims(paper):
            listed.append({**claim, "name": claim.get("name") or claim.get("id"), "paper": paper})
    return listed
