"""The graph without running it: lint, formatting, dry runs of every scale, refused configurations."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snake import ROOT, job_counts, run_snakemake, text_of
from snakemake.scheduling import job_scheduler

from palimpsest import experiments
from palimpsest.config import ConfigError

SCALES = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))


def test_lint(tmp_path: Path):
    done = run_snakemake(tmp_path, "--lint")
    assert done.returncode == 0, text_of(done)


def test_formatting():
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", str(ROOT / "Snakefile"), str(ROOT / "workflow")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_all_scales_are_there():
    assert set(SCALES) == {
        "smoke",
        "mini",
        "mini-counterfact",
        "mini-zsre",
        "mini-lifelong",
        "mini-fever",
        "rehearsal",
        "small",
        "paper",
    }


@pytest.mark.parametrize("scale", SCALES)
def test_dry_run_from_an_empty_directory(scale: str, tmp_path: Path):
    """No files, no data, no GPU: the graph is complete, with one job for every run of the plan."""
    chosen = (
        [] if scale == "mini" else ["--configfile", str(ROOT / "config" / f"{scale}.yaml")]
    )  # the default
    done = run_snakemake(tmp_path, "--dry-run", "--quiet", "rules", *chosen)
    assert done.returncode == 0, text_of(done)[-3000:]
    counts, plan = job_counts(done), experiments.plan(ROOT / "config" / f"{scale}.yaml", ROOT)
    assert counts["run"] == sum(1 for _ in plan.run_seeds())
    assert counts["figure"] + counts["table"] == len(plan.figures)
    assert counts.get("train_editor", 0) == len(plan.trainings())
    papers = {plan.config.experiments[name]["paper"] for name in plan.figures}
    assert counts["claims"] == len(papers)
    said = [str(one) in text_of(done) for one in plan.unpinned()]
    assert all(said) and ("commit is not known" in text_of(done)) == bool(said)


def test_a_dry_run_says_what_is_not_here(tmp_path: Path):
    done = run_snakemake(
        tmp_path,
        "--dry-run",
        "--configfile",
        str(ROOT / "config" / "mini-counterfact.yaml"),
        PALIMPSEST_DATA=str(tmp_path),
    )
    assert done.returncode == 0 and "Not on this machine" in text_of(done)
    assert "counterfact/counterfact-edit_dev.json" in text_of(done)


def test_finished_runs_of_another_scale_are_not_written_over(tmp_path: Path):
    """A run's name leaves the scale out, and Snakemake removes old output before a job begins."""
    plan = experiments.plan(ROOT / "config" / "smoke.yaml", ROOT)
    run = next(name for name in plan.runs if name.startswith("consecutive"))
    path = tmp_path / "results" / "runs" / run / "seed=0" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"spec": {"scale": "another"}}')
    done = run_snakemake(
        tmp_path,
        str(path.relative_to(tmp_path)),
        "--configfile",
        str(ROOT / "config" / "smoke.yaml"),
        "--forcerun",
        "run",
    )
    assert done.returncode != 0 and "1 of scale another, such as results/runs/" in text_of(done)
    assert path.read_text() == '{"spec": {"scale": "another"}}'


def test_an_editor_named_as_a_paper_has_a_target_of_its_own(tmp_path: Path):
    done = run_snakemake(tmp_path, "editor_grace", "--dry-run", "--quiet", "rules")
    plan = experiments.plan(ROOT / "config" / "mini.yaml", ROOT)
    assert job_counts(done)["run"] == sum(1 for _ in plan.run_seeds(editor="grace")) > 0


def test_an_editor_without_runs_is_no_silent_success(tmp_path: Path):
    """Asked for by name, before a list of methods has it or where the scale leaves it out."""
    done = run_snakemake(
        tmp_path, "--dry-run", "memit", "--configfile", str(ROOT / "config" / "mini-lifelong.yaml")
    )
    assert done.returncode != 0
    assert "no experiment of scale mini-lifelong has memit: add it to a list of methods" in text_of(done)


def test_snakemake_still_has_the_limit_that_is_switched_off():
    """`onstart` sets this attribute; under another name in a later Snakemake it would do nothing, and no one would see."""
    scheduler = inspect.getsource(job_scheduler.JobScheduler)
    assert "self.job_rate_limiter is not None" in scheduler and "_schedule_reevalutation" in scheduler


def test_the_other_front_door_has_a_default_target_too(tmp_path: Path):
    """A root file with an include alone would do nothing and succeed. (That of the root is what all tests here use.)"""
    scale = ROOT / "config" / "smoke.yaml"
    door = ROOT / "workflow" / "Snakefile"
    done = run_snakemake(
        tmp_path, "--dry-run", "--quiet", "rules", "--configfile", str(scale), snakefile=door
    )
    plan = experiments.plan(scale, ROOT)
    assert job_counts(done)["run"] == sum(1 for _ in plan.run_seeds()), text_of(done)[-2000:]


