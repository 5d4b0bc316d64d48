"""Every end-to-end test runs against both forms of the proxy: the package and the single file."""

from __future__ import annotations

import os
import pathlib
import threading
import time

import pytest

from tests import support

if os.environ.get("CANARY_TEE"):
    from tests.canary_tee import keep_everything

    keep_everything()

# So that both take about as long.
IN_SECOND_HALF = ("test_wire.py",)


HALF = os.environ.get("TEST_HALF", "")
FILES = sorted(path.name for path in pathlib.Path(__file__).parent.glob("test_*.py"))


def half_of(name):
    return 1 if name in IN_SECOND_HALF else FILES.index(name) % 2


def pytest_ignore_collect(collection_path):
    """With TEST_HALF 0 or 1, every other file: `make test` runs both halves at once."""
    if HALF and collection_path.name in FILES and half_of(collection_path.name) != int(HALF):
        return True
    return None


@pytest.fixture(scope="session", params=["package", "single"])
def form(request):
    return support.load_form(request.param)


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
