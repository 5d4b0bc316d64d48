"""How the interpreter is shared out among the threads that answer."""

from __future__ import annotations

import gc
import sys
import types

import pytest

from claude_proxy.serving import share_interpreter, start_serving, switch_seconds


@pytest.fixture
def as_it_was():
    seconds = sys.getswitchinterval()
    yield
    sys.setswitchinterval(seconds)
    gc.unfreeze()


@pytest.mark.parametrize("answers,seconds", [(0, 0.0005), (1, 0.0005), (64, 0.0005), (128, 0.002), (256, 0.008), (512, 0.02), (9999, 0.02)])
def test_the_more_answers_the_longer_the_turns(answers, seconds):
    assert switch_seconds(answers) == pytest.approx(seconds)


def test_turns_follow_what_the_sweeper_tells(as_it_was):
    inflight = types.SimpleNamespace(start=lambda: None, crowd=None)
    start_serving(types.SimpleNamespace(inflight=inflight, serve_forever=lambda: None))
    assert inflight.crowd is share_interpreter and gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    inflight.crowd(512)
    assert sys.getswitchinterval() == pytest.approx(0.02)
