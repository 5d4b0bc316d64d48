"""Which failures another route may not have, and how they are seen before an answer has begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, List

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpResponse
from claude_proxy.relay import frame_events
from claude_proxy.sse import FrameSplitter

# Failures of one place that another may not have.
PASSING_STATUSES = frozenset((429, *range(500, 600)))
# Where a relayed stream's first event is longer, it is no error.
LONGEST_FIRST_FRAME = 65536


def moves_on(error: ProxyError) -> bool:
    """Whether another place may do better. A used-up quota comes as 429 and is told as 402."""
    return error.status in PASSING_STATUSES or (error.status, error.upstream_status) == (402, 429)


def begun_answer(answer: HttpResponse, exchange: Exchange) -> HttpResponse:
    """A relayed answer; ProxyError if it is a stream whose first event is a passing failure."""
    headers = dict(answer.headers)
    streamed = not isinstance(answer.body, bytes) and answer.status == 200
    if not streamed or "content-encoding" in headers:
        return answer
    pieces, splitter, held = iter(answer.body), FrameSplitter(), b""
    for piece in pieces:
        held += piece
        frames = splitter.feed(piece)
        if frames or len(held) > LONGEST_FIRST_FRAME:
            raise_passing(frames[:1], pieces, exchange)
            break
    return answer._replace(body=rejoined(held, pieces))


def raise_passing(frames: List[bytes], pieces: Any, exchange: Exchange) -> None:
    """Raise the failure that these frames tell of, if another place may not have it."""
    try:
        for frame in frames:
            frame_events(frame)
    except ProxyError as error:
        if moves_on(error):
            pieces.close()
            exchange.first_event = None  # it was none
            raise


def rejoined(held: bytes, pieces: Any) -> Iterator[bytes]:
    with closing(pieces):
        if held:
            yield held
        yield from pieces
