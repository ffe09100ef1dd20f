"""The whole graph, once, and what must happen when it is asked again. One worker makes the run, all tests here share it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from snake import job_counts, run_snakemake, start_snakemake, text_of

from palimpsest import experiments
from palimpsest.published import experiments_judged

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def again(checkout: Path, smoke: Path, *arguments: str):
    """Ask for everything again, without doing it."""
    scale = str(checkout / "config" / "smoke.yaml")
    done = run_snakemake(
        smoke,
        "--dry-run",
        "--quiet",
        "rules",
        "--configfile",
        scale,
        *arguments,
        snakefile=checkout / "Snakefile",
    )
    assert done.returncode == 0, text_of(done)[-3000:]
    return done


def counts_with(checkout: Path, smoke: Path, file: str, old: str, new: str):
    """What would be done again if `old` were `new` in a file of the checkout."""
    path = checkout / file
    before = path.read_text()
    assert old in before, f"{file} has no {old!r}"
    path.write_text(before.replace(old, new))
    try:
        return job_counts(again(checkout, smoke))
    finally:
        path.write_text(before)


def counts_with_a_change(checkout: Path, smoke: Path, module: str):
    """What would be done again after a change in one module."""
    future = "from __future__ import annotations\n"
    return counts_with(checkout, smoke, f"src/palimpsest/{module}", future, future + "\n# changed\n")


def test_everything_is_drawn(checkout: Path, smoke: Path):
    from palimpsest.figures import outputs

    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    for name, figure in plan.figures.items():
        for suffix in outputs(figure.spec):
            assert (smoke / "figures" / "smoke" / f"{name}{suffix}").stat().st_size > 0, name + suffix
    for claims in ("claims.csv", "claims_grace.csv", "claims_mend.csv", "claims_serac.csv"):
        assert (smoke / "figures" / "smoke" / claims).stat().st_size > 0


def test_jobs_were_forked_from_a_process_with_the_libraries_loaded(smoke: Path):
    """Otherwise each spends seconds on loading them; the line is written by the forked job alone."""
    logs = list((smoke / "logs" / "runs").glob("*/*.log"))
    assert logs
    assert all("s of CPU and at most" in log.read_text() for log in logs)


def test_every_run_kept_its_specification(checkout: Path, smoke: Path):
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    for name, seed in plan.run_seeds():
        stored = json.loads((smoke / "results" / "runs" / name / f"seed={seed}" / "run.json").read_text())
        assert stored["spec"] == json.loads(json.dumps(plan.runs[name].spec))
        assert stored["status"] == "complete"
        assert stored["threads"] == 1


def test_papers_took_turns(checkout: Path, smoke: Path):
    """The first paper's figures are there after a part of the time: its runs went before those that only others show."""
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    started: dict[int, list[str]] = {}
    for name, seed in plan.run_seeds():
        description = smoke / "results" / "runs" / name / f"seed={seed}" / "run.json"
        started.setdefault(plan.turns[name], []).append(json.loads(description.read_text())["started"])
    middles = [sorted(started[turn])[len(started[turn]) // 2] for turn in sorted(started)]
    assert len(middles) == 4
    assert middles == sorted(set(middles))


def test_second_call_has_nothing_to_do(checkout: Path, smoke: Path):
    done = again(checkout, smoke)
    assert done.returncode == 0
    assert not job_counts(done), text_of(done)


def test_touching_sources_changes_nothing(checkout: Path, smoke: Path):
    later = time.time() + 60
    for file in [
        *(checkout / "src").rglob("*.py"),
        *(checkout / "workflow").rglob("*"),
        *(checkout / "config").rglob("*.yaml"),
    ]:
        os.utime(file, (later, later))
    assert not job_counts(again(checkout, smoke))


def test_an_editors_file_touches_only_its_runs(checkout: Path, smoke: Path):
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    counts = counts_with_a_change(checkout, smoke, "editors/rome.py")
    mine = {name for name, run in plan.runs.items() if run.spec["editor"] == "rome"}
    assert counts.pop("run") == sum(len(plan.runs[name].seeds) for name in mine)
    drawn = [figure for figure in plan.figures.values() if mine & set(figure.runs)]
    assert counts.pop("table", 0) + counts.pop("figure", 0) == len(drawn)
    shown = {figure.name for figure in drawn}
    judged = [paper for paper in ("comeba_hk", "grace", "mend", "serac") if shown & experiments_judged(paper)]
    assert counts.pop("claims") == len(judged) > 1
    assert set(counts) <= {"all", "default", "total"}


def test_a_learned_editors_file_touches_its_training_and_its_runs(checkout: Path, smoke: Path):
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    counts = counts_with_a_change(checkout, smoke, "editors/mend.py")
    assert counts["run"] == sum(1 for _ in plan.run_seeds(editor="mend"))
    trained = [training for training in plan.trainings().values() if training.spec["editor"] == "mend"]
    assert counts["train_editor"] == len(trained) < len(plan.trainings())
    assert not {"pretrain", "dataset", "dataset_to_learn_from"} & set(counts)


def test_runs_edit_with_the_training_that_was_made_for_them(checkout: Path, smoke: Path):
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    for name, run in plan.runs.items():
        if run.training is None:
            continue
        folder = smoke / "results" / "editors" / run.training.name / f"seed={plan.training_seed}"
        trained = json.loads((folder / "trained.json").read_text())
        stored = json.loads((smoke / "results" / "runs" / name / "seed=0" / "run.json").read_text())
        used = stored["statistics"]
        assert (used["kind"], used["editor"]) == ("trained editor", run.spec["editor"])
        assert (used["model"], used["data"], used["seed"]) == (
            trained["model"],
            trained["data"],
            trained["seed"],
        )
        assert (
            used["settings"] == trained["settings"] == json.loads(json.dumps(run.training.spec["settings"]))
        )


def test_a_drawers_file_touches_only_its_figures(checkout: Path, smoke: Path):
    counts = counts_with_a_change(checkout, smoke, "figures/metric_gap.py")
    assert counts.pop("figure") == 1
    assert set(counts) <= {"all", "default", "total"}


def test_a_changed_setting_touches_only_its_runs(checkout: Path, smoke: Path):
    counts = counts_with(checkout, smoke, "config/editors/rome.yaml", "kl_weight: 0.0625", "kl_weight: 0.125")
    plan = experiments.plan(checkout / "config" / "smoke.yaml", checkout)
    assert counts["run"] == sum(1 for _ in plan.run_seeds(editor="rome"))


def test_another_title_of_a_data_set_is_a_matter_of_drawing(checkout: Path, smoke: Path):
    counts = counts_with(checkout, smoke, "config/smoke.yaml", "title: ZsRE-like", "title: Questions of mine")
    assert counts["figure"] > 0 and set(counts) <= {"figure", "table", "claims", "all", "default", "total"}


def test_report_builds(checkout: Path, smoke: Path):
    scale = str(checkout / "config" / "smoke.yaml")
    done = run_snakemake(
        smoke, "--report", "report.zip", "--configfile", scale, snakefile=checkout / "Snakefile"
    )
    assert done.returncode == 0, text_of(done)[-3000:]
    names = zipfile.ZipFile(smoke / "report.zip").namelist()
    assert any(name.endswith("report.html") for name in names)
    assert sum(name.endswith(".svg") for name in names) >= 10


def test_figures_can_be_deleted_and_drawn_again(checkout: Path, smoke: Path):
    """Nothing but the figure is made again, and its numbers are the same bytes."""
    picture, numbers = (
        smoke / "figures" / "smoke" / "comeba_fig4.svg",
        smoke / "figures" / "smoke" / "comeba_fig4.csv",
    )
    before = numbers.read_bytes()
    picture.unlink()
    scale = str(checkout / "config" / "smoke.yaml")
    snakefile = checkout / "Snakefile"
    done = run_snakemake(
        smoke,
        "comeba_fig4",
        "--cores",
        "1",
        "--configfile",
        scale,
        snakefile=snakefile,
        PALIMPSEST_WARM="off",
    )
    assert done.returncode == 0, text_of(done)[-3000:]
    assert picture.exists()
    assert numbers.read_bytes() == before


def test_a_second_workflow_is_refused_and_a_killed_one_goes_on(checkout: Path, smoke: Path):
    """In one directory: the second changes nothing; after `kill -9` and `--unlock` the same command ends with the same rows."""
    pattern = "consecutive-smoke-gpt2-*-comeba_hk-default-n4-b2-s2*/seed=0/metrics.parquet"
    found = sorted((smoke / "results" / "runs").glob(pattern))
    before = {path: pd.read_parquet(path) for path in found}
    assert len(before) >= 4  # some seconds of work, in which a second call can come
    for path in before:
        shutil.rmtree(path.parent)
    call = [*(str(path.relative_to(smoke)) for path in before), "--cores", "1"]
    call += ["--configfile", str(checkout / "config" / "smoke.yaml")]
    first = start_snakemake(smoke, *call, snakefile=checkout / "Snakefile")
    try:
        _wait(lambda: any(path.parent.exists() for path in before), "the runs to begin")
        second = run_snakemake(smoke, *call, snakefile=checkout / "Snakefile")
        assert second.returncode != 0 and "cannot be locked" in text_of(second)
        assert first.poll() is None, "the first was over before the second asked"
    finally:
        first.kill()
        first.wait()
    _wait(lambda: not _jobs_in(smoke), "the killed workflow's jobs to end")
    assert not all(path.exists() for path in before)
    for more in (["--unlock"], []):
        done = run_snakemake(smoke, *call, *more, snakefile=checkout / "Snakefile")
        assert done.returncode == 0, text_of(done)[-3000:]
    for path, rows in before.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), rows, check_exact=True)


def _wait(condition, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def _jobs_in(directory: Path) -> list[str]:
    """Processes that work in a directory (Linux; elsewhere none are seen)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").resolve() == directory.resolve():
                found.append(process.name)
    return found
