"""Copy what was drawn into `docs/gallery`, with an index that GitHub shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palimpsest.errors import DataError
from palimpsest.files import read_object, write_atomic, write_text

DEFAULT_SCALE = "mini"  # draws into `figures` itself, all others into `figures/SCALE`


def collect(
    figures_dir: Path | str,
    target_dir: Path | str,
    only: Sequence[str] | None = None,
    results: Path | None = None,
) -> list[Path]:
    """Copy picture, caption and markdown table of every finished figure; write `README.md`; return the files.

    Pictures of figures that are gone from `figures_dir` are removed from the gallery.

    Args:
        only: names of the figures and tables to show; None shows all.
        results: directory that holds runs/, to say of which commits and days they are; None says nothing.

    Raises:
        DataError: there is nothing to show.
    """
    source, target = Path(figures_dir), Path(target_dir)
    names = sorted(path.name.removesuffix(".caption.md") for path in source.glob("*.caption.md"))
    missing = sorted(set(only or ()) - set(names))
    if missing:
        raise DataError(
            f"no figure is called {missing[0]!r}", file=source, remedy=f"There are: {', '.join(names)}"
        )
    names = [name for name in names if only is None or name in only]
    if not names:
        raise DataError("no figure has been drawn", file=source, remedy="Run the workflow first")
    written = []
    lines = [
        "# Gallery",
        "",
        "Made by one command from the results of a full run (`palimpsest gallery`); do not edit by hand.",
        "",
    ]
    if results is not None and (origin := _origin(results, source)):
        lines += [origin, ""]
    verdicts = sorted(path.name for path in source.glob("claims*.md"))
    lines += [f"- [The claims and their verdicts: {_paper(source / name)}]({name})" for name in verdicts]
    lines += [""] if verdicts else []
    for name in names:
        caption = (source / f"{name}.caption.md").read_text(encoding="utf-8").strip()
        lines += [f"## {name}", ""]
        if (source / f"{name}.png").is_file():
            written.append(_copy(source / f"{name}.png", target))
            lines += [f"![{name}]({name}.png)", ""]
        if (source / f"{name}.md").is_file():
            written.append(_copy(source / f"{name}.md", target))
            lines += [f"[as text]({name}.md)", ""]
        lines += [caption, ""]
    written += [_copy(source / name, target) for name in verdicts]
    write_text(target / "README.md", "\n".join(lines))
    written.append(target / "README.md")
    for old in target.glob("*"):
        if old.suffix in (".png", ".md") and old not in written:
            old.unlink()
    return written


def _origin(results: Path, figures: Path) -> str:
    """Of which commits and days the runs of this scale are; empty where there are none."""
    scale = DEFAULT_SCALE if figures.name == "figures" else figures.name
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


def _paper(verdicts: Path) -> str:
    """Which paper's claims these are: how the file's third line begins."""
    lines = verdicts.read_text(encoding="utf-8").splitlines()
    return lines[2].partition(". ")[0] if len(lines) > 2 else verdicts.stem


def _copy(path: Path, target: Path) -> Path:
    content = path.read_bytes()
    write_atomic(target / path.name, lambda place: place.write_bytes(content))
    return target / path.name
