"""Commands that are asked to end, or killed: real processes, real signals, the same results afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from palimpsest import interruption
from palimpsest.cli import main
from palimpsest.errors import SettingsError
from palimpsest.interruption import Interrupted, deferred, leave, listening, requested, saving

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(autouse=True)
def not_ignored():
    """As in a shell: a job that was started in the background ignores Ctrl-C, and `listening` leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ask(number=signal.SIGTERM):
    """Send this process a signal and let Python see it."""
    os.kill(os.getpid(), number)
    for _ in range(100):
        pass


def test_outside_of_a_loop_a_signal_ends_the_command_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Interrupted, match="stopped by SIGTERM.*Start the same command again") as found,
        listening(),
    ):
        ask()
    assert found.value.status == 143 and signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Interrupted) as found, listening():
        ask(signal.SIGINT)
    assert found.value.status == 130


def test_inside_a_loop_it_waits_for_the_next_step_and_a_second_does_not():
    with pytest.raises(Interrupted, match="three steps are kept"), listening(), deferred():
        assert not requested()
        ask()
        assert requested()
        leave("three steps are kept")
    with pytest.raises(Interrupted, match="will be made again"), listening(), deferred():
        ask()
        ask()
    assert not requested()


def test_a_step_that_takes_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(interruption, "PATIENCE", 0.05)
    with pytest.raises(Interrupted, match=r"no step ended within 0\.05 s"), listening(), deferred():
        ask()
        time.sleep(5)


def test_a_slow_save_is_not_cut_off(monkeypatch):
    """The clock is for steps that do not end. A loop that came to its saving point has all the time it is given."""
    monkeypatch.setenv("PALIMPSEST_PATIENCE", "0.1")
    with pytest.raises(Interrupted, match="all sums are kept"), listening(), deferred():
        ask()
        assert requested()
        time.sleep(0.4)  # the save
        leave("all sums are kept")
    done = []
    with pytest.raises(Interrupted, match=r"no step ended within 0\.1 s"), listening(), deferred():
        with saving():  # one that was due anyway, when the signal comes; then a step that does not end
            ask()
            time.sleep(0.4)
            done.append("saved")
        time.sleep(5)
    assert done == ["saved"]
    for words in ("soon", "0", "inf"):
        monkeypatch.setenv("PALIMPSEST_PATIENCE", words)
        with (
            pytest.raises(SettingsError, match="PALIMPSEST_PATIENCE.*number of seconds above 0"),
            listening(),
        ):
            pass


ENTERING = 8  # lines of `saving` before the save, and some


@pytest.mark.parametrize("line", range(ENTERING))
def test_a_signal_at_any_moment_around_a_save_winds_a_clock(monkeypatch, line):
    """Between two lines of what begins a save, too: the step after it may be one that does not end."""
    monkeypatch.setenv("PALIMPSEST_PATIENCE", "0.1")
    passed, asked = [], []

    def trace(frame, event, _):
        if frame.f_code is saving.__wrapped__.__code__:
            if event == "line" and not asked:
                passed.append(frame.f_lineno)
                if len(passed) > line:
                    asked.append(True)
                    os.kill(os.getpid(), signal.SIGTERM)
            return trace
        return None

    with pytest.raises(Interrupted, match=r"no step ended within 0\.1 s"), listening(), deferred():
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with saving():
                sys.settrace(before)
        finally:
            sys.settrace(before)
        if not asked:  # it came after the last line
            ask()
        time.sleep(5)


def test_every_save_of_a_loop_is_out_of_the_clocks_reach(tmp_path, monkeypatch):
    """Runs, searches, sums and pre-training: what they write with, they write while no clock runs."""
    from torch import nn

    from palimpsest.learning import loop
    from palimpsest.models import training
    from palimpsest.protocols import checkpoints
    from palimpsest.statistics import accumulation

    states = []
    for module in (checkpoints, accumulation, training, loop):
        monkeypatch.setattr(module, "write_atomic", lambda *_: states.append(interruption._state.saving))
    monkeypatch.setattr(checkpoints, "file_fingerprint", lambda _: "")
    checkpoints.Checkpoints(tmp_path, {}).save(checkpoints.Checkpoint(1, {}, {}))
    sums = accumulation.Sums.__new__(accumulation.Sums)
    sums.path, sums.header, sums.tokens, sums.batches, sums.sums = tmp_path / "sums", {}, 0, 0, {}
    sums.save()
    network = nn.Linear(1, 1)
    training._save_checkpoint(network, torch.optim.AdamW(network.parameters()), tmp_path / "c", "", 1, [])
    learner = SimpleNamespace(tensors=dict)
    loop._save(
        learner, torch.optim.Adam(network.parameters()), [], loop.TrainingProgress(), tmp_path / "c", ""
    )
    assert states == [True] * 4 and not interruption._state.saving


def test_what_is_ignored_stays_ignored_and_threads_are_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background of a shell
    try:
        with listening():
            ask(signal.SIGINT)
            assert not requested()
    finally:
        signal.signal(signal.SIGINT, before)
    handlers = []

    def other():
        with listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_the_command_line_says_so_and_has_the_status(monkeypatch, capsys):
    monkeypatch.setattr("palimpsest.command_line.commands.run_toy", lambda *_: ask())
    assert main(["toy", "--spec", "{}", "--out", "unused"]) == 143
    assert "palimpsest: stopped by SIGTERM" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_at_random_moments_everything_goes_on_to_the_same_results(tmp_path):
    """The documented command, at a small count; every kind of long work (`python benchmarks/kill.py --help`)."""
    out = tmp_path / "kill.json"
    arguments = ["--moments", "2", "--signal", "KILL", "TERM", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PALIMPSEST_WARM": "off"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill.py"), *arguments],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert len(report) == 9 and not any(entry["different"] for entry in report)
    assert sum(entry["stopped"] for entry in report) >= 8 and sum(entry["went_on"] for entry in report) >= 5
