"""A process with the heavy libraries loaded, from which the jobs of one workflow are forked.

Loading torch and transformers takes 5 s of CPU, more than many a small job. The workflow starts this process once
(workflow/Snakefile, `onstart`); `python -m palimpsest ...` then hands it its command line, folder, environment and open
files, and ends with the status of the forked job. Nothing of this package is loaded before the fork, so a job always runs
the source as it is on the disk. Where there is no such process (other machines, other environments, PALIMPSEST_WARM=off)
commands run as ever, with the same results.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

VARIABLE = "PALIMPSEST_WARM"
LIBRARIES = (
    "torch", "transformers.models.gpt2.modeling_gpt2", "transformers.models.gptj.modeling_gptj",
    "transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.encoder_decoder", "transformers.tokenization_utils_tokenizers", "safetensors.torch", "jaxtyping",
    "jsonschema", "pandas", "pandas.io.formats.csvs", "pyarrow.parquet", "pyarrow.dataset", "pyarrow.pandas_compat",
    "matplotlib.pyplot", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
    "matplotlib.backends.backend_svg", "fontTools.subset", "tqdm",
)  # fmt: skip
# A process is forked safely while it has a single thread; Arrow's allocator would start one of its own.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Whether there are GPUs is asked without starting CUDA: started before a fork, it serves no forked process.
NO_CUDA_YET = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
PAUSE = 0.1  # seconds before another client is let in, when the system is out of descriptors
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start() -> subprocess.Popen[bytes] | None:
    """Start the process and name it in the environment; it ends with the one that started it.

    Returns None where it is switched off, the system cannot fork (or, as macOS, not with these libraries loaded), or its
    folder for temporary files takes no socket: a long TMPDIR does not.
    """
    if os.environ.get(VARIABLE) == "off" or sys.platform == "darwin":
        return None
    if not hasattr(socket, "send_fds") or not hasattr(os, "fork"):
        return None
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-"))  # readable for this user alone
    address = str(folder / "jobs")
    try:
        listener = listen(address)
    except OSError:
        folder.rmdir()
        return None
    source = str(Path(__file__).resolve().parents[1])  # as the rules have it
    # Another session: Ctrl-C is for the jobs, which pass it on. The pipe to its input tells it when to end.
    process = subprocess.Popen(
        [sys.executable, "-m", "palimpsest.warm", str(listener.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": source, **ONE_THREAD, **NO_CUDA_YET},
    )
    listener.close()
    os.environ[VARIABLE] = address
    return process


def listen(address: str) -> socket.socket:
    """A socket at this path; jobs that come while the libraries load wait there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.listen(128)
    return listener


def hand_over(arguments: list[str]) -> int | None:
    """Let the warm process do a command; the exit status, or None when it must be done here."""
    address = os.environ.get(VARIABLE, "off")
    if address == "off":
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(address)
        except OSError:
            return None
        # Under nohup, or in the background of a shell: what this process does not hear, its job must not hear either.
        ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
        heard = [number for number in FORWARDED if number not in ignored]
        told = {
            "arguments": arguments,
            "ignored": [int(number) for number in ignored],
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            **_interpreter(),
        }
        job: list[int] = []  # its process, once it is known
        missed: list[int] = []  # signals that came before

        def forward(received: int, _: object) -> None:
            if not job:
                missed.append(received)
                return
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(job[0], received)

        for number in heard:
            signal.signal(number, forward)
        with line.makefile("rb") as stream:
            with contextlib.suppress(OSError):  # it hung up already: no answer will come
                socket.send_fds(line, [b"job"], [0, 1, 2])
                line.sendall(json.dumps(told).encode() + b"\n")
            answer = _heard(stream)
            if "process" not in answer:
                for number in heard:
                    signal.signal(
                        number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                    )
                for received in missed:
                    os.kill(os.getpid(), received)
                return None
            job.append(answer["process"])
            for received in missed:
                forward(received, None)
            ended = _heard(stream)
    if "status" not in ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job[0], signal.SIGKILL)
        sys.stderr.write(
            "palimpsest: the process that jobs are forked from has ended; start the workflow again\n"
        )
        return 1
    return int(ended["status"])


def _heard(stream: BinaryIO) -> dict[str, Any]:
    """The next line of the process that jobs are forked from; empty when it has hung up, whichever way."""
    try:
        return dict(json.loads(stream.readline() or b"{}"))
    except (OSError, ValueError, TypeError):  # reset, or gone in the middle of a line
        return {}


def serve(
    listener: socket.socket, job: Callable[[list[str]], int], libraries: tuple[str, ...] = LIBRARIES
) -> None:
    """Load the libraries, then fork a process for each command until the input closes.

    Args:
        listener: see `listen`; closed and removed at the end.
        job: what a forked process does with its arguments; returns its exit status.
    """
    address = Path(listener.getsockname())
    with listener:
        try:
            for name in libraries:
                with contextlib.suppress(ImportError):  # an environment for figures alone has no torch
                    import_module(name)
            _prepare(address.parent)
            _Server(listener, job).run()
        finally:
            shutil.rmtree(address.parent, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """What every job would do again: compile the package where nothing compiled may be kept beside it, and patterns."""
    if (
        sys.dont_write_bytecode and shutil.disk_usage(folder).free > 1 << 26
    ):  # a full disk would cut files off
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder / "bytecode")
    conversions = sys.modules.get("transformers.conversion_mapping")
    # A thousand patterns, which the first model that is loaded compiles. It is about time only, so nothing may fail here.
    with contextlib.suppress(Exception):
        conversions.get_checkpoint_conversion_mapping("gpt2")  # type: ignore[union-attr]