def test_a_paper_and_its_editor_share_a_name(tmp_path: Path):
    """`snakemake grace` draws the paper, which takes more than the editor's runs."""
    scale = ROOT / "config" / "smoke.yaml"
    done = run_snakemake(tmp_path, "grace", "--dry-run", "--quiet", "rules", "--configfile", str(scale))
    assert done.returncode == 0, text_of(done)[-2000:]
    plan, counts = experiments.plan(scale, ROOT), job_counts(done)
    mine = [name for name in plan.figures if plan.config.experiments[name]["group"] == "grace"]
    assert counts["figure"] + counts["table"] == len(mine)
    runs = {(run, seed) for name in mine for run, seeds in plan.figures[name].runs.items() for seed in seeds}
    assert counts["run"] == len(runs) < sum(1 for _ in plan.run_seeds())  # and not those of the other paper
    assert counts["claims"] == 1


def test_fisher_information_is_collected_for_the_runs_that_want_it(tmp_path: Path):
    scale = ROOT / "config" / "mini.yaml"
    plan = experiments.plan(scale, ROOT)
    run = next(name for name in plan.runs if "ft_ewc-upstream" in name)
    target = f"results/runs/{run}/seed=0/metrics.parquet"
    done = run_snakemake(tmp_path, target, "--dry-run", "--printshellcmds", "--configfile", str(scale))
    assert done.returncode == 0, text_of(done)[-2000:]
    assert job_counts(done)["fisher"] == 1
    assert job_counts(done).get("covariance", 0) == 0
    folder = f"results/statistics/mini-t5/fisher-mini-{plan.runs[run].spec['dataset']}"
    assert f"--statistics {folder} " in text_of(done)


def test_a_learned_editor_is_trained_for_the_runs_that_edit_with_it(tmp_path: Path):
    """One training for three variants and all seeds; on records that are set aside, by the variant it is trained as."""
    scale = ROOT / "config" / "mini.yaml"
    plan = experiments.plan(scale, ROOT)
    shared = [
        name
        for name, run in plan.runs.items()
        if run.training and run.training.name == "mini-gpt2-zsre-mend-default"
    ]
    assert {plan.runs[name].spec["variant"] for name in shared} == {"default", "mean", "memit_executor"}
    targets = [
        f"results/runs/{name}/seed={seed}/metrics.parquet"
        for name in shared
        for seed in plan.runs[name].seeds
    ]
    done = run_snakemake(tmp_path, *targets, "--dry-run", "--printshellcmds", "--configfile", str(scale))
    assert done.returncode == 0, text_of(done)[-2000:]
    counts = job_counts(done)
    assert counts["train_editor"] == 1
    assert counts["run"] == len(targets) > len(shared)
    assert counts["dataset_to_learn_from"] == 1
    folder = "results/editors/mini-gpt2-zsre-mend-default/seed=0"
    assert text_of(done).count(f"--trained {folder} ") == len(targets)
    assert "--dataset results/datasets/mini-zsre/learning.jsonl" in text_of(done)


def test_models_that_an_editor_is_made_of_are_made_first(tmp_path: Path):
    """At paper scale SERAC's classifier and second model are published ones; the rehearsal's are directories like them."""
    scale = ROOT / "config" / "rehearsal.yaml"
    plan = experiments.plan(scale, ROOT)
    name = next(name for name in plan.trainings() if name.startswith("rehearsal-gpt-j-zsre-serac"))
    target = f"results/editors/{name}/seed=0/trained.json"
    done = run_snakemake(tmp_path, target, "--dry-run", "--quiet", "rules", "--configfile", str(scale))
    assert done.returncode == 0, text_of(done)[-2000:]
    assert job_counts(done)["model"] == 3


