"""Guards of a process that trains for long: signals that ask it to stop, and stacks of threads that hang."""

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

HANG_SECONDS = 1_800  # without a step: longer than any compilation, and the stacks of all threads are printed


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second one kills. Signals are left alone outside the main thread, and in
    runs of several processes, where JAX handles them."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number, _):
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watched() -> Iterator[None]:
    """Within it, the stacks of all threads are printed whenever nothing has come back for HANG_SECONDS."""
    postpone_hang_report()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def postpone_hang_report() -> None:
    """Something has come back: within `watched`, the time starts anew."""
    faulthandler.dump_traceback_later(HANG_SECONDS, repeat=True, file=sys.__stderr__)
