"""Every end-to-end test runs against both forms of the proxy: the package and the single file."""

from __future__ import annotations

import threading
import time

import pytest

from tests.support import load_form


@pytest.fixture(scope="session", params=["package", "single"])
def form(request):
    return load_form(request.param)


@pytest.fixture
def no_thread_left():
    """What a test started has ended when it is over."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 3
    while time.monotonic() < end and set(threading.enumerate()) - before:
        time.sleep(0.01)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"threads left behind: {left}"