class _Server:
    """One thread, one selector: forking is safe as long as no other thread runs."""

    def __init__(self, listener: socket.socket, job: Callable[[list[str]], int]):
        self.listener, self.job = listener, job
        self.clients: dict[int, socket.socket] = {}  # by process of the job
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, "listener")
        self.selector.register(sys.stdin, selectors.EVENT_READ, "owner")
        wake, waker = socket.socketpair()
        waker.setblocking(False)
        self.pair = (wake, waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno())
        self.selector.register(wake, selectors.EVENT_READ, "child")

    def run(self) -> None:
        owned = True
        while owned or self.clients:
            for key, _ in self.selector.select():
                if key.data == "listener":
                    self._accept()
                elif key.data == "owner":
                    owned = bool(os.read(sys.stdin.fileno(), 1))
                    if not owned:
                        self.selector.unregister(sys.stdin)
                elif key.data == "child":
                    key.fileobj.recv(64)  # type: ignore[union-attr]
                    self._reap()
                else:
                    self._abandoned(key.data)

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:  # no descriptor is free: the client waits in the queue, and so does this loop
            time.sleep(PAUSE)
            return
        files: list[int] = []
        try:
            _, files, _, _ = socket.recv_fds(client, 3, 3)
            with client.makefile("rb", buffering=0) as stream:
                told = json.loads(stream.readline())
            ours = {key: told[key] for key in _interpreter()} == _interpreter()
            process = os.fork() if ours and len(files) == 3 else None  # fewer came when descriptors are short
        except (OSError, ValueError, LookupError, TypeError):
            # Who hung up or talks nonsense gets nothing. Where the system has no room for another process (memory, a limit on
            # their number) the client does its work itself: a server that ended here would take all running jobs with it.
            process = None
        if process == 0:
            self._become(told, files, client)
        for file in files:
            os.close(file)
        if process is None:
            client.close()
            return
        with contextlib.suppress(OSError):  # both do it: whichever comes first
            os.setpgid(process, process)
        self.clients[process] = client
        self.selector.register(client, selectors.EVENT_READ, process)
        with contextlib.suppress(OSError):  # a client that is gone shows at the selector
            client.sendall(json.dumps({"process": process}).encode() + b"\n")

    def _become(self, told: dict[str, Any], files: list[int], client: socket.socket) -> None:
        """In the forked process: take the client's place, do the job, and never return."""
        status = 1
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (*FORWARDED, signal.SIGCHLD):
                signal.signal(number, signal.SIG_IGN if number in told["ignored"] else signal.SIG_DFL)
            if signal.SIGINT not in told["ignored"]:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.selector.close()
            for held in (self.listener, client, *self.pair, *self.clients.values()):
                held.close()
            for place, file in enumerate(files):
                os.dup2(file, place)
                os.close(file)
            os.chdir(told["folder"])
            os.environ.clear()
            os.environ.update(told["environment"])
            with _exit_status() as found:
                found["status"] = self.job(told["arguments"])
            status = found["status"]
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # the libraries' own clearing up is the first process's business

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                client = self.clients.pop(ended[0])
                with contextlib.suppress(KeyError):  # it may be gone
                    self.selector.unregister(client)
                code = os.waitstatus_to_exitcode(ended[1])
                with contextlib.suppress(OSError):
                    client.sendall(json.dumps({"status": 128 - code if code < 0 else code}).encode() + b"\n")
                client.close()

    def _abandoned(self, process: int) -> None:
        """A client that is gone was killed: so is its job, as if it had been one process."""
        client = self.clients.get(process)
        if client is None:
            return
        with contextlib.suppress(OSError):  # reset: it died before it read its answer
            if client.recv(64):
                return
        self.selector.unregister(client)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)


@contextlib.contextmanager
def _exit_status() -> Iterator[dict[str, int]]:
    """What the interpreter would exit with."""
    found = {"status": 1}
    try:
        yield found
    except SystemExit as ending:
        found["status"] = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        found["status"] = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())


def _interpreter() -> dict[str, Any]:
    """Jobs of another interpreter or source tree are not for this process."""
    return {
        "python": sys.version,
        "prefix": sys.prefix,
        "path": [os.path.realpath(entry) for entry in sys.path[1:]],
    }


def _job(arguments: list[str]) -> int:
    """In the forked process: the threads its environment asks for, then the command."""
    torch, words = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and torch.cuda._is_in_bad_fork():  # a library has started CUDA after all
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ[VARIABLE] = "off"
        os.execv(
            sys.executable, [sys.executable, "-m", "palimpsest", *arguments]
        )  # the same process, loaded anew
    if torch is not None and words.isdigit() and int(words):
        torch.set_num_threads(int(words))
    sys.argv[1:] = arguments
    import logging
    import resource

    from palimpsest.cli import main

    status = main(arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, unit = used.ru_utime + used.ru_stime, 1 if sys.platform == "darwin" else 1024
    # Snakemake's benchmark sees the waiting client only, so the log has it.
    logging.getLogger("palimpsest.warm").info(
        "used %.1f s of CPU and at most %.0f MB", seconds, used.ru_maxrss * unit / 1e6
    )
    return status


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), _job)
