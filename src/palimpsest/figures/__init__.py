"""Everything that is drawn. One file per family of figures, one style for all.

Drawers are found by name and imported when they are used: neither pandas nor matplotlib is loaded before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from palimpsest.errors import SettingsError

_STEM = re.compile(r"[a-z0-9_-]+")
DRAWERS: dict[str, str] = {
    "editing_table": "palimpsest.figures.editing_table:draw",
    "curves": "palimpsest.figures.curves:draw",
    "batch_sizes": "palimpsest.figures.batch_sizes:draw",
    "lambda_comparison": "palimpsest.figures.lambdas:draw",
    "zscores": "palimpsest.figures.zscores:draw_zscores",
    "unedited_subjects": "palimpsest.figures.zscores:draw_unedited_subjects",
    "reachable_alpha": "palimpsest.figures.zscores:draw_reachable_alpha",
    "metric_gap": "palimpsest.figures.metric_gap:draw",
    "critical_path": "palimpsest.figures.model_checks:draw_critical_path",
    "training_curves": "palimpsest.figures.model_checks:draw_training_curves",
    "lifelong_table": "palimpsest.figures.lifelong_table:draw",
    "data_table": "palimpsest.figures.data_table:draw",
    "examples_table": "palimpsest.figures.examples:draw",
    "shared_keys_table": "palimpsest.figures.examples:draw_shared_keys",
    "stream_curves": "palimpsest.figures.stream_curves:draw",
    "radius_sweep": "palimpsest.figures.radius_sweep:draw",
    "codebook_keys": "palimpsest.figures.codebooks:draw_keys",
    "codebook_radii": "palimpsest.figures.codebooks:draw_radii",
    "edit_time": "palimpsest.figures.edit_time:draw",
    "crossover_table": "palimpsest.figures.crossover:draw_table",
    "crossover_curves": "palimpsest.figures.crossover:draw_curves",
    "toy": "palimpsest.figures.toy:draw",
    "success_table": "palimpsest.figures.success_table:draw",
    "batch_curves": "palimpsest.figures.batch_curves:draw",
    "edit_cost": "palimpsest.figures.batch_curves:draw_cost",
    "learned_training": "palimpsest.figures.learned_training:draw",
}
TABLE_DRAWERS = frozenset(
    {
        "editing_table",
        "lifelong_table",
        "data_table",
        "examples_table",
        "shared_keys_table",
        "crossover_table",
        "success_table",
    }
)

FIGURE_SUFFIXES = (".pdf", ".svg", ".png", ".csv", ".caption.md")
TABLE_SUFFIXES = (".csv", ".md", ".tex", ".png", ".caption.md")


def outputs(spec: dict[str, Any]) -> tuple[str, ...]:
    """Suffixes of the files that `draw` will write for this spec."""
    return TABLE_SUFFIXES if spec["drawer"] in TABLE_DRAWERS else FIGURE_SUFFIXES


def draw(name: str, spec: dict[str, Any], run_dirs: Sequence[Path | str], out: Path | str) -> list[Path]:
    """Draw one figure or table from finished runs.

    Args:
        name: stem of the files written.
        spec: what to show and how (drawer, title, item, scale, methods, models, datasets, options, ...).
        run_dirs: directories `results/runs/{run}/seed=N`.
        out: folder for the files.

    Returns:
        the files written, as `outputs` names them.

    Raises:
        SettingsError: unknown drawer, or a name that is no plain stem (files are written into `out` and nowhere else).
        DataError: a run directory is incomplete, or nothing in it fits the figure.
    """
    if not _STEM.fullmatch(name):
        raise SettingsError(f"figure {name!r}: a name is made of small letters, digits, '_' and '-'")
    drawer = spec.get("drawer")
    if not isinstance(drawer, str) or drawer not in DRAWERS:
        raise SettingsError(
            f"figure '{name}': there is no drawer '{drawer}'. Known drawers: {', '.join(DRAWERS)}"
        )
    module, function = DRAWERS[drawer].split(":")
    drawer_function = getattr(import_module(module), function)
    with import_module("palimpsest.figures.captions").naming_datasets(spec.get("dataset_titles")):
        written: list[Path] = drawer_function(name, spec, [Path(path) for path in run_dirs], Path(out))
    return written
