"""Interrupts (SIGINT, as Ctrl-C sends it to every process of the terminal) that may only stop what can be stopped."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold interrupts back in the block; yields a function that says whether one has come.

    An exception at any moment, as Python raises it otherwise, can meet a worker process half started, which then
    waits for ever for a task. The first interrupt is remembered, for the block to ask for where it can stop, and
    raised as :class:`KeyboardInterrupt` at the block's end. Each further one kills the child processes.

    Outside the main thread, and where the application handles or ignores SIGINT itself, nothing is held back.
    """
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield lambda: False
        return
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            for child in multiprocessing.active_children():
                child.kill()
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, default)
    if came:
        raise KeyboardInterrupt


@contextmanager
def uninterrupted_children() -> Iterator[None]:
    """Start processes in the block to which an interrupt waits from their first moment until they ignore it.

    A process inherits which signals its parent's thread blocks; without it, an interrupt that comes while the
    process imports its modules, long before its code runs, ends it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
