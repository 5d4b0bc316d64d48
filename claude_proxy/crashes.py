"""Defects of our own: told by the kind of exception and by where it was raised, in one line.

Python's own tracebacks end with the exception's words, and those may quote a key or a prompt. So
nothing that is raised gets as far as the interpreter's hooks, or the hooks are ours.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from claude_proxy.log import Log

MOST_PLACES = 6


def place_of(error: Optional[BaseException]) -> str:
    """Where an exception was raised: functions and lines, the innermost last, and no values."""
    places = []
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-MOST_PLACES:]) or "unknown"


@contextmanager
def told_crashes(log: Log) -> Iterator[None]:
    """While it lasts, what ends a thread, or fails unheard, is a line of the log."""

    def tell(event: str, found: Any) -> None:
        kind = found.exc_type.__name__ if found.exc_type else "unknown"
        log.error(event, error=kind, at=place_of(found.exc_value))

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda found: tell("thread_failed", found)
    sys.unraisablehook = lambda found: tell("failed_unheard", found)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before
