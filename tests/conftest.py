"""Every end-to-end test runs against both forms of the proxy: the package and the single file."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests import support

if os.environ.get("CANARY_TEE"):
    from tests.canary_tee import keep_everything

    keep_everything()

# So that both take about as long.
IN_SECOND_HALF = ("test_wire.py",)


def half_of(place, name):
    return 1 if name in IN_SECOND_HALF else place % 2


def pytest_collection_modifyitems(config, items):
    """With TEST_HALF 0 or 1, every other file: `make test` runs both halves at once."""
    half = os.environ.get("TEST_HALF", "")
    if half:
        files = sorted({item.path.name for item in items})
        kept = {name for place, name in enumerate(files) if half_of(place, name) == int(half)}
        config.hook.pytest_deselected(items=[item for item in items if item.path.name not in kept])
        items[:] = [item for item in items if item.path.name in kept]


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