def test_every_figure_has_a_plain_name(tmp_path: Path):
    plan = experiments.plan(ROOT / "config" / "smoke.yaml", ROOT)
    targets = [
        *plan.figures,
        "comeba",
        "grace",
        "mend",
        "serac",
        "editors",
        "figures",
        "claims",
        "data",
        "models",
        "statistics",
        "runs",
        *plan.config.editors,
        "seed_0",
    ]
    listed = text_of(
        run_snakemake(tmp_path, "--list-rules", "--configfile", str(ROOT / "config" / "smoke.yaml"))
    )
    assert set(targets) <= set(listed.split())


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("comeba_fig3", 1),
        ("critical_path", 0),
        ("comeba_fig10", 2),
        ("results/runs/{run}/seed=0/metrics.parquet", 1),
    ],
)
def test_partial_targets_take_only_what_they_need(target: str, runs: int, tmp_path: Path):
    plan = experiments.plan(ROOT / "config" / "smoke.yaml", ROOT)
    target = target.format(run=next(name for name, run in plan.runs.items() if run.spec["editor"] == "memit"))
    done = run_snakemake(
        tmp_path, target, "--dry-run", "--quiet", "rules", "--configfile", str(ROOT / "config" / "smoke.yaml")
    )
    assert done.returncode == 0, text_of(done)[-2000:]
    assert job_counts(done).get("run", 0) == runs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scael": 1}, ["scael"]),
        ({"gate": {"mode": "perhaps"}}, ["gate.mode", "perhaps", "refuse"]),
        (
            {"protocol": {"generation": True, "known_only": False, "sample": "shuffled", "generatoin": 1}},
            ["generatoin"],
        ),
        ({"experiments": {"comeba_fig99": {"models": ["smoke-gpt2"]}}}, ["comeba_fig99"]),
        (
            {
                "experiments": {
                    "comeba_fig3": {"models": ["smoke-gpt3"], "edits": 1, "batch_size": 1, "seeds": [0]}
                }
            },
            ["smoke-gpt3", "smoke-gpt2"],
        ),
        (
            {
                "experiments": {
                    "comeba_fig3": {"models": ["smoke-gpt2"], "edits": 1, "batch_size": 1, "seeds": ["0"]}
                }
            },
            ["seeds", '"0"'],
        ),
        ({"editors": ["ft", "remo"]}, ["remo", "rome"]),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(change: dict, words: list[str], tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        experiments.plan(changed_smoke(change, tmp_path), ROOT)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("change", [{"scael": 1}, {"editors": ["ft", "remo"]}])
def test_snakemake_says_what_is_wrong_with_a_configuration(change: dict, tmp_path: Path):
    wrong = changed_smoke(change, tmp_path)
    with pytest.raises(ConfigError) as refused:
        experiments.plan(wrong, ROOT)
    done = run_snakemake(tmp_path, "--dry-run", "--configfile", str(wrong))
    assert done.returncode != 0 and str(refused.value) in text_of(done)
    assert "Traceback" not in text_of(done)
    assert not (tmp_path / "results").exists()


def changed_smoke(change: dict, folder: Path) -> Path:
    """The scale smoke with something changed at its top level."""
    content = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    (folder / "wrong.yaml").write_text(yaml.safe_dump(content | change))
    return folder / "wrong.yaml"


def test_what_is_missing_is_named_before_anything_starts(tmp_path: Path):
    """A real file, and a model of the hub whose commit nobody gave."""
    scale, targets = (
        str(ROOT / "config" / "small.yaml"),
        ["wikitext/facts.jsonl", "scotus-bert/manifest.json"],
    )
    targets = [f"results/data/{targets[0]}", f"results/models/{targets[1]}"]
    done = run_snakemake(tmp_path, *targets, "--configfile", scale, PALIMPSEST_DATA=str(tmp_path))
    assert done.returncode != 0 and "text/wikitext-2/valid.txt: the file does not exist" in text_of(done)
    assert "models.scotus-bert.revision: tomh/scotus-bert: no commit is given" in text_of(done)
    assert not (tmp_path / "results").exists()


def test_settings_schema_is_in_step_with_the_dataclasses():
    from palimpsest.command_line.commands import write_settings_schema

    stored = json.loads((ROOT / "workflow" / "schemas" / "editors.schema.json").read_text())
    assert stored == json.loads(json.dumps(write_settings_schema())), "run `palimpsest schema --write`"


def test_named_settings_are_accepted_by_the_editors():
    """What a file states must also pass the dataclass's own checks."""
    from palimpsest.editors import editor_class
    from palimpsest.editors.base import read_settings

    for scale in SCALES:
        for run in experiments.plan(ROOT / "config" / f"{scale}.yaml", ROOT).runs.values():
            read_settings(editor_class(run.spec["editor"]), dict(run.spec["settings"]))
            if run.training is not None:
                read_settings(editor_class(run.spec["editor"]), dict(run.training.spec["settings"]))


def test_threads_reach_the_linear_algebra():
    """Decided: a run has one thread whatever the number of cores. Snakemake sets these variables to a job's threads."""
    from snakemake.shell import shell

    printed = shell("echo $OMP_NUM_THREADS $MKL_NUM_THREADS", read=True, threads=1)
    assert printed.split() == ["1", "1"]
