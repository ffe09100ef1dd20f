"""Leaving when asked to: SIGTERM, SIGINT and SIGHUP end a command after a checkpoint, with a message and 128 + signal as status.

Outside of `deferred` a signal ends the command at once: files are whole or not there, so nothing is half-made. A loop that can
keep what it has done runs inside of `deferred`: there a signal is only noted, and between two steps the loop asks `requested`,
saves, and calls `leave`. When no such moment comes within `PATIENCE` seconds (PALIMPSEST_PATIENCE in the environment), or at a
second signal, the command ends where it stands, and goes on from its last checkpoint when it is started again. A save may take
longer than that: no clock runs in `saving`, nor once `requested` has said yes. Used as a library, nothing here touches signals.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from palimpsest.errors import SettingsError

PATIENCE = 20.0  # seconds; schedulers kill for good some 30 s after SIGTERM
VARIABLE = "PALIMPSEST_PATIENCE"  # other seconds, for schedulers with another patience of their own
LISTENED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """The command was asked to end. No `Exception`: nobody may take it for a failed edit or bad input.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, kept: str):
        super().__init__(
            f"stopped by {signal.Signals(number).name}: {kept}. Start the same command again to go on"
        )
        self.number = number

    @property
    def status(self) -> int:
        """Exit status that shells expect: 143 after SIGTERM, 130 after SIGINT."""
        return 128 + self.number


class _State:
    noted: int | None = None
    deferring = 0
    saving = False
    patience = PATIENCE


_state = _State()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn signals into `Interrupted` for the length of a command; those that this process ignores stay ignored.

    Raises:
        SettingsError: PALIMPSEST_PATIENCE is no number of seconds.
    """
    _state.patience = _patience()
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = [number for number in LISTENED if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[Any, Any] = {number: signal.signal(number, _asked) for number in numbers}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _late)
    _state.noted, _state.deferring, _state.saving = None, 0, False
    try:
        yield
    finally:
        _stop_clock()
        _state.noted = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """For the length of a loop that asks `requested` between its steps."""
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1


def requested() -> bool:
    """Whether the command should end at the next moment from which it can go on: this one, so that its clock stops."""
    if _state.noted is None:
        return False
    _stop_clock()
    return True


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """For the length of a save, which no clock cuts off; one that a signal wound up before or meanwhile starts at its end."""
    # First what was noted: a signal after this line starts a clock that is stopped below, or counts as one of meanwhile.
    before = _state.noted
    outer, _state.saving = _state.saving, True
    running = _stop_clock()
    try:
        yield
    finally:
        _state.saving = outer
    if not outer and (running or (before is None and _state.noted is not None)):
        _start_clock()


def leave(kept: str) -> NoReturn:
    """End the command that was asked to; `kept` says what a later start goes on from."""
    assert _state.noted is not None
    raise Interrupted(_state.noted, kept)


def _asked(number: int, _: object) -> None:
    again = _state.noted is not None
    _state.noted = number
    if again or not _state.deferring:
        _stop_clock()
        raise Interrupted(number, "what was not yet written will be made again")
    if not _state.saving:
        _start_clock()


def _late(_: int, __: object) -> None:
    number = _state.noted
    if number is not None:
        raise Interrupted(
            number,
            f"no step ended within {_state.patience:g} s, so work since the last checkpoint is done again",
        )


def _start_clock() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _state.patience)


def _stop_clock() -> bool:
    """Whether it was running."""
    return hasattr(signal, "setitimer") and signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def _patience() -> float:
    words = os.environ.get(VARIABLE)
    if words is None:
        return PATIENCE
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(words)) < math.inf:
            return seconds
    raise SettingsError(f"the variable {VARIABLE} is {words!r:.40}; expected a number of seconds above 0")
