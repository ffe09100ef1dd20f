"""The Slurm profile with Snakemake's own plugin, on a double of the cluster's commands (`tests/doubles/slurm`)."""

from __future__ import annotations

import json
import os
import sys

import pytest
from snake import ROOT, run_snakemake, text_of

pytest.importorskip(
    "snakemake_executor_plugin_slurm", reason="the extra `slurm` (its plugin) is not installed"
)
YOURS = ("slurm_partition=long", "slurm_account=science", "mem_mb=8000", "runtime=120")


def on_cluster(directory, *targets: str, **environment: str):
    """The command of the profile's README; looks at its jobs every second, where a cluster is left alone for 40."""
    state = directory / "cluster"
    state.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT / "tests" / "doubles" / "slurm" / "bin"), os.environ["PATH"]])
    return run_snakemake(
        directory, *targets, "--workflow-profile", str(ROOT / "profiles" / "slurm"),
        "--configfile", str(ROOT / "config" / "smoke.yaml"), "--default-resources", *YOURS,
        "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5",
        PATH=path, PALIMPSEST_SLURM=str(state), PALIMPSEST_TEST_PYTHON=sys.executable, **environment,
    )  # fmt: skip


def jobs_of(directory) -> list[dict]:
    places = sorted((directory / "cluster").glob("job-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    return [json.loads(place.read_text()) for place in places]


@pytest.mark.slow
def test_jobs_are_submitted_with_what_a_cluster_wants(tmp_path):
    """A chain of rules, each job with partition, account, minutes and memory; the results are there at the end."""
    done = on_cluster(tmp_path, "grace_toy")
    assert done.returncode == 0, text_of(done)[-5000:]
    assert (tmp_path / "figures" / "smoke" / "grace_toy.svg").exists()
    jobs = jobs_of(tmp_path)
    assert [job["state"] for job in jobs] == [
        "COMPLETED"
    ] * 2  # what only names targets is no job of the cluster
    for job in jobs:
        assert job["A"] == "science" and job["p"] == "long" and job["gpus"] is None
        assert int(job["t"]) > 0 and int(job["mem"]) > 0 and job["cpus_per_task"] == "1"


@pytest.mark.slow
def test_a_job_whose_node_breaks_down_is_submitted_again(tmp_path):
    """`retries` of the profile: time limits and broken nodes cost what came after the last checkpoint."""
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "breaks-1").touch()
    done = on_cluster(tmp_path, "grace_toy")
    assert done.returncode == 0, text_of(done)[-5000:]
    assert [job["state"] for job in jobs_of(tmp_path)] == ["NODE_FAIL", "COMPLETED", "COMPLETED"]
    assert jobs_of(tmp_path)[0]["comment"] == jobs_of(tmp_path)[1]["comment"] == "rule_grace_toy_points"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "gpus", "feature"),
    [
        ((), "1", None),
        (("covariance:constraint=a100-80gb",), "1", "a100-80gb"),
        (("covariance:gpu_model=a100",), "a100:1", None),
    ],
)
def test_a_job_on_a_gpu_asks_for_one_and_for_its_kind(tmp_path, asked, gpus, feature):
    """What the profile's README says. There is no GPU here: the job itself fails, and is not tried again."""
    done = gpu_job(tmp_path, *(("--set-resources", *asked) if asked else ()))
    (job,) = jobs_of(tmp_path)
    assert (job["gpus"], job["C"], job["state"]) == (gpus, feature, "FAILED"), text_of(done)[-5000:]


@pytest.mark.slow
def test_the_kind_of_gpu_is_refused_among_the_free_options(tmp_path):
    """Why the README names `constraint`, and not `slurm_extra`."""
    done = gpu_job(tmp_path, "--set-resources", "covariance:slurm_extra='--constraint=a100-80gb'")
    assert done.returncode and not jobs_of(tmp_path) and "slurm_extra" in text_of(done)


def gpu_job(directory, *more: str):
    """One job that uses the GPU, with everything before it as if it were there."""
    for name in ("models/smoke-gpt2/manifest.json", "data/smoke-world/corpus.txt"):
        (directory / "results" / name).parent.mkdir(parents=True)
        (directory / "results" / name).write_text("{}")
    target = "results/statistics/smoke-gpt2/covariance.json"
    return on_cluster(
        directory, target, "--config", "device=cuda", "--allowed-rules", "covariance", "--retries", "0", *more
    )
