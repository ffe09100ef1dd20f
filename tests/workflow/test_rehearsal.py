"""The rehearsal's data sets hold what its trainings draw: a whole rehearsal takes minutes, and nobody runs it before a commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from snake import ROOT, run_snakemake, text_of

from palimpsest import experiments
from palimpsest.editors import editor_class
from palimpsest.learning.examples import read_examples
from palimpsest.learning.train import _sampler
from palimpsest.plain import build


@pytest.mark.slow
def test_every_training_has_enough_to_draw_from(tmp_path: Path):
    scale = ROOT / "config" / "rehearsal.yaml"
    plan = experiments.plan(scale, ROOT)
    trainings = {run.training.name: run.training for run in plan.runs.values() if run.training}
    files = {t.dataset: f"results/datasets/rehearsal-{t.dataset}/learning.jsonl" for t in trainings.values()}
    done = run_snakemake(tmp_path, *files.values(), "--cores", "2", "--configfile", str(scale))
    assert done.returncode == 0, text_of(done)[-3000:]
    for training in trainings.values():
        settings = build(
            editor_class(training.spec["editor"]).settings_type, training.spec["settings"], training.name
        )
        examples = read_examples(tmp_path / files[training.dataset])
        for split in ("train", "valid"):
            assert len(_sampler(examples, split, settings, training.name)) >= settings.k_train
