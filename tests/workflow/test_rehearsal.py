"""Data sets hold what the trainings of their scale draw: a whole rehearsal takes minutes, real records hours."""

from __future__ import annotations

from pathlib import Path

import pytest
from snake import ROOT, run_snakemake, text_of

from palimpsest import experiments
from palimpsest.editors import editor_class
from palimpsest.learning.examples import read_examples
from palimpsest.learning.train import _sampler
from palimpsest.plain import build


def trainings_draw(scale: str, directory: Path, **environment: str) -> int:
    """Make the data sets that editors of a scale learn from, and draw a step of each training; how many there are."""
    file = ROOT / "config" / f"{scale}.yaml"
    plan = experiments.plan(file, ROOT)
    trainings = {run.training.name: run.training for run in plan.runs.values() if run.training}
    files = {t.dataset: f"results/datasets/{scale}-{t.dataset}/learning.jsonl" for t in trainings.values()}
    done = run_snakemake(directory, *files.values(), "--cores", "2", "--configfile", str(file), **environment)
    assert done.returncode == 0, text_of(done)[-3000:]
    for training in trainings.values():
        kind = editor_class(training.spec["editor"]).settings_type
        settings = build(kind, training.spec["settings"], training.name)
        examples = read_examples(directory / files[training.dataset])
        for split in ("train", "valid"):
            assert len(_sampler(examples, split, settings, training.name)) >= settings.k_train
    return len(trainings)


@pytest.mark.slow
def test_every_training_of_the_rehearsal_has_enough_to_draw_from(tmp_path: Path):
    assert trainings_draw("rehearsal", tmp_path) == 42


@pytest.mark.slow
def test_every_training_on_real_streams_has_enough_to_draw_from(tmp_path: Path, real_data: Path):
    assert trainings_draw("mini-lifelong", tmp_path, PALIMPSEST_DATA=str(real_data)) > 0
