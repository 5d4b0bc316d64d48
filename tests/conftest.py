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

# Seconds of those that take long, so that all parts take about as long; any other takes SHORT.
SECONDS = {
    "test_cli.py": 21, "test_canary.py": 17, "test_end_to_end.py": 16, "test_fallback.py": 12, "test_relay.py": 12,
    "test_wire.py": 8, "test_docs.py": 8, "test_redcap.py": 8, "test_redcap_faults.py": 8, "test_compression.py": 7,
    "test_text_calls.py": 5, "test_listen_tls.py": 4, "test_release.py": 4, "test_torture.py": 4,
    "test_relay_exact.py": 4, "test_otlp.py": 4, "test_reload.py": 4, "test_chat_stream_fuzz.py": 3, "test_tls.py": 3,
}  # fmt: skip
SHORT = 0.7
FILES = sorted(path.name for path in pathlib.Path(__file__).parent.glob("test_*.py"))


def files_of(part, parts):
    """The longest first, each to the part that has least to do."""
    shares = [[0.0, number, []] for number in range(parts)]
    for name in sorted(FILES, key=lambda name: -SECONDS.get(name, SHORT)):
        least = min(shares)
        least[0] += SECONDS.get(name, SHORT)
        least[2].append(name)
    return shares[part][2]


def chosen_files():
    """With TEST_PART=1/3 the second third of the files, else all of them."""
    part, _, parts = os.environ.get("TEST_PART", "0/1").partition("/")
    return frozenset(files_of(int(part), int(parts)))


CHOSEN = chosen_files()


def pytest_ignore_collect(collection_path):
    return True if collection_path.name in FILES and collection_path.name not in CHOSEN else None


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
