"""Leaving when asked to: SIGTERM, SIGINT and SIGHUP end a command after a checkpoint, with a message and 128 + signal as status.

Outside of `deferred` a signal ends the command at once: files are whole or not there, so nothing is half-made. A loop that can
keep what it has done runs inside of `deferred`: there a signal is only noted, and between two steps the loop asks `requested`,
saves, and calls `leave`. When no such moment comes within `PATIENCE` seconds, or at a second signal, the command ends where it
stands, and goes on from its last checkpoint when it is started again. Used as a library, nothing here touches signals.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

PATIENCE = 20.0  # seconds; schedulers kill for good some 30 s after SIGTERM
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


_state = _State()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn signals into `Interrupted` for the length of a command; those that this process ignores stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = [number for number in LISTENED if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[Any, Any] = {number: signal.signal(number, _asked) for number in numbers}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _late)
    _state.noted, _state.deferring = None, 0
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
    """Whether the command should end at the next moment from which it can go on."""
    return _state.noted is not None


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
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)


def _late(_: int, __: object) -> None:
    number = _state.noted
    if number is not None:
        raise Interrupted(
            number, f"no step ended within {PATIENCE:g} s, so work since the last checkpoint is done again"
        )


def _stop_clock() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
