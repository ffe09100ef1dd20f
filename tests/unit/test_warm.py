"""The process that jobs are forked from: a job must not be able to tell, and must not outlive who asked for it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from palimpsest import warm

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system cannot fork; commands run cold there"
)

SERVER = """
import os, socket, sys, time
from pathlib import Path
from palimpsest import warm
state = []
def job(arguments):
    state.append(1)
    what, *rest = arguments
    if what == "say":
        print(os.getcwd(), os.environ.get("TOLD"), os.environ.get("UNTOLD"), len(state), sys.stdin.read().strip())
        print("to the log", file=sys.stderr)
    if what == "exit":
        sys.exit(int(rest[0]) if rest[0].isdigit() else rest[0])
    if what == "fail":
        raise ValueError("a reason")
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "wait":
        Path(rest[0]).write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            Path(rest[0] + ".interrupted").write_text("")
            return 7
    return 0
warm.serve(socket.socket(fileno=int(sys.argv[1])), job, ())
"""
CLIENT = """
import os, signal, sys
from palimpsest.warm import hand_over
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here: these tests run in the background too
if os.environ.get("NOHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
else:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
found = hand_over(sys.argv[1:])
sys.exit(99 if found is None else found)
"""


class Server:
    """A server in a folder, and clients that talk to it."""

    def __init__(self, folder: Path, before: str = ""):
        # Not in `folder`: an address of a socket has about a hundred characters.
        self.address, self.folder = str(Path(tempfile.mkdtemp(prefix="palimpsest-")) / "jobs"), folder
        with warm.listen(self.address) as listener:
            number = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", before + SERVER, str(number)], stdin=subprocess.PIPE, pass_fds=[number]
            )

    def client(self, *words: str, **more) -> subprocess.Popen:
        environment = {**os.environ, warm.VARIABLE: self.address, **more.pop("environment", {})}
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, *words],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.process.stdin.close()
    made.process.wait(60)


def wait_for(happened, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def waiting(server: Server, name: str) -> tuple[subprocess.Popen, int]:
    """A job that waits, and the number of its process."""
    file = server.folder / name
    client = server.client("wait", str(file))
    wait_for(lambda: file.exists() and file.read_text())
    return client, int(file.read_text())


def test_a_job_has_its_callers_folder_environment_and_files(server, tmp_path, monkeypatch):
    monkeypatch.delenv("UNTOLD", raising=False)
    for _ in range(2):  # and no job sees what an earlier one did
        client = server.client("say", environment={"TOLD": "yes"}, cwd=tmp_path)
        out, log = client.communicate("from outside")
        # Its own count of jobs is 1 each time; the folder is the client's.
        assert out.split() == [str(tmp_path), "yes", "None", "1", "from", "outside"]
        assert log == "to the log\n"
        assert client.returncode == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [(("exit", "0"), 0), (("exit", "3"), 3), (("exit", "text"), 1), (("fail",), 1), (("die",), 137)],
)
def test_the_status_of_the_job_is_the_clients(server, words, status):
    client = server.client(*words)
    _, log = client.communicate()
    assert client.returncode == status
    assert ("ValueError: a reason" in log) == (words == ("fail",))


def test_jobs_run_side_by_side(server):
    (first, one), (second, two) = waiting(server, "a"), waiting(server, "b")
    assert one != two
    assert alive(one)
    assert alive(two)
    for client in (first, second):
        client.terminate()
        client.wait(60)


def test_a_signal_reaches_the_job(server):
    client, _ = waiting(server, "job")
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 7
    assert (server.folder / "job.interrupted").exists()
    client, process = waiting(server, "other")
    client.send_signal(signal.SIGTERM)
    assert client.wait(60) == 128 + signal.SIGTERM
    assert not alive(process)


def test_under_nohup_a_job_outlives_the_terminal(server, monkeypatch):
    """At a logout the system sends SIGHUP to the client, which must not pass it on; nor does the job itself hear it."""
    monkeypatch.setenv("NOHUP", "yes")
    client, process = waiting(server, "job")
    client.send_signal(signal.SIGHUP)
    os.kill(process, signal.SIGHUP)
    time.sleep(0.3)
    assert client.poll() is None and alive(process)
    client.send_signal(signal.SIGTERM)
    assert client.wait(60) == 128 + signal.SIGTERM
    monkeypatch.delenv("NOHUP")
    client, process = waiting(server, "other")
    client.send_signal(signal.SIGHUP)
    assert client.wait(60) == 128 + signal.SIGHUP and not alive(process)


def test_a_killed_client_takes_its_job_with_it(server):
    client, process = waiting(server, "job")
    client.kill()
    client.wait(60)
    wait_for(lambda: not alive(process))
    again = server.client("exit", "5")  # and the server goes on
    assert again.wait(60) == 5


def test_the_server_ends_with_its_owner_and_waits_for_running_jobs(tmp_path):
    server = Server(tmp_path)
    client, _ = waiting(server, "job")
    server.process.stdin.close()
    time.sleep(0.2)
    assert server.process.poll() is None
    client.terminate()
    client.wait(60)
    assert server.process.wait(60) == 0
    assert not Path(server.address).parent.exists()
    assert server.client("exit", "5").wait(60) == 99  # nobody listens: done by the caller


def test_when_the_server_dies_the_job_has_failed(server):
    client, _ = waiting(server, "job")
    server.process.kill()
    _, log = client.communicate(timeout=60)
    assert client.returncode == 1
    assert "start the workflow again" in log


@pytest.mark.parametrize("environment", [{warm.VARIABLE: "off"}, {"PYTHONPATH": "/elsewhere"}])
def test_switched_off_or_of_another_source_tree_a_command_runs_where_it_was_called(server, environment):
    assert server.client("exit", "5", environment=environment).wait(60) == 99


def test_nothing_is_started_when_switched_off(monkeypatch):
    monkeypatch.setenv(warm.VARIABLE, "off")
    assert warm.start() is None


def test_a_temporary_folder_that_takes_no_socket_means_cold_jobs(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120)  # an address of a socket has about a hundred characters
    deep.mkdir()
    monkeypatch.setenv(warm.VARIABLE, "")
    monkeypatch.setattr(warm.tempfile, "tempdir", str(deep))
    assert warm.start() is None and not os.environ[warm.VARIABLE]
    assert not list(deep.iterdir())


def test_a_client_that_hung_up_while_it_waited_leaves_no_job_and_a_server(server):
    file = server.folder / "job"
    told = {"arguments": ["wait", str(file)], "folder": str(server.folder), "environment": dict(os.environ)}
    code = "import json; from palimpsest.warm import _interpreter; print(json.dumps(_interpreter()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    server.process.send_signal(signal.SIGSTOP)  # as if it were still loading
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(server.address)
        socket.send_fds(line, [b"job"], [0, 1, 2])
        line.sendall(json.dumps({**told, **json.loads(found.stdout)}).encode() + b"\n")
    server.process.send_signal(signal.SIGCONT)
    assert server.client("exit", "5").wait(60) == 5
    time.sleep(0.5)
    number = file.read_text() if file.exists() else ""  # empty: it was killed before it wrote it
    assert not number or not alive(int(number))


FULL = """
import errno, os
plain, room = os.fork, [True, False, False, True]
def fork():
    if room.pop(0):
        return plain()
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
"""


def descriptors(server: Server) -> int:
    """Open files of the server; 0 where the system does not tell."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_without_room_for_another_process_a_job_runs_where_it_was_called(tmp_path):
    """A limit on processes or memory is met: the running jobs go on, and so does the server."""
    server = Server(tmp_path, FULL)
    try:
        running, process = waiting(server, "job")
        before = descriptors(server)
        for client in (server.client("exit", "5"), server.client("exit", "5")):
            _, log = client.communicate(timeout=60)
            assert (client.returncode, log) == (99, "")
        assert running.poll() is None and alive(process)
        assert server.client("exit", "5").wait(60) == 5
        wait_for(lambda: descriptors(server) == before)  # those that were handed over are closed
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    finally:
        server.process.stdin.close()
        server.process.wait(60)


@pytest.mark.parametrize("said", [b"", b"{\n", b"[]\n", b'{"python": 3}\n', b"null\n"])
def test_who_talks_nonsense_costs_the_server_nothing(server, said):
    assert server.client("exit", "5").wait(60) == 5
    before = descriptors(server)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(server.address)
            socket.send_fds(line, [b"job"], [0, 1, 2])
            line.sendall(said)
    assert server.client("exit", "6").wait(60) == 6
    wait_for(lambda: descriptors(server) == before)


@pytest.mark.parametrize(
    ("heard", "said", "status"),
    [
        (0, b"", 99),  # what was sent lies there unread, so that the line is reset
        (3, b"", 99),
        (1 << 20, b"", 99),
        (1 << 20, b'{"proc', 99),
        (1 << 20, b'{"process": 1073741824}\n', 1),
        (1 << 20, b'{"process": 1073741824}\n{"sta', 1),
    ],
)
def test_a_server_that_hangs_up_is_no_traceback(tmp_path, heard, said, status):
    """Before the job is known it is done where it was called; afterwards it has failed. (No process has that number.)"""
    server = Server.__new__(Server)
    server.address = str(Path(tempfile.mkdtemp(prefix="palimpsest-")) / "jobs")
    with warm.listen(server.address) as listener:
        client = server.client("exit", "5")
        line, _ = listener.accept()
        select.select([line], [], [], 60)
        with line:
            while heard > 0 and not (told := line.recv(min(heard, 4096))).endswith(b"\n"):
                heard -= len(told)
            line.sendall(said)
        _, log = client.communicate(timeout=60)
    shutil.rmtree(Path(server.address).parent)
    assert client.returncode == status and "Traceback" not in log
    assert ("start the workflow again" in log) == (status == 1)


def test_a_forked_run_writes_the_rows_of_a_cold_one(tmp_path, monkeypatch):
    """With the real server: torch loaded before the fork, threads set after it."""
    monkeypatch.setenv(warm.VARIABLE, "")  # so that what `start` names does not outlive the test
    process = warm.start()
    if sys.platform == "darwin":
        assert process is None
        pytest.skip("jobs are not forked on macOS")
    try:
        settings = {
            "counterfact": 6, "zsre": 6, "probes": 4, "unrelated": 4, "relations": 2, "answers": 3, "facts_per_subject": 1,
            "first_names": 6, "subjects_per_last_name": 2, "text_lines": 20, "subject_share": 0.5,
        }  # fmt: skip
        spec = {"kind": "pretrained", "family": "gpt2", "width": 32, "blocks": 2, "heads": 2, "inner": 64, "context": 64,
                "steps": 3, "batch": 2, "length": 32, "vocabulary": 400, "seed": 0}  # fmt: skip
        logs = {}
        for way in ("warm", "cold"):
            address = os.environ[warm.VARIABLE] if way == "warm" else "off"
            environment = {
                **os.environ,
                warm.VARIABLE: address,
                "PYTHONPATH": str(Path(warm.__file__).parents[1]),
            }
            world, model = tmp_path / way / "world", tmp_path / way / "model"
            command = [sys.executable, "-m", "palimpsest"]
            for words in (
                ["world", "--settings", json.dumps(settings), "--seed", "1", "--out", str(world)],
                [
                    "pretrain",
                    "--spec",
                    json.dumps(spec),
                    "--source",
                    str(world),
                    "--out",
                    str(model),
                    "--threads",
                    "1",
                ],
            ):
                done = subprocess.run(
                    [*command, *words], env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr
            logs[way] = done.stderr
        assert "used" in logs["warm"]
        assert "used" not in logs["cold"]
        threads = Path(f"/proc/{process.pid}/task")
        if threads.is_dir():  # forking is safe while there is one
            assert len(list(threads.iterdir())) == 1
        for file in ("world/facts.jsonl", "model/model.safetensors", "model/tokenizer.json"):
            assert (tmp_path / "warm" / file).read_bytes() == (tmp_path / "cold" / file).read_bytes()
    finally:
        process.stdin.close()
        process.wait(30)


def test_gpus_are_counted_without_starting_them(tmp_path, monkeypatch):
    """A process that has started CUDA cannot be forked into one that uses it."""
    seen = {}
    monkeypatch.setenv(warm.VARIABLE, "")
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    monkeypatch.setattr(warm.subprocess, "Popen", lambda *_, **given: seen.update(given["env"]))
    warm.start()
    shutil.rmtree(Path(os.environ[warm.VARIABLE]).parent)
    assert seen["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_a_job_forked_after_cuda_was_started_is_a_fresh_process(tmp_path):
    """Same process id, command, folder and files; its status is the command's."""
    code = """
import sys
from types import SimpleNamespace
from palimpsest import warm
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(_is_in_bad_fork=lambda: True))
print("before", end=" ")
warm._job(["--version"])
print("never said")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    wanted = subprocess.run(
        [sys.executable, "-m", "palimpsest", "--version"], capture_output=True, text=True, check=True
    )
    assert (done.returncode, done.stdout) == (0, "before " + wanted.stdout), done.stderr
