"""Copy what was drawn into `docs/gallery`, with an index that GitHub shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from palimpsest.errors import DataError
from palimpsest.figures.captions import scale_words
from palimpsest.files import read_object, write_atomic, write_text

# Draws into `figures` itself, all others into `figures/SCALE`; its gallery holds theirs.
DEFAULT_SCALE = "mini"
# In the order of the page; figures of no known paper come last.
PAPERS = {"comeba_hk": "COMEBA-HK", "grace": "GRACE", "mend": "MEND", "serac": "SERAC", "": "Further figures"}
TITLE = re.compile(r"\*\*(.+?)\.?\*\*")  # how a caption begins


def collect(
    figures_dir: Path | str,
    target_dir: Path | str,
    only: Sequence[str] | None = None,
    results: Path | None = None,
    papers: Mapping[str, str] | None = None,
) -> list[Path]:
    """Copy picture, caption and markdown table of every finished figure; write `README.md`; return the files.

    Pictures of figures that are gone from `figures_dir` are removed from the gallery.

    Args:
        only: names of the figures and tables to show; None shows all.
        results: directory that holds runs/, to say of which commits and days they are; None says nothing.
        papers: of each figure the paper that it belongs to, by its key; the page is grouped by them.

    Raises:
        DataError: there is nothing to show.
    """
    source, target = Path(figures_dir), Path(target_dir)
    names = sorted(
        (path.name.removesuffix(".caption.md") for path in source.glob("*.caption.md")), key=_natural
    )
    missing = sorted(set(only or ()) - set(names))
    if missing:
        raise DataError(
            f"no figure is called {missing[0]!r}", file=source, remedy=f"There are: {', '.join(names)}"
        )
    names = [name for name in names if only is None or name in only]
    if not names:
        raise DataError("no figure has been drawn", file=source, remedy="Run the workflow first")
    captions = {name: (source / f"{name}.caption.md").read_text(encoding="utf-8").strip() for name in names}
    scale = _scale(source)
    about = scale_words(scale)
    shared = about and any(about in caption for caption in captions.values())
    verdicts = sorted(path.name for path in source.glob("claims*.md"))
    groups = _by_paper(names, verdicts, papers or {})
    lines = ["# Gallery", "", *([about, ""] if shared else []), *_made(scale)]
    if results is not None and (origin := _origin(results, source)):
        lines += [origin, ""]
    lines += _other_galleries(target)
    for paper, (shown, judged) in groups.items():
        lines += [f"**{PAPERS[paper]}**", ""]
        lines += [f"* [The claims and their verdicts{_cited(source / name)}]({name})" for name in judged]
        lines += [f"* [{name}](#{name}): {_title(captions[name])}" for name in shown] + [""]
    written = []
    for paper, (shown, _) in groups.items():
        lines += [f"## {PAPERS[paper]}", ""] if shown else []
        for name in shown:
            lines += [f"### {name}", ""]
            if (source / f"{name}.png").is_file():
                written.append(_copy(source / f"{name}.png", target))
                lines += [f"![{name}]({name}.png)", ""]
            if (source / f"{name}.md").is_file():
                written.append(_copy(source / f"{name}.md", target))
                lines += [f"[as text]({name}.md)", ""]
            # What holds for the whole page stands at its head.
            lines += [captions[name].replace(f" {about}", "", 1) if about else captions[name], ""]
    written += [_copy(source / name, target) for name in verdicts]
    write_text(target / "README.md", "\n".join(lines))
    written.append(target / "README.md")
    for old in target.glob("*"):
        if old.suffix in (".png", ".md") and old not in written:
            old.unlink()
    return written


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts fig3 before fig10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _by_paper(
    names: Sequence[str], verdicts: Sequence[str], papers: Mapping[str, str]
) -> dict[str, tuple[list[str], list[str]]]:
    """Of each paper the figures and the files of verdicts, in the order of `PAPERS`."""
    groups: dict[str, tuple[list[str], list[str]]] = {paper: ([], []) for paper in PAPERS}
    for name in names:
        paper = papers.get(name, "")
        groups[paper if paper in PAPERS else ""][0].append(name)
    for name in verdicts:
        paper = name.removesuffix(".md").removeprefix("claims").removeprefix("_") or "comeba_hk"
        groups[paper if paper in PAPERS else ""][1].append(name)
    return {paper: found for paper, found in groups.items() if any(found)}


def _title(caption: str) -> str:
    found = TITLE.match(caption)
    return found[1] if found else ""


def _made(scale: str) -> list[str]:
    """How the page is made, and from the default scale's those of the others."""

    def command(scale: str) -> str:
        below = "" if scale == DEFAULT_SCALE else f"/{scale}"
        return f"`palimpsest gallery --figures figures{below} --results results --out docs/gallery{below}`"

    lines = [f"Made from the results of a full run by {command(scale)}; do not edit by hand.", ""]
    if scale == DEFAULT_SCALE:
        lines[0] += (
            f" Other scales have galleries of their own, made in the same way: {command('mini-zsre')}."
        )
    return lines


def _other_galleries(target: Path) -> list[str]:
    """Links to the galleries of other scales that lie in this one."""
    found = sorted(page.parent.name for page in target.glob("*/README.md"))
    lines = [f"* [{scale}]({scale}/README.md): {scale_words(scale)}" for scale in found]
    return ["**Other scales**", "", *lines, ""] if found else []


def _scale(figures: Path) -> str:
    return DEFAULT_SCALE if figures.name == "figures" else figures.name


def _origin(results: Path, figures: Path) -> str:
    """Of which commits and days the runs of this scale are; empty where there are none."""
    scale = _scale(figures)
    found = [read_object(path, "spec") for path in sorted(results.glob("runs/*/seed=*/run.json"))]
    own = [run for run in found if run["spec"].get("scale") == scale]
    if not own:
        return ""
    days = sorted({str(run.get("started", ""))[:10] for run in own} - {""})
    about = [run.get("git") or {} for run in own]
    commits = sorted(
        {str(git.get("commit") or "unknown")[:8] + " (changed)" * bool(git.get("dirty")) for git in about}
    )
    between = f" from {days[0]} to {days[-1]}" if len(days) > 1 else f" of {days[0]}" if days else ""
    return f"{len(own)} runs{between}, at {'commits' if len(commits) > 1 else 'commit'} {', '.join(commits)}."


def _cited(verdicts: Path) -> str:
    """Which version of the paper the claims are of: how the file's third line begins, but in the oldest files."""
    lines = verdicts.read_text(encoding="utf-8").splitlines()
    paper = lines[2].partition(". ")[0] if len(lines) > 2 else ""
    return f": {paper}" if paper.startswith("arXiv") else ""


def _copy(path: Path, target: Path) -> Path:
    content = path.read_bytes()
    write_atomic(target / path.name, lambda place: place.write_bytes(content))
    return target / path.name
