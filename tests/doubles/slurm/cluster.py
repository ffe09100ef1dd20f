"""A stand-in for the commands of a Slurm cluster: jobs run on this machine, as many at once as it has "nodes".

It drives the real executor plugin of Snakemake without a cluster. `$PALIMPSEST_SLURM` is the folder of its state:
`job-N.json` holds what `sbatch` was given and the state of job N, which `squeue` reads; a file `breaks-N` breaks the node of
job N. An option that Slurm does not have, or a job without partition or account, is refused, as a cluster would.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["PALIMPSEST_SLURM"])
NODES = 2


def sbatch(arguments: list[str]) -> None:
    """Take a job in, start it in the background, and say its number."""
    parser = argparse.ArgumentParser(prog="sbatch", allow_abbrev=False)
    parser.add_argument("--parsable", action="store_true", required=True)
    for name in ("--job-name", "--output", "-A", "-p", "-t", "--wrap"):
        parser.add_argument(name, required=True)
    for name in (
        "--export",
        "--comment",
        "--mem",
        "--ntasks",
        "--cpus-per-task",
        "--gpus",
        "-D",
        "-C",
    ):
        parser.add_argument(name)
    given = parser.parse_args(arguments)
    number = 1 + sum(1 for _ in STATE.glob("job-*.json"))
    _note(number, {**vars(given), "state": "PENDING"})
    log = Path(given.output.replace("%j", str(number)))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, __file__, "run", str(number)]
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    print(number)


def run(arguments: list[str]) -> None:
    """A job, on the first node that is free."""
    number = int(arguments[0])
    job = json.loads(_place(number).read_text())
    with _node():
        if json.loads(_place(number).read_text())["state"] == "CANCELLED":
            return
        if (STATE / f"breaks-{number}").exists():
            _note(number, {**job, "state": "NODE_FAIL"})
            return
        _note(number, {**job, "state": "RUNNING", "pid": os.getpid()})
        environment = {**os.environ, "SLURM_JOB_ID": str(number), "SLURM_JOB_NAME": job["job_name"]}
        if job["gpus"]:
            environment["SLURM_GPUS"] = job["gpus"]
        done = subprocess.run(["sh", "-c", job["wrap"]], env=environment, cwd=job["D"], check=False)
        _note(number, {**job, "state": "FAILED" if done.returncode else "COMPLETED"})


def squeue(arguments: list[str]) -> None:
    """The states of all jobs of one name, as `number|STATE`."""
    name = arguments[arguments.index("--name") + 1]
    assert "--format=%i|%T" in arguments and "--states=all" in arguments, arguments
    for place in STATE.glob("job-*.json"):
        job = json.loads(place.read_text())
        if job["job_name"] == name:
            print(f"{place.stem.removeprefix('job-')}|{job['state']}")


def srun(arguments: list[str]) -> None:
    """A step of a job: the command after the options."""
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[1:]
    os.execvp(arguments[0], arguments)


def scancel(arguments: list[str]) -> None:
    """End jobs as Slurm does: SIGTERM to all their processes."""
    for number in arguments:
        if not number.isdigit():
            continue
        job = json.loads(_place(int(number)).read_text())
        if job["state"] in ("PENDING", "RUNNING"):
            _note(int(number), {**job, "state": "CANCELLED"})
        if job["state"] == "RUNNING":
            os.killpg(job["pid"], signal.SIGTERM)


def scontrol(_: list[str]) -> None:
    """How long finished jobs stay in the queue."""
    print("MinJobAge               = 300 sec")


def sinfo(_: list[str]) -> None:
    """One partition."""
    print(
        "PARTITION AVAIL  TIMELIMIT  NODES  STATE NODELIST\nlong         up   infinite      2   idle here[1-2]"
    )


def sacctmgr(_: list[str]) -> None:
    """The accounts of the user."""
    print("science")


def _place(number: int) -> Path:
    return STATE / f"job-{number}.json"


def _note(number: int, job: dict) -> None:
    beside = STATE / f"{number}.{os.getpid()}.partial"
    beside.write_text(json.dumps(job))
    beside.replace(_place(number))


class _node:
    """A free node, for the length of a block."""

    def __enter__(self):
        while True:
            for node in range(NODES):
                self.lock = (STATE / f"node-{node}").open("w")
                try:
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return self
                except BlockingIOError:
                    self.lock.close()
            time.sleep(0.1)

    def __exit__(self, *_):
        self.lock.close()


if __name__ == "__main__":
    {one.__name__: one for one in (sbatch, run, squeue, srun, scancel, scontrol, sinfo, sacctmgr)}[
        sys.argv[1]
    ](sys.argv[2:])
