"""Failures that are told again to the repeat of a stream, and to nobody else."""

from __future__ import annotations

from claude_proxy.errors import ProxyError
from claude_proxy.late import LATE_SECONDS, MOST_LATE_FAILURES, LateFailures


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_each_is_told_once_and_not_for_long():
    clock = Clock()
    late, error = LateFailures(clock), ProxyError(502, "no")
    late.remember(b"a", error)
    assert late.take(b"b") is None
    assert late.take(b"a") is error and late.take(b"a") is None
    late.remember(b"a", error)
    clock.now += LATE_SECONDS
    assert late.take(b"a") is None


def test_only_so_many_are_kept():
    late, error = LateFailures(Clock()), ProxyError(502, "no")
    for number in range(MOST_LATE_FAILURES + 1):
        late.remember(str(number).encode(), error)
    assert late.take(b"0") is None and late.take(b"1") is error
